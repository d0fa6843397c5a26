"""The native core under ThreadSanitizer: python -m tests.tsan

Builds a copy of the package with -fsanitize=thread in a temporary folder and runs the contention
tests in it under LD_PRELOAD=libtsan.so. A report from our modules fails the run; ONNX Runtime,
numpy and Python are not instrumented, so what TSan suspects inside them is suppressed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = ["tests/test_queue.py", "tests/test_groups.py", "tests/test_dispatch.py"]
# Python 3.11's own allocator and GIL use orderings that TSan does not know, and ORT's library is
# not instrumented: it sees their memory change but not why that is ordered.
SUPPRESSIONS = """
called_from_lib:libonnxruntime.so
race:libpython
race:_multiarray_umath
"""


def main() -> int:
    library = subprocess.run(
        ["g++", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "deepsched")
        ignored = shutil.ignore_patterns("*.so", "*.cpp", ".git", ".venv", "build")
        shutil.copytree(ROOT, copy, ignore=ignored)
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=copy,
            check=True,
            env={**os.environ, "DEEPSCHED_SANITIZE": "thread"},
        )
        suppressions = Path(folder, "suppressions")
        suppressions.write_text(SUPPRESSIONS)
        reports = Path(folder, "report")
        environment = {
            **os.environ,
            "LD_PRELOAD": os.path.realpath(library),
            "PYTHONPATH": str(copy),
            "PYTHONMALLOC": "malloc",
            "TSAN_OPTIONS": f"suppressions={suppressions} log_path={reports} exitcode=0",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
        tests = subprocess.run(command, cwd=copy, env=environment)
        found = [path.read_text() for path in Path(folder).glob("report.*")]
    for report in found:
        print(report)
    print(f"{len(found)} processes with reports")
    return tests.returncode or bool(found)


if __name__ == "__main__":
    sys.exit(main())
