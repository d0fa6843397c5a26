"""The models of a server, by name and version."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from deepsched.context import Context
from deepsched.engine import Engine
from deepsched.errors import InferenceError, InputError
from deepsched.server.errors import ModelNotFound, NotReady, RequestError
from deepsched.server.model_version import ModelVersion
from deepsched.server.observed import Observed


class IndexEntry(NamedTuple):
    """A line of the repository's index."""

    name: str
    version: str
    state: str
    """READY, LOADING, UNLOADING or UNAVAILABLE."""
    reason: str = ""


class ModelSource(NamedTuple):
    """A model that is to be served."""

    name: str
    path: Path


class Repository:
    """Fixed models, one version each.

    All of it is used on the event loop's thread.
    """

    def __init__(self, sources: Sequence[ModelSource], context: Context) -> None:
        self.context = context
        self.observed = Observed()
        self._sources = list(sources)
        self._versions: dict[str, ModelVersion] = {}

    async def start(self) -> None:
        """Opens all models, each of which answers a request before it counts as ready."""
        for source in self._sources:
            engine = await asyncio.to_thread(self._open, source)
            version = self._versions[source.name] = ModelVersion(source.name, "1", engine)
            self.observed.opened(version)

    def _open(self, source: ModelSource) -> Engine:
        engine = Engine(source.path, None, context=self.context)
        with suppress(InferenceError, InputError):  # made-up inputs do not suit every model
            engine.run(engine.generate_random_inputs())
        return engine

    async def close(self) -> None:
        """Closes the engines; requests under way are to be waited for before."""
        versions, self._versions = self._versions, {}
        for version in versions.values():
            await asyncio.to_thread(version.engine.close)

    def get(self, name: str, version: str = "") -> ModelVersion:
        """The model of a request; "": the version that serves.

        Raises:
            ModelNotFound: there is none.
            NotReady: it is not open yet.
        """
        found = self._versions.get(name)
        if found is not None and version in ("", found.version):
            return found
        if found is None and any(source.name == name for source in self._sources):
            raise NotReady(f"model {name!r} is not open yet; try again later")
        if found is not None:
            raise ModelNotFound(
                f"model {name!r} has no version {version!r:.40}; it has {self.versions(name)}"
            )
        raise ModelNotFound(f"no model {name!r:.80}; there are {sorted(self._versions)!r:.200}")

    def versions(self, name: str) -> list[str]:
        """The versions of a model that are open."""
        return [version.version for version in self._versions.values() if version.name == name]

    def serving(self) -> list[ModelVersion]:
        """All that serves."""
        return list(self._versions.values())

    def is_ready(self) -> bool:
        """Whether every model that should serve has answered a warm-up."""
        return len(self._versions) == len(self._sources)

    def index(self, ready: bool = False) -> list[IndexEntry]:
        """What there is; `ready`: of that, what serves."""
        entries = [
            IndexEntry(source.name, "1", "READY" if source.name in self._versions else "LOADING")
            for source in self._sources
        ]
        return [entry for entry in entries if not ready or entry.state == "READY"]

    async def load(self, name: str, parameters: dict[str, Any]) -> None:
        """Opens a model, or opens it again."""
        raise RequestError("this server's models are fixed; start it with a repository")

    async def unload(self, name: str, parameters: dict[str, Any]) -> None:
        """Stops to serve a model."""
        raise RequestError("this server's models are fixed; start it with a repository")
