"""README and the guide work as written: every command and every Python block runs.

The rules, by the language of a fenced block:

* `sh`: each line is a command (comments and trailing backslashes work as in a shell). It runs in a
  folder with `model.onnx` and must succeed. Options at the end of the command (SHORTER) keep loads
  short. Lines that begin with one of NOT_RUN are skipped: they install something, or need Docker
  or a cluster.
* `python`: the blocks of a page run in order, in that folder, in one namespace, in which `x` is an
  input of the model.
* `text`, `yaml`: not run.

Any other language is an error. `deepsched ...` in running text must name an existing subcommand and
its options, and `python -m ...` an existing module.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from deepsched import Engine, Topology, compile_model
from tests.support import models
from tests.support.parsers import PARSERS, parsers_in

pytestmark = pytest.mark.field  # it runs all that the guide and README show

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted(ROOT.glob("docs/*.md"))]

NOT_RUN = ("pip", "python3 -m venv", "docker", "kubectl")
SHOWN_ONLY = ("text", "yaml")
SHORTER = {
    "benchmark": "-t 0.1 -w 0",
    "trace": "-t 0.1",
    "advise": "--seconds 0.5",
    "analyze": "--seconds 0.5",
}


class Block(NamedTuple):
    """A fenced block."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page):
    """The blocks of a page; their first line has the word, as in ```sh."""
    found = []
    inside = None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("```"):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            inside, start, language = [], number + 1, line[3:].strip()
        else:
            found.append(Block(page, start, language, "\n".join(inside)))
            inside = None
    assert inside is None, f"{page.name}: a block is not closed"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_of(block):
    joined = block.text.replace("\\\n", " ")
    lines = (line.strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def is_run(command):
    return not any(command.startswith(f"{words} ") for words in NOT_RUN)


COMMANDS = [
    pytest.param(command, id=f"{block.place} {command}")
    for block in BLOCKS
    if block.language == "sh"
    for command in commands_of(block)
    if is_run(command)
]
needs_two_cores = pytest.mark.skipif(
    len(Topology.detect().cores) < 2, reason="the guide makes two streams"
)


def shortened(command):
    """The last of two equal options counts."""
    match = re.search(r"\bdeepsched (\w+)", command)
    if match is None:
        return command
    if match[1] == "benchmark" and "--p99-limit" in command:
        return f"{command} -t 0.5 -w 0"  # long enough for 300 requests
    return f"{command} {SHORTER.get(match[1], '')}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a model, for all commands: compiled once, and measured once for elastic."""
    folder = tmp_path_factory.mktemp("guide")
    models.save(models.classifier(), folder)
    return folder


def run(command, folder):
    first_cpu = min(os.sched_getaffinity(0))  # the guide says 0
    return subprocess.run(
        ["bash", "-c", shortened(command).replace("taskset -c 0", f"taskset -c {first_cpu}")],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_of_a_kind_that_has_a_rule(page):
    known = {"sh", "python", *SHOWN_ONLY}
    for block in blocks_of(page):
        assert block.language in known, f"{block.place}: ```{block.language}"


def test_there_is_something_to_run():
    assert len(COMMANDS) > 20
    assert sum(block.language == "python" for block in BLOCKS) > 20


@needs_two_cores
@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_runs(command, folder):
    ended = run(command, folder)
    assert ended.returncode in ((0, 1) if " doctor" in command else (0,)), ended.stderr
    assert "Traceback" not in ended.stderr


@needs_two_cores
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.language == "python" for block in blocks_of(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_python_of_the_page_runs(page, tmp_path, monkeypatch):
    """In its order; no engine is left open, which conftest.py checks."""
    models.save(models.classifier(), tmp_path)
    monkeypatch.chdir(tmp_path)
    namespace = {"x": np.ones((1, 3, 224, 224), np.float32), "__name__": "page"}
    for block in blocks_of(page):
        if block.language == "python":
            # Line numbers as in the page.
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, namespace)


# --- Commands in running text -------------------------------------------------------------------


def spans():
    """(page, code) for each code span in running text and tables."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
        for code in re.findall(r"`([^`\n]+)`", text):
            yield page.name, code


def options_of(command):
    """Option strings of a subcommand, and of its own subcommands; hidden ones too."""
    return {
        text
        for parser in (PARSERS[command], *parsers_in(PARSERS[command]).values())
        for text in parser._option_string_actions
    }


def test_commands_in_running_text_exist_and_have_these_options():
    seen = set()
    for page, code in spans():
        if not (found := re.match(r"deepsched ([a-z]\w*)(.*)", code)):
            continue
        command, rest = found[1], found[2]
        assert command in PARSERS, f"{page}: {code}"
        seen.add(command)
        for option in re.findall(r"(?<!\S)-[-\w]+", rest):
            known = options_of(command)
            assert option in known, f"{page}: {code} has {option}"
    assert seen == set(PARSERS)


def test_modules_in_running_text_exist():
    seen = set()
    for page, code in spans():
        for name in re.findall(r"python -m ([\w.]+)", code):
            seen.add(name)
            assert importlib.util.find_spec(name), f"{page}: {code}"
    assert {"bench.compiled", "bench.peers"} <= seen


def test_the_reference_lists_the_environment_variables_that_are_read():
    sources = [*ROOT.glob("deepsched/**/*.py"), ROOT / "setup.py"]
    read = {
        name
        for source in sources
        for name in re.findall(r"\"((?:DEEPSCHED|XDG)_\w+)\"", source.read_text())
    }
    told = set(re.findall(r"`((?:DEEPSCHED|XDG)_\w+)`", (ROOT / "docs/reference.md").read_text()))
    assert told == read


def test_compile_model_takes_the_arguments_of_engine_and_run_async_those_of_run():
    def arguments(function):
        parameters = inspect.signature(function).parameters.values()
        return [(it.name, it.default, it.annotation) for it in parameters if it.name != "self"]

    assert arguments(compile_model) == arguments(Engine)
    own = ("block", "times_ns")
    shared = [it for it in arguments(Engine.run_async) if it[0] not in own]
    assert shared == arguments(Engine.run)
