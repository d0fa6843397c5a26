"""The native core under ThreadSanitizer: python -m tests.support.tsan

Builds a copy of the package with -fsanitize=thread in a temporary folder and runs the contention
tests in it under LD_PRELOAD=libtsan.so. A report from our modules fails the run; ONNX Runtime,
numpy and Python are not instrumented, so their own memory is not looked at.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = [
    f"tests/test_{name}.py"
    for name in (
        "queue",
        "groups",
        "backlog",
        "dispatch",
        "invocation",
        "request_options",
        "stress",
        "elastic",
        "trace",
    )
]
# ORT's library is not instrumented: TSan would see its memory change but not why that is ordered.
# glibc makes ORT's thread-locals at their first use and frees them when the thread's stack goes to
# another; what orders the two is inside glibc, which is not instrumented either.
# And at exit ORT 1.32 destroys a mutex and a condition variable that its own threads still use.
SUPPRESSIONS = """
called_from_lib:libonnxruntime.so
race:_dl_deallocate_tls
mutex:libonnxruntime.so
mutex:__run_exit_handlers
mutex:std::condition_variable::wait
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
