"""Repository: which version of which model serves, and how one takes over from another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from deepsched.errors import DeepschedError, ModelError
from deepsched.server.errors import ModelNotFound, NotReady, RequestError
from deepsched.server.model_version import ModelVersion
from deepsched.server.observed import Observed
from deepsched.server.repository.found import FoundModel, Stamp
from deepsched.server.repository.model_options import ModelOptions
from deepsched.server.repository.opening import open_version
from deepsched.server.repository.pbtxt import read_json
from deepsched.server.repository.sources import Sources
from deepsched.server.repository.streams import Streams

logger = logging.getLogger("deepsched.server")

T = TypeVar("T")

READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"


_BY_REQUEST = "unloaded by request"


class IndexEntry(NamedTuple):
    """A line of the repository's index."""

    name: str
    version: str
    state: str
    """READY, LOADING, UNLOADING or UNAVAILABLE."""
    reason: str = ""


class LoadError(ModelError):
    """A model could not be loaded; what served before still serves."""


class _State(NamedTuple):
    state: str
    reason: str = ""


class _Model:
    """What is known of one name."""

    def __init__(self, should_serve: bool = True) -> None:
        self.lock = asyncio.Lock()
        """Held while its versions change: one load or unload at a time."""
        self.serving: dict[str, ModelVersion] = {}
        self.opened_from: dict[str, tuple[ModelOptions, Stamp]] = {}
        """Of each version, what it was last opened from."""
        self.retiring: dict[asyncio.Task[None], ModelVersion] = {}
        """Versions that have been replaced and still have requests."""
        self.states: dict[str, _State] = {}
        """By version; "" for the model as a whole, where no version is known."""
        self.should_serve = should_serve
        """Whether the server is not ready without it."""
        self.was_unloaded = False
        """By a request, so that a change of its files does not bring it back."""


