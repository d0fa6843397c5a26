"""/metrics: what Prometheus reads of a server, and that no counter goes back."""

from __future__ import annotations

import numpy as np
import pytest

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
