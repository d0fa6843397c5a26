"""What every test gets: models on disk, and no engine left open."""

from __future__ import annotations

import gc

import pytest

from deepsched import context as context_module


@pytest.fixture(autouse=True)
def _no_context_is_left_open():
    yield
    if context_module._open_contexts:
        gc.collect()
    assert not list(context_module._open_contexts), "a test left a context open"
