"""Builds the native core. DEEPSCHED_DEBUG=1 and DEEPSCHED_SANITIZE=thread|address change how.

With "address", UndefinedBehaviorSanitizer is there too.
"""

import os
import sys
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("DEEPSCHED_DEBUG", "0") not in ("", "0")
SANITIZE = os.environ.get("DEEPSCHED_SANITIZE", "")
SANITIZERS = {
    "thread": "thread",
    # A float that its integer type cannot hold becomes another number on each kind of CPU.
    "address": "address,undefined,float-cast-overflow",
}

compile_args = ["-std=c++17", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden"]
link_args = []
macros = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")]
if DEBUG or SANITIZE:
    compile_args += ["-O1", "-g", "-fno-omit-frame-pointer"]
else:
    compile_args += ["-O2"]
if SANITIZE:
    if SANITIZE not in SANITIZERS:
        sys.exit(f"DEEPSCHED_SANITIZE must be thread or address, got {SANITIZE!r}")
    compile_args += [f"-fsanitize={SANITIZERS[SANITIZE]}"]
    link_args += [f"-fsanitize={SANITIZERS[SANITIZE]}"]

NUM_JOBS = min(len(os.sched_getaffinity(0)), 8)  # each compiler takes some 300 MB

sources = sorted(Path("deepsched/runtime").glob("*.pyx"))
if not sources:  # else the result would be a package without its core
    sys.exit("no deepsched/runtime/*.pyx here: run this from the root of the sources")

extensions = [
    Extension(
        f"deepsched.runtime.{source.stem}",
        [str(source)],
        language="c++",
        include_dirs=[numpy.get_include()],
        define_macros=macros,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )
    for source in sources
]

# Cython's workers import this file again where processes are not forked: Python 3.14 and newer.
if __name__ == "__main__":
    setup(
        ext_modules=cythonize(
            extensions,
            nthreads=NUM_JOBS,
            compiler_directives={
                "language_level": 3,
                "cdivision": True,
                "binding": True,
                "embedsignature": True,
                # README of runtime/, "Without a GIL".
                "freethreading_compatible": True,
            },
        ),
        options={"build_ext": {"parallel": NUM_JOBS}},
    )
