"""Unloads that meet a load of the same model."""

from __future__ import annotations

import asyncio

import pytest

from deepsched.server.repository import repository as repository_module
from tests.server.test_repository import root, running, states  # noqa: F401
from tests.support.serving import plus, save

pytestmark = pytest.mark.server


@pytest.mark.parametrize("is_first", [True, False], ids=["during a load", "before a load"])
def test_what_is_unloaded_while_its_files_change_stays_so(root, is_first, monkeypatch):  # noqa: F811
    save(plus(1), root / "m" / "1")
    opened = repository_module.open_version

    async def scenario(repository, _):
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def opening(*arguments):
            loop.call_soon_threadsafe(begun.set)
            return opened(*arguments)

        monkeypatch.setattr(repository_module, "open_version", opening)
        save(plus(2), root / "m" / "2")
        model = repository._models["m"]
        if is_first:
            refreshing = asyncio.create_task(repository.refresh("m"))
            await begun.wait()
            unloading = asyncio.create_task(repository.unload("m", {}))
        else:
            await model.lock.acquire()
            unloading = asyncio.create_task(repository.unload("m", {}))
            refreshing = asyncio.create_task(repository.refresh("m"))
            await asyncio.sleep(0)
            model.lock.release()
        await asyncio.gather(refreshing, unloading)
        save(plus(3), root / "m" / "3")
        await repository.refresh("m")
        assert not repository.versions("m")
        assert "READY" not in states(repository).values()

    running(root, scenario)
