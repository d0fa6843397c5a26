"""docs/serving.md: its first page works as written, and its configuration is one."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deepsched.server.assembly import assemble
from tests.support.serving import plus, save, serving

pytestmark = pytest.mark.server

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def lines_that_begin(word):
    return re.findall(rf"^{word} .*$", PAGE.read_text(), re.M)


def test_the_way_to_a_first_answer_works(tmp_path, monkeypatch):
    """But for the ports and the installation, the page's very commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PAGE.parents[1]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    def run(command):
        return subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60
        ).stdout

    (copy,) = lines_that_begin("cp")
    run(copy)
    (serve, *_) = lines_that_begin("deepsched serve")
    (request,) = lines_that_begin("python -c")
    run(request)
    metadata, infer = lines_that_begin("curl")
    with serving(*shlex.split(serve)[2:], "--lame-duck", 0) as server:
        address = server.url.removeprefix("http://")
        answers = [
            json.loads(run(command.replace("curl ", "curl -s ").replace("localhost:8000", address)))
            for command in (metadata, infer)
        ]
    assert answers[0]["inputs"][0]["name"] == "data_0"
    assert len(answers[1]["outputs"][0]["data"]) == 1000


def test_the_configuration_that_the_page_shows_is_one(tmp_path):
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    (tmp_path / "models").mkdir()
    config = tmp_path / "models.yaml"
    config.write_text(text.replace("/models ", f"{tmp_path}/models "))
    for name in ("resnet50.onnx", "bert-old.onnx", "bert.onnx"):
        save(plus(1), tmp_path, name)
    save(plus(1), tmp_path / "ranker" / "4")
    assembly = assemble([], str(config), {})
    assert assembly.own_streams == {"ranker": {"num_cores": 2}}
    assert assembly.engine == {"rewrites": "exact"}
    for name, versions in {"resnet50": ["1"], "bert": ["1", "2"], "ranker": ["4"]}.items():
        assert assembly.sources.find(name).wanted() == versions
