"""What every test gets: models on disk, and no engine left open."""

from __future__ import annotations

import gc

import hypothesis
import pytest

from deepsched import Engine
from deepsched import context as context_module
from tests.support import models
from tests.support.contexts import unpinned

# How long one example takes says more of what else runs here than of the code.
hypothesis.settings.register_profile("deepsched", deadline=None)
hypothesis.settings.load_profile("deepsched")


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory):
    """The user's cache and leases stay as they are; subprocesses inherit ours."""
    patch = pytest.MonkeyPatch()
    patch.setenv("DEEPSCHED_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    # Engines of other programs on this machine are none of the tests'.
    patch.setenv("DEEPSCHED_LEASE_DIR", str(tmp_path_factory.mktemp("leases")))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _no_context_is_left_open():
    yield
    if context_module.open_contexts():
        gc.collect()
    assert not context_module.open_contexts(), "a test left a context open"


@pytest.fixture
def mlp(tmp_path):
    """The path of a small model on disk."""
    return models.save(models.mlp(), tmp_path)


@pytest.fixture
def spin():
    """An engine of models.spin with one stream."""
    with unpinned(1) as context:
        yield Engine(models.spin(), None, context=context)


@pytest.fixture
def quiet(monkeypatch):
    """What is measured counts as undisturbed, whatever else runs here."""
    monkeypatch.setattr(
        "deepsched.machine.contention.ContentionMonitor.others_share", lambda self: 0.0
    )
