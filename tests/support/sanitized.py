"""The native core under a sanitizer: python -m tests.support.sanitized thread|address [TESTS]

    python -m tests.support.sanitized thread
    python -m tests.support.sanitized address tests  # the whole suite

Builds a copy of the package with -fsanitize in a temporary folder and runs tests in it with the
sanitizer's library preloaded: under ThreadSanitizer those of contention, under AddressSanitizer and
UndefinedBehaviorSanitizer those of values, interruptions and lives that end early; or those that
are named, as for pytest. A report from our modules fails the run; ONNX Runtime, numpy and Python
are not instrumented, so their own memory is not looked at.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = {
    "thread": (
        "queue",
        "groups",
        "backlog",
        "batching_loop",
        "batching_native",
        "dispatch",
        "invocation",
        "request_options",
        "stress",
        "elastic",
        "trace",
        "pingpong",
        "turnstile",
        "resize",
    ),
    "address": (
        "interruptions",
        "values",
        "invocation",
        "request_options",
        "dispatch",
        "batching_loop",
        "batching_native",
    ),
}
# ORT's library is not instrumented: TSan would see its memory change but not why that is ordered.
# glibc makes ORT's thread-locals at their first use and frees them when the thread's stack goes to
# another; what orders the two is inside glibc, which is not instrumented either.
# Inputs that run together are joined, and outputs cut, in memory of ORT's arena, which goes from
# run to run and from stream to stream under a lock of ORT's.
# And at exit ORT 1.32 destroys a mutex and a condition variable that its own threads still use.
SUPPRESSIONS = """
called_from_lib:libonnxruntime.so
race:_dl_deallocate_tls
race:__pyx_f_9deepsched_7runtime_8batching_join_input
race:__pyx_f_9deepsched_7runtime_8batching_split_output
mutex:libonnxruntime.so
mutex:__run_exit_handlers
mutex:std::condition_variable::wait
"""


def main(sanitizer: str, *tests: str) -> int:
    library = subprocess.run(
        ["g++", f"-print-file-name=lib{sanitizer[0]}san.so"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "deepsched")
        # With the .cpp: what Cython has made is the same for each sanitizer.
        ignored = shutil.ignore_patterns("*.so", ".git", ".venv", "build")
        shutil.copytree(ROOT, copy, ignore=ignored)
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=copy,
            check=True,
            env={**os.environ, "DEEPSCHED_SANITIZE": sanitizer},
        )
        suppressions = Path(folder, "suppressions")
        suppressions.write_text(SUPPRESSIONS)
        reports = Path(folder, "report")
        preloaded = [os.path.realpath(library)]
        if sanitizer == "address":
            # Its interceptor of C++ exceptions looks for the runtime when it is loaded itself.
            runtime = ["g++", "-print-file-name=libstdc++.so.6"]
            found = subprocess.run(runtime, capture_output=True, text=True, check=True)
            preloaded.append(os.path.realpath(found.stdout.strip()))
        environment = {
            **os.environ,
            "LD_PRELOAD": ":".join(preloaded),
            "PYTHONPATH": str(copy),
            "PYTHONMALLOC": "malloc",
            "TSAN_OPTIONS": f"suppressions={suppressions} log_path={reports} exitcode=0",
            # Python does not free all that it has at its exit.
            "ASAN_OPTIONS": f"log_path={reports} detect_leaks=0 exitcode=97",
            # Beside AddressSanitizer it writes to stderr, whatever its log_path: so it ends the
            # process, and pytest is not to take what is written there.
            "UBSAN_OPTIONS": "halt_on_error=1 print_stacktrace=1 exitcode=97",
        }
        tests = tests or tuple(f"tests/test_{name}.py" for name in TESTS[sanitizer])
        pytest = ["-m", "pytest", "-q", "-x", "--capture=sys", "-p", "no:cacheprovider"]
        command = [sys.executable, *pytest, *tests]
        ran = subprocess.run(command, cwd=copy, env=environment)
        found_reports = [path.read_text() for path in Path(folder).glob("report.*")]
    for report in found_reports:
        print(report)
    print(f"{len(found_reports)} processes with reports")
    return ran.returncode or bool(found_reports)


if __name__ == "__main__":
    if sys.argv[1:2] not in (["thread"], ["address"]):
        sys.exit("usage: python -m tests.support.sanitized thread|address [TESTS]")
    sys.exit(main(*sys.argv[1:]))
