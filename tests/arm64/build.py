"""The wheel for aarch64, cross-built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SUITES = {"3.11": "bookworm", "3.13": "trixie"}
"""Debian's releases by the Python that they have."""


def unpack(folder: Path, *packages: str) -> None:
    """Debian's packages for arm64, beside what extension modules are built with."""
    if PYTHON not in SUITES:
        sys.exit(f"no Debian has headers of Python {PYTHON} for arm64: use {' or '.join(SUITES)}")
    script = str(ROOT / ".ci" / "arm64_root")
    headers = f"libpython{PYTHON}-dev"
    subprocess.run([script, str(folder), SUITES[PYTHON], headers, *packages], check=True)


def build_wheel(root: Path, folder: Path) -> Path:
    """The wheel, in `folder`; a warning is an error.

    Raises:
        subprocess.CalledProcessError: it does not build. The compiler has said why.
    """
    compiler = "aarch64-linux-gnu-g++"
    headers = root / "usr/include"
    flags = "-DNDEBUG -fwrapv -fPIC -Werror"  # as Python's own, but for -g and -Werror
    environment = {
        **os.environ,
        "CC": compiler,
        "CXX": compiler,
        "CXXFLAGS": flags,
        # Before this Python's own, which are the same but for what configure has found on x86-64
        # (pyconfig.h). That of arm64 is named from /usr/include, where the compiler's C library is
        # not to come from.
        "CPPFLAGS": f"-I{headers}/python{PYTHON} -idirafter {headers}",
        "LDCXXSHARED": f"{compiler} -shared",
        "LDSHARED": f"{compiler} -shared",
        # setuptools asks the running Python for these.
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{PYTHON.replace('.', '')}-aarch64-linux-gnu.so",
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
    }
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel
