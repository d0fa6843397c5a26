"""Watching: models are loaded when their files have changed and are complete.

By looking again and again, not by inotify: that tells nothing of network file systems, of a mount
that is exchanged below it, or of a file whose writer pauses; a look at a hundred files takes a
millisecond.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
from collections.abc import Hashable, Iterator

from deepsched.errors import DeepschedError
from deepsched.server.repository.repository import Repository
from deepsched.server.repository.sources import Sources

logger = logging.getLogger("deepsched.server")

_SECONDS = 0.5
"""Between two looks."""

_UNKNOWN = object()
"""A model's state before the first look."""

_F_SETSIG = 10  # of Linux; fcntl has no name for it


class Watcher:
    """Tells `repository` of models that have changed since it opened them.

    A change counts when two looks have found the same, and no process has a file open for writing.
    So a model that is copied slowly is loaded at its end, and one that is renamed into place after
    a second at most.
    """

    def __init__(self, repository: Repository, sources: Sources) -> None:
        self._repository = repository
        self._sources = sources
        self._told: dict[str, Hashable] = {}
        """What the repository has been told of, by model."""
        self._seen: dict[str, Hashable] = {}
        """What the last look has found."""

    async def run(self) -> None:
        """Until it is cancelled."""
        # What serves already may be gone by the first look.
        self._told = dict.fromkeys((entry.name for entry in self._repository.index()), _UNKNOWN)
        self._seen = dict(self._told)
        while True:
            await asyncio.sleep(_SECONDS)
            try:
                for name in await asyncio.to_thread(self._look):
                    if name in self._seen:
                        self._told[name] = self._seen[name]
                    else:
                        del self._told[name]
                    await self._repository.refresh(name)
            except OSError as error:  # of the folder itself; it may come back
                logger.warning("models cannot be watched now: %s", error)
            except Exception:  # the models that serve go on
                logger.exception("models cannot be watched now")

    def _look(self) -> list[str]:
        """Models that have changed and do not any more."""
        before = self._seen
        self._seen = {name: self._state(name) for name in self._sources.names()}
        return [
            name
            for name in {**self._told, **self._seen}
            if self._seen.get(name) != self._told.get(name)
            and self._seen.get(name) == before.get(name)
            and not any(map(is_being_written, self._files(name)))
        ]

    def _state(self, name: str) -> Hashable:
        """What changes if the model does: its files, or what keeps them from being found."""
        try:
            found = self._sources.find(name)
        except (DeepschedError, OSError) as error:
            return str(error)
        if found is None:
            return None
        return repr(found.options), tuple(map(found.stamp, found.wanted()))

    def _files(self, name: str) -> Iterator[str]:
        state = self._seen.get(name)
        if isinstance(state, tuple):
            for stamp in state[1]:
                for path, *_ in stamp:
                    yield path


def is_being_written(path: str) -> bool:
    """Whether a process of this machine has the file open for writing, as far as the kernel tells:
    it does for files of this user, on local file systems.

    By asking for a lease (fcntl(2)), which the kernel refuses while there are writers.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Who opens the file while we have the lease waits for us, and we get a signal. Not SIGIO,
        # which kills.
        fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:  # not ours, or a file system without leases
        return False
    finally:
        os.close(descriptor)
    return False
