"""Nothing is sent, and nothing is written outside of the cache and the temporary folders."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

from tests.support import models

pytestmark = pytest.mark.field

# ONNX Runtime sends nothing where one of these says that it runs in somebody's CI.
CI_VARIABLES = (
    *("CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "TRAVIS", "JENKINS_URL"),
    *("CODEBUILD_BUILD_ID", "BUILDKITE", "TEAMCITY_VERSION", "APPVEYOR", "BITBUCKET_BUILD_NUMBER"),
    *("SYSTEM_TEAMFOUNDATIONCOLLECTIONURI", "ORT_RUNNING_UNIT_TESTS"),
)

ENGINE = """
    import numpy as np
    from deepsched import compile_model
    with compile_model({path!r}, num_cores=1) as engine:
        x = np.ones((1, 64), np.float32)
        engine.run([x])
        engine.submit([x], timeout=30).result()
"""
FORK = """
    import os
    from deepsched import compile_model
    engine = compile_model({path!r}, num_cores=1)
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
    engine.close()
"""
BACKEND = """
    import numpy as np, onnx
    from deepsched import backend
    backend.prepare(onnx.load({path!r})).run([np.ones((1, 64), np.float32)])
"""
COMMAND = """
    from deepsched.cli import main
    assert main({arguments!r}) in (0, 1)  # 1: doctor warns
"""


def command(*arguments):
    return COMMAND.replace("{arguments!r}", repr(list(arguments)).replace("'MODEL'", "{path!r}"))


class Traced:
    """What a program asked the kernel for."""

    def __init__(self, lines, folder):
        calls = [re.sub(r"^\d+ +", "", line) for line in lines]
        self.sockets = [call for call in calls if call.startswith("socket(AF_INET")]
        self.written = set()
        for call in calls:
            if not re.search(r"\) += \d", call):
                continue  # failed
            if re.match(r"open(at)?\(", call) and not re.search("O_CREAT|O_WRONLY|O_RDWR", call):
                continue
            # With -y a path that is relative to a folder's descriptor shows that folder.
            folders = re.findall(r"(?:AT_FDCWD|\d+)<([^>]*)>", call.rsplit(") =", 1)[0])
            for index, path in enumerate(re.findall(r'"([^"]*)"', call)):
                beside = folders[min(index, len(folders) - 1)] if folders else folder
                self.written.add(os.path.normpath(os.path.join(beside, path)))


def trace(code, folder, **environment):
    """Runs Python code with a home of its own in `folder`."""
    if not shutil.which("strace"):
        pytest.skip("a trace cannot be made here: strace is not installed")
    home, temporary = folder / "home", folder / "tmp"
    home.mkdir()
    temporary.mkdir()
    leases = folder / "leases"
    leases.mkdir()
    inherited = {name: value for name, value in os.environ.items() if name not in CI_VARIABLES}
    inherited.pop("ORT_DISABLE_TELEMETRY", None)  # ours may have been set by an engine
    log = folder / "strace.log"
    calls = "socket,openat,open,creat,mkdir,mkdirat,mknodat,rename,renameat,renameat2,link,linkat"
    ran = subprocess.run(
        [
            *("strace", "-f", "-y", "--seccomp-bpf", "-s", "4096", "-o", log),
            *("-e", f"trace={calls},symlink,symlinkat"),
            *(sys.executable, "-B", "-c", textwrap.dedent(code)),
        ],
        env={
            **inherited,
            "PYTHONPATH": os.getcwd(),
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "DEEPSCHED_CACHE_DIR": str(folder / "cache"),
            "DEEPSCHED_LEASE_DIR": str(leases),
            **environment,
        },
        cwd=home,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr
    return Traced(log.read_text(errors="replace").splitlines(), home)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(ENGINE, id="an engine"),
        pytest.param(FORK, id="a child"),
        pytest.param(BACKEND, id="a backend"),
        pytest.param(command("doctor"), id="doctor"),
        pytest.param(
            command("benchmark", "MODEL", "-e", "onnxruntime", "-t", "0.1", "-w", "0", "-q"),
            id="benchmark of onnxruntime",
        ),
        pytest.param(command("advise", "MODEL", "--seconds", "0.3", "--callers", "1"), id="advise"),
        pytest.param(command("analyze", "MODEL", "-t", "0.1"), id="analyze"),
    ],
)
def test_nothing_is_sent_or_written_elsewhere(tmp_path, code):
    path = models.save(models.mlp(), tmp_path)
    traced = trace(code.format(path=path), tmp_path)
    assert traced.sockets == []
    ours = (
        *(f"{tmp_path}/cache", f"{tmp_path}/tmp/", f"{tmp_path}/leases/deepsched.cores"),
        *("/dev/", "/memfd:", "/proc/"),
    )
    assert [name for name in sorted(traced.written) if not name.startswith(ours)] == []


def test_telemetry_is_kept_for_whoever_asks_for_it(tmp_path):
    path = models.save(models.mlp(), tmp_path)
    # A child too: it has to end without telemetry's thread, for which ONNX Runtime's exit waits.
    traced = trace(FORK.format(path=path), tmp_path, ORT_DISABLE_TELEMETRY="no")
    assert any(name.startswith(f"{tmp_path}/home/.cache/Microsoft") for name in traced.written)
