"""/metrics: what Prometheus reads of a server, and that no counter goes back."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections import Counter

import numpy as np
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from deepsched import Engine
from deepsched.scheduling.stats import Counts
from deepsched.server import observed as observed_module
from deepsched.server.model_version import ModelVersion
from tests.support import models
from tests.support.contexts import unpinned

pytestmark = pytest.mark.server

X = np.zeros((1, 64), np.float32)


def version_of(engine, name="mlp", version="1"):
    return ModelVersion(name, version, engine)


def done(observed, name="mlp", version="1"):
    return observed.totals()[name, version].outcomes["done"]


def test_a_reload_of_the_same_version_goes_on_counting():
    observed = observed_module.Observed()
    with unpinned(1) as context:
        for round_number in range(1, 4):
            engine = Engine(models.mlp(), context=context)
            observed.opened(version_of(engine))
            engine.run([X])
            assert done(observed) == round_number
            engine.close()
            assert done(observed) == round_number
    assert observed.loads["mlp", "done"] == 3


def test_what_drains_beside_its_successor_counts_until_it_is_closed():
    observed = observed_module.Observed()
    with unpinned(1) as context:
        old, new = (Engine(models.mlp(), context=context) for _ in range(2))
        observed.opened(version_of(old))
        observed.opened(version_of(new, version="2"))
        old.run([X])
        new.run([X])
        old.run([X])  # it drains
        old.close()
        assert (done(observed), done(observed, version="2")) == (2, 1)


def test_reloads_that_nobody_scrapes_keep_no_engine():
    observed = observed_module.Observed()
    with unpinned(1) as context:
        for _ in range(5):
            engine = Engine(models.mlp(), context=context)
            observed.opened(version_of(engine))
            engine.close()
        assert len(observed._open) == 1  # the last


def test_published_histograms_hold_every_request_once():
    with unpinned(1) as context, Engine(models.mlp(), context=context) as engine:
        for _ in range(20):
            engine.run([X])
        totals = observed_module.totals_of(version_of(engine))
        latency = engine.stats().running
    assert totals.running[-1] == totals.waiting[-1] == 20
    assert (np.diff(totals.running) >= 0).all()
    assert totals.running_s == pytest.approx(latency.mean * 20)
    # The bound above the median holds half of them, the one below the fastest holds none.
    above = next(
        i for i, bound in enumerate(observed_module.BOUNDS_S) if bound > latency.p50 * 1.03
    )
    assert totals.running[above] >= 10


def test_a_native_bucket_counts_on_the_side_of_a_bound_where_its_middle_is():
    counts = Counts(1)
    counts._buckets[0, 0, [0, 5, 64]] = 1, 2, 4  # 0 ns, 5 ns, 64 to 65 ns
    cumulative, _ = counts.cumulative("waiting", (5e-9, 64e-9, 65e-9, 1.0))
    assert list(cumulative) == [3, 3, 7, 7, 7]


def test_runs_by_their_requests_never_sink(monkeypatch):
    """Batches of two are counted before the requests in them are, by which runs of one sink."""
    read = [Counter({1: 5}), Counter({1: 3, 2: 1}), Counter({1: 5, 2: 1}), Counter({1: 6, 2: 1})]
    monkeypatch.setattr(
        observed_module, "totals_of", lambda _: observed_module.Totals(batches=read.pop(0))
    )
    observed = observed_module.Observed()
    with unpinned(1) as context, Engine(models.mlp(), context=context) as engine:
        observed.opened(version_of(engine))
        found = [observed.totals()["mlp", "1"].batches for _ in range(4)]
    assert found == [{1: 5}, {1: 5, 2: 1}, {1: 5, 2: 1}, {1: 6, 2: 1}]


def test_statistics_count_runs_by_the_requests_that_ran_together():
    with unpinned(1) as context, Engine(models.mlp(), batching=4, context=context) as engine:
        list(engine.map([X] for _ in range(40)))
        by_batch = {size: count for size, count in engine.stats().by_batch.items() if count}
        statistics = version_of(engine).statistics()
    assert statistics["inference_count"] == 40
    assert statistics["execution_count"] == sum(by_batch.values())
    found = {it["batch_size"]: it["compute_infer"]["count"] for it in statistics["batch_stats"]}
    assert found == by_batch
    assert sum(size * count for size, count in found.items()) == 40


# --- A server's -------------------------------------------------------------------------------


def scraped(server, accept="text/plain"):
    request = urllib.request.Request(f"http://{server.http}/metrics", headers={"accept": accept})
    with urllib.request.urlopen(request) as response:
        return response.headers["content-type"], response.read().decode()


def samples(text, name):
    """Values by the labels' values, in the order of their names."""
    families = text_string_to_metric_families(text)
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def ask(server, model, body):
    request = urllib.request.Request(
        f"http://{server.http}/v2/models/{model}/infer", json.dumps(body).encode()
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)


ROW = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]}


def test_requests_count_by_model_version_and_outcome(server):
    def counts():
        text = scraped(server)[1]
        return (
            samples(text, "deepsched_requests_total"),
            samples(text, "deepsched_request_running_seconds_count")[("mlp", "1")],
        )

    before, ran_before = counts()
    for _ in range(3):
        ask(server, "mlp", ROW)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask(server, "mlp", {"inputs": []})
    after, ran = counts()
    assert after["mlp", "done", "1"] - before["mlp", "done", "1"] == 3
    assert after["mlp", "invalid", "1"] - before["mlp", "invalid", "1"] == 1
    assert ran - ran_before == 3
    text = scraped(server)[1]
    runs = samples(text, "deepsched_batch_size_count")["mlp", "1"]
    assert 0 < runs <= samples(text, "deepsched_batch_size_sum")["mlp", "1"]


def test_promtool_finds_nothing_to_say(server):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; it is in Debian's package prometheus")
    found = subprocess.run(
        [promtool, "check", "metrics"], input=scraped(server)[1], capture_output=True, text=True
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_openmetrics_is_there_for_who_asks(server):
    plain, _ = scraped(server)
    kind, text = scraped(server, "application/openmetrics-text; version=1.0.0")
    assert plain.startswith("text/plain") and kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")
    assert "deepsched_requests" in {
        family.name for family in openmetrics.text_string_to_metric_families(text)
    }


def test_every_instance_has_the_same_buckets(server):
    bounds = {
        sample.labels["le"]
        for family in text_string_to_metric_families(scraped(server)[1])
        for sample in family.samples
        if sample.name == "deepsched_request_waiting_seconds_bucket"
    }
    assert sorted(map(float, bounds)) == [*observed_module.BOUNDS_S, float("inf")]
