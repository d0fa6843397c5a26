"""What the live page is told: each model's own figures, on streams of one context or of several."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import httpx
import pytest

from deepsched import Context, Engine, Topology
from deepsched.server.live.sampler import Sampler
from deepsched.server.model_version import ModelVersion
from deepsched.server.observed import Observed
from tests.support import models, serving

pytestmark = pytest.mark.server

X = models.np.zeros((1, 64), models.np.float32)


def context_of(num_streams):
    machine = Topology.synthetic(packages=1, cores_per_l3=2)
    return Context(topology=machine, num_streams=num_streams, pin="none")


def server_of(*versions):
    """What a sampler looks at of a server."""
    contexts = list(dict.fromkeys(version.engine.context for version in versions))
    entries = [
        SimpleNamespace(name=it.name, version=it.version, state="READY", reason="")
        for it in versions
    ]
    observed = Observed()
    for version in versions:
        observed.opened(version)
    repository = SimpleNamespace(
        streams=SimpleNamespace(contexts=contexts),
        serving=lambda: list(versions),
        index=lambda: entries,
        is_ready=lambda: True,
    )
    return SimpleNamespace(
        repository=repository, observed=observed, is_stopping=False, is_ready=True
    )


def test_models_on_streams_of_their_own_are_told_apart():
    with context_of(2) as shared, context_of(1) as own:
        one = ModelVersion("one", "1", Engine(models.mlp(), context=shared))
        other = ModelVersion("other", "1", Engine(models.mlp(), context=own))
        sampler = Sampler(server_of(one, other))
        sampler.begin()
        for _ in range(3):
            one.engine.run([X])
        other.engine.run([X])
        other.num_invalid += 1
        message = json.loads(sampler.sample(1.0))
        sampler.end()
    rates = {model["name"]: (model["rate"], model["failing"]) for model in message["models"]}
    assert rates["one"][0] == pytest.approx(3 * rates["other"][0])
    assert rates["one"][1] == 0 < rates["other"][1]
    moment = message["moment"]
    named = [(moment["names"][run[5]], run[0]) for run in moment["runs"]]
    assert [name for name, _ in named] == ["one"] * 3 + ["other"]
    assert [lane for name, lane in named if name == "other"] == [2]  # behind the two of the others
    assert len(message["streams"]) == 3


def test_a_moment_holds_few_requests_and_says_how_many_more_there_were(monkeypatch):
    monkeypatch.setattr("deepsched.server.live.moments.MOST_RUNS", 5)
    with context_of(1) as context:
        version = ModelVersion("mlp", "1", Engine(models.mlp(), context=context))
        sampler = Sampler(server_of(version))
        sampler.begin()
        for _ in range(12):
            version.engine.run([X])
        moment = json.loads(sampler.sample(1.0))["moment"]
        later = json.loads(sampler.sample(1.0))["moment"]
        sampler.end()
    assert (len(moment["runs"]), moment["missed"]) == (5, 7)
    begins = [run[2] for run in moment["runs"]]
    assert moment["begin"] <= min(begins) <= max(begins) <= moment["end"] < moment["now"]
    assert (later["runs"], later["missed"]) == ([], 0)
    assert later["begin"] >= moment["end"]


def test_while_someone_traces_the_page_has_figures_and_no_boxes():
    with context_of(1) as context:
        version = ModelVersion("mlp", "1", Engine(models.mlp(), context=context))
        sampler = Sampler(server_of(version))
        with context.trace() as trace:
            sampler.begin()
            version.engine.run([X])
            message = json.loads(sampler.sample(1.0))
        version.engine.run([X])
        sampler.sample(1.0)  # begins to trace again
        version.engine.run([X])
        again = json.loads(sampler.sample(1.0))
        sampler.end()
    assert len(trace) == 1  # theirs is whole
    assert message["moment"] is None and message["rate"] > 0
    assert len(again["moment"]["runs"]) == 1


def test_no_more_than_so_many_look_and_the_next_is_told(tmp_path):
    serving.save(serving.plus(1), tmp_path, "plus.onnx")
    with (
        serving.serving(tmp_path / "plus.onnx", "--lame-duck", "0") as server,
        httpx.Client() as client,
        contextlib.ExitStack() as viewers,
    ):
        url = f"{server.url}/live/events"
        seen = [viewers.enter_context(client.stream("GET", url)).iter_lines() for _ in range(16)]
        assert {next(lines) for lines in seen} == {"event: hello"}
        assert client.get(url).text == "event: full\ndata: 16\n\n"
        server.stop()  # viewers hold up no stop, and are told
        assert server.wait() == 0
        assert all("event: bye" in list(lines) for lines in seen)
