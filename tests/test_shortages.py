"""No room for one more thread, or file: one error that says so, nothing is left behind, and all
goes on once there is room."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import models
from tests.support.cgroups import limits
from tests.support.processes import run_python
from tests.support.users import OTHER, needs_root

pytestmark = pytest.mark.field

TRIED = "from tests.support import shortages; print(shortages.{what}({kind!r}, {count}))"


@pytest.fixture
def environment():
    """A model that anybody may read, and a cache that belongs to the user who runs."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = models.save(models.mlp(), folder)
        os.chmod(path, 0o644)
        cache = folder / "cache"
        cache.mkdir(mode=0o700)
        yield {"MODEL": path, "DEEPSCHED_CACHE_DIR": str(cache)}


@needs_root
@pytest.mark.parametrize("what", ["openings", "requests", "event_loops"])
def test_threads_that_a_user_may_not_have_are_an_error_and_no_more(what, environment):
    os.chown(environment["DEEPSCHED_CACHE_DIR"], OTHER, OTHER)
    code = TRIED.format(what=what, kind="threads", count=8)
    assert int(run_python(code, **environment)) > 0


@pytest.mark.parametrize("what", ["openings", "requests", "event_loops"])
def test_threads_that_a_container_may_not_have_are_an_error_and_no_more(what, environment):
    with limits(pids="max") as group:
        (_, folder) = group._folders["pids"]
        code = TRIED.format(what=what, kind="pids", count=8)
        ran = group.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONPATH": os.getcwd(),
                "PIDS_MAX": str(folder / "pids.max"),
                **environment,
            },
        )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 0


@pytest.mark.parametrize(("what", "count"), [("openings", 24), ("event_loops", 4)])
def test_files_that_a_process_may_not_have_are_an_error_and_no_more(what, count, environment):
    code = TRIED.format(what=what, kind="files", count=count)
    assert int(run_python(code, **environment)) > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["benchmark", "-t", "0.1", "-w", "0", "--callers", "3"],
        ["trace"],
        ["analyze", "-t", "0.1"],
        ["advise", "--callers", "1", "--seconds", "0.3"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_says_in_a_line_that_a_thread_could_not_start(arguments, environment):
    with limits(pids="max") as group:
        for room in range(2, 6):  # numpy takes the first: without it, importing numpy ends Python
            group.write("pids", "pids.max", room)
            ran = group.run(
                [sys.executable, "-m", "deepsched", *arguments, environment["MODEL"]],
                env={**os.environ, "PYTHONPATH": os.getcwd(), **environment},
            )
            assert ran.returncode in (0, 2), ran.stderr
            last = ran.stderr.splitlines()[-1] if ran.returncode else "could not start"
            assert "could not start" in last, ran.stderr
            assert "Traceback" not in ran.stderr
        assert ran.returncode == 2 or arguments[0] == "analyze"
