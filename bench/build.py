"""Builds bench/native.pyx into build/bench, once for each change of it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent


def native() -> ModuleType:
    """The compiled module; needs Cython (the bench extra) and the C++ compiler."""
    import numpy
    import pyximport  # Cython's own

    pyximport.install(
        build_dir=str(ROOT / "build" / "bench"),
        inplace=False,
        language_level=3,
        setup_args={"include_dirs": numpy.get_include()},
    )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module("bench.native")
