"""Libraries of custom operators, which a model's sessions load."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

from deepsched.errors import OptionError

CustomOps: TypeAlias = Sequence[str | os.PathLike[str]]
"""Paths of shared libraries that export RegisterCustomOps."""


def check_custom_ops(custom_ops: CustomOps) -> tuple[str, ...]:
    """Returns them as absolute paths: dlopen would look for a bare name elsewhere.

    Raises:
        OptionError: it is no list of paths, or there is no such file.
    """
    if isinstance(custom_ops, (str, bytes, os.PathLike)) or not isinstance(custom_ops, Sequence):
        raise OptionError(
            f"custom_ops must be a list of paths of libraries, got {custom_ops!r}; for one "
            "library: custom_ops=[path]"
        )
    paths = []
    for path in custom_ops:
        name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
        if not isinstance(name, str) or not os.path.isfile(name):
            raise OptionError(f"custom_ops: no file at {name!r}")
        paths.append(os.path.abspath(name))
    return tuple(paths)