class Repository:
    """The models of a server.

    Used on the event loop's thread. What takes time (reading folders, opening models, closing them)
    is done in one other thread. Between two requests all of `_serving` changes, and a version that
    is replaced is closed when its last request has ended, so a change is seen by no request.

    Args:
        sources: where models come from.
        streams: what they run on; closed with the repository.
        engine: options of Engine for all models, unless a model has its own.
    """

    def __init__(self, sources: Sources, streams: Streams, engine: Mapping[str, Any]) -> None:
        self._sources = sources
        self._engine = engine
        self.streams = streams
        self._models: dict[str, _Model] = {}
        self._serving: dict[tuple[str, str], ModelVersion] = {}
        """By name and version; the version "" is the highest of the model."""
        self._loader = ThreadPoolExecutor(1, "deepsched-loader")
        self._loading: set[asyncio.Task[None]] = set()
        self._num_opening = 0
        self._has_started = False
        self.observed = Observed()

    # --- Of requests ------------------------------------------------------------------------

    def get(self, name: str, version: str = "") -> ModelVersion:
        """What answers a request for this model; "": its highest version.

        Raises:
            ModelNotFound: there is none.
            NotReady: it is not open yet, or not any more.
        """
        try:
            return self._serving[name, version]
        except KeyError:
            raise self._why_not(name, version) from None

    def _why_not(self, name: str, version: str) -> DeepschedError:
        model = self._models.get(name)
        if model is None:
            known = sorted(self._models)
            return ModelNotFound(f"no model {name!r:.80}; there are {known!r:.200}")
        state = model.states.get(version) or (model.states.get("") if not model.serving else None)
        if not version and not model.serving and state is None and model.states:
            state = model.states[max(model.states, key=int)]
        if state is not None:
            which = f"version {version} of model {name!r}" if version else f"model {name!r}"
            why = f": {state.reason}" if state.reason else ""
            # What somebody has taken away is not there; what is to come, or cannot be opened, may
            # be there later.
            kind = ModelNotFound if state.reason == _BY_REQUEST else NotReady
            return kind(f"{which} is {state.state}{why}")
        return ModelNotFound(
            f"model {name!r} has no version {version!r:.40}; it has {self.versions(name)}"
        )

    # --- What there is ----------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether every model that should serve has answered a warm-up."""
        return self._has_started and all(
            model.serving for model in list(self._models.values()) if model.should_serve
        )

    def versions(self, name: str) -> list[str]:
        """The versions of a model that serve, ascending."""
        model = self._models.get(name)
        return [] if model is None else sorted(model.serving, key=int)

    def serving(self) -> list[ModelVersion]:
        """All that serves. As `is_ready` and `index`, for other threads too, which metrics are read
        on: names may be added meanwhile."""
        return [it for model in list(self._models.values()) for it in model.serving.values()]

    @property
    def num_under_way(self) -> int:
        """Requests that engines have, those of versions that have been replaced included."""
        return sum(
            version.num_under_way
            for model in self._models.values()
            for version in (*model.serving.values(), *model.retiring.values())
        )

    @property
    def is_opening(self) -> bool:
        """Whether a model is being opened."""
        return self._num_opening > 0

    def index(self, ready: bool = False) -> list[IndexEntry]:
        """All models that are known, and their versions; `ready`: only what serves."""
        return [
            IndexEntry(name, version, state.state, state.reason)
            for name, model in sorted(self._models.items())
            for version, state in sorted(model.states.items(), key=lambda it: int(it[0] or 0))
            if not ready or version in model.serving
        ]

    # --- Change -----------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens all models that there are. Those that cannot be are logged, and in the index."""
        for name in await self._in_thread(self._sources.names):
            self._models[name] = _Model()
            self._models[name].states[""] = _State(LOADING)
        for name in list(self._models):
            with suppress(DeepschedError):  # logged
                await self._load(name, {}, is_forced=False)
        self._has_started = True

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Opens a model's versions anew, which then take over from those that serve.

        Args:
            parameters: the protocol's. `config`: a configuration as JSON, instead of that of the
                model's folder.

        Raises:
            ModelNotFound: there is no such model.
            RequestError: parameters that are not allowed.
            LoadError: it could not be opened. What served before still serves.
        """
        if unknown := [key for key in parameters if key != "config"]:
            raise RequestError(
                f"load takes the parameter 'config', and none with files, got {unknown!r:.80}"
            )
        loading = asyncio.create_task(self._load(name, parameters, is_forced=True))
        self._loading.add(loading)
        loading.add_done_callback(self._loading.discard)
        await asyncio.shield(loading)  # a client that leaves does not leave a half of it behind

    async def refresh(self, name: str) -> None:
        """Opens what has changed of a model, and unloads it if it is gone. One that was unloaded by
        request stays so. Errors are logged."""
        model = self._models.get(name)
        with suppress(DeepschedError):  # logged
            if model is not None and not await self._is_there(name):
                await self._unload(name, "its files are gone")
            else:
                await self._load(name, {}, is_forced=False)

    async def unload(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Takes a model out of service; requests that it has are answered.

        Raises:
            ModelNotFound: there is no such model.
            RequestError: parameters that are not allowed.
        """
        if unknown := [key for key in parameters if key != "unload_dependents"]:
            raise RequestError(f"unload takes 'unload_dependents' only, got {unknown!r:.80}")
        if name not in self._models:
            raise ModelNotFound(f"no model {name!r:.80}; there are {sorted(self._models)!r:.200}")
        await self._unload(name, _BY_REQUEST)

    async def close(self) -> None:
        """Closes everything. Requests that wait end as closed, running ones are waited for."""
        for name, model in self._models.items():
            self._exchange(name, model, {}, "the server stops")
        await asyncio.to_thread(self.streams.close)
        self._loader.shutdown(wait=False, cancel_futures=True)
        retiring = [task for model in self._models.values() for task in model.retiring]
        for task in retiring:  # of requests that nobody answers any more
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)

    # --- How --------------------------------------------------------------------------------

    async def _is_there(self, name: str) -> bool:
        try:
            return name in await self._in_thread(self._sources.names)
        except OSError as error:  # the folder itself
            raise LoadError(f"the repository cannot be read: {error}") from error

    async def _load(self, name: str, parameters: Mapping[str, Any], is_forced: bool) -> None:
        if name not in self._models:  # names are looked up before they are kept
            if not await self._is_there(name):
                raise ModelNotFound(f"no model {name!r:.80} in the repository")
            self._models.setdefault(name, _Model(should_serve=False))
        model = self._models[name]
        async with model.lock:
            if model.was_unloaded and not is_forced:
                return
            try:
                found = await self._find(name, model, parameters)
                await self._replace(name, model, found, is_forced)
            except DeepschedError as error:
                self.observed.load_failed(name)
                goes_on = ", ".join(self.versions(name))
                outcome = f"version {goes_on} still serves" if goes_on else "it does not serve"
                logger.error("model %r could not be loaded: %s; %s", name, error, outcome)
                raise
            model.should_serve, model.was_unloaded = True, False

    async def _find(self, name: str, model: _Model, parameters: Mapping[str, Any]) -> FoundModel:
        try:
            found = await self._in_thread(self._sources.find, name)
            if found is None:
                raise ModelNotFound(f"model {name!r} is not in the repository any more")
            if "config" in parameters:
                found = replace(found, options=read_json(parameters["config"], name))
            if not found.wanted():
                raise LoadError(
                    f"model {name!r}: its version policy leaves out all of its versions, "
                    f"{sorted(found.versions, key=int)}"
                )
        except (DeepschedError, OSError) as error:
            state = UNAVAILABLE if not model.serving else READY
            for version in model.serving or [""]:
                model.states[version] = _State(state, f"the last load failed: {error}")
            if isinstance(error, DeepschedError):
                raise
            raise LoadError(f"model {name!r}: {error}") from error
        return found

    async def _replace(self, name: str, model: _Model, found: FoundModel, is_forced: bool) -> None:
        """Opens what has changed, then exchanges all versions at once.

        Where one cannot be opened, none is taken out of service but those that have been opened
        anew.
        """
        while model.retiring:  # memory is to hold the old and the new, and none before
            await asyncio.wait(model.retiring)
        model.states.pop("", None)
        versions: dict[str, ModelVersion] = {}
        failed: dict[str, str] = {}
        for version in found.wanted():
            # Before it is opened: what changes meanwhile is a change.
            origin = found.options, await self._in_thread(found.stamp, version)
            serving = model.serving.get(version)
            if serving is not None and not is_forced and model.opened_from[version] == origin:
                versions[version] = serving
                continue
            if serving is None:
                model.states[version] = _State(LOADING)
            try:
                versions[version] = await self._in_thread(self._open, found, version)
            except Exception as error:  # whatever it is, the other versions may open
                failed[version] = str(error) or type(error).__name__
                if not isinstance(error, DeepschedError):
                    logger.exception("version %s of model %r: unexpected error", version, name)
            else:
                model.opened_from[version] = origin
                self.observed.opened(versions[version])
        self._exchange(name, model, {**model.serving, **versions} if failed else versions)
        for version in [it for it, state in model.states.items() if state.state == UNAVAILABLE]:
            if version not in found.versions:  # its files are gone
                del model.states[version]
                model.opened_from.pop(version, None)
        for version, why in failed.items():
            state = READY if version in model.serving else UNAVAILABLE
            model.states[version] = _State(state, f"the last load failed: {why}")
        if failed:
            raise LoadError(
                "; ".join(f"version {version}: {why}" for version, why in failed.items())
            )

    def _exchange(
        self,
        name: str,
        model: _Model,
        versions: dict[str, ModelVersion],
        reason: str = "the version policy leaves it out",
    ) -> None:
        """From the next request on, `versions` serve, and no others. `reason`: why those that do
        no more do not."""
        before, model.serving = model.serving, versions
        for version in ("", *before):
            self._serving.pop((name, version), None)
        for version, opened in versions.items():
            self._serving[name, version] = opened
            model.states[version] = _State(READY)
        if versions:
            self._serving[name, ""] = versions[max(versions, key=int)]
        for version, opened in before.items():
            if versions.get(version) is opened:
                continue
            if version not in versions:
                model.states[version] = _State(UNLOADING, reason)
            task = asyncio.create_task(self._retire(model, opened, reason))
            model.retiring[task] = opened
            task.add_done_callback(model.retiring.pop)

    async def _retire(self, model: _Model, version: ModelVersion, reason: str) -> None:
        """Closes a version once its last request has its answer."""
        drained = asyncio.Event()
        version.retire(drained.set)
        await drained.wait()
        await asyncio.to_thread(version.engine.close)
        if model.states.get(version.version) == (UNLOADING, reason):
            model.states[version.version] = _State(UNAVAILABLE, reason)

    async def _unload(self, name: str, reason: str) -> None:
        model = self._models[name]
        async with model.lock:
            model.should_serve = False
            # Within the lock: a load that was under way would forget it at its end.
            model.was_unloaded = model.was_unloaded or reason == _BY_REQUEST
            self._exchange(name, model, {}, reason)
        logger.info("model %r does not serve any more: %s", name, reason)

    def _open(self, found: FoundModel, version: str) -> ModelVersion:
        self._num_opening += 1
        try:
            return open_version(found, version, self.streams.of(found.name), self._engine)
        finally:
            self._num_opening -= 1

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._loader, function, *arguments)
