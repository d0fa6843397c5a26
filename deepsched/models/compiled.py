"""The compiled form of a model: optimised once, its weights mapped and shared by all sessions.

ONNX Runtime saves the optimised graph, and beside it the initializers together with what kernels
made of them (packed for the matrix units, say). A session opened from there maps that file: nothing
is optimised, packed or copied again, and all sessions of all processes share the pages.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

from deepsched.errors import ModelError, OptionError, ThreadError
from deepsched.lazy import cached_property
from deepsched.machine.affinity import own_cpus
from deepsched.machine.partition import Stream
from deepsched.models.batch import AUTO, BatchSize
from deepsched.models.batched import open_batch
from deepsched.models.batching.option import BatchingOption
from deepsched.models.batching.record import Batching
from deepsched.models.cache import Cache
from deepsched.models.entry import Damaged, Entry
from deepsched.models.folders import is_in_memory
from deepsched.models.keys import SAVING, RawModel, Snapshot, key_of_bytes
from deepsched.models.locations import (
    CacheDir,
    keeps_in_memory,
    memory_folders,
    open_cache,
    stage_in,
    sweep_once,
    temporary_places,
)
from deepsched.models.measurements import Measurements
from deepsched.models.numa_copies import nodes_of, numa_copies
from deepsched.models.prepare import (
    ModelLike,
    PreparedModel,
    Shapes,
    explain_override,
    prepare_model,
)
from deepsched.models.repeatability import Varying
from deepsched.models.rewrites.tried import Tried
from deepsched.models.rewritten import rewrite_model, with_rules
from deepsched.models.room import shortage
from deepsched.models.sources import Source, source_in, source_of
from deepsched.runtime.session import Session, trim_heap
from deepsched.shortages import file_limit_errors, thread_errors

logger = logging.getLogger("deepsched")

_MAX_TRIES = 3
"""To compile a model whose files do not change meanwhile."""


class Compiled(NamedTuple):
    """How an engine's sessions were opened; `Engine.compiled`."""

    is_shared: bool
    """Whether all sessions map one copy of the weights, or those of their NUMA nodes."""
    was_cached: bool
    """Whether it was found in the cache, so that nothing had to be compiled."""
    folder: str | None
    """Its folder in the cache; None if it is not kept on disk."""
    weights_bytes: int
    """Size of one copy; if it is compiled, with the weights as kernels packed them."""
    num_copies: int
    """Number of copies: one for each session if they are not shared; else 1 on a machine with one
    NUMA node, and on others one for each node, and for each set of nodes that a stream spans."""
    why_not: str
    """Why it is not shared or not kept in the cache; empty if it is both, or was not to be kept."""
    rewrites: tuple[Tried, ...] = ()
    """How each rule fared that fits the model; see Engine's `rewrites`."""
    batching: Batching = Batching()
    """Whether requests that wait run together; see Engine's `batching`."""


class OpenedModel(NamedTuple):
    """A model's sessions, one for each stream, and what is known of it."""

    sessions: list[Session]
    compiled: Compiled
    path: str | None
    batch_size: int | None
    changed_fixed_sizes: bool
    entry: Entry | None
    """Locked while the sessions are in use, so that the cache keeps the files that they map."""
    inodes: frozenset[int]
    """Inodes of the weights' files, as /proc/self/smaps names them."""
    varying: Varying
    """Its operators that may give other bits on other numbers of threads."""
    measurements: Measurements | None = None
    """What it was measured to do; None if the model is not kept on disk."""
    width: int | None = None
    """Number of threads that each session has; None: as many as its stream has CPUs."""
    stamp: tuple[int, ...] = ()
    """Tells whether the model's file has been written to since."""

    def close(self) -> None:
        """Frees it, if no engine has it."""
        self.sessions.clear()
        if self.entry is not None:
            self.entry.close()


OpenOne = Callable[[Source, Stream, "str | None"], Session]
"""Opens a session for a stream; with a path, ONNX Runtime saves the optimised model there."""


@dataclass(frozen=True)
class _Request:
    """What open_model was asked for."""

    model: ModelLike
    batch_size: BatchSize
    input_shapes: Shapes | None
    custom_ops: tuple[str, ...]
    cache_dir: CacheDir
    options: Mapping[str, object]
    streams: Sequence[Stream]
    open_one: OpenOne
    rewrites: str
    batching: BatchingOption
    needs_same_bits: bool
    is_pinned: bool

    @property
    def path(self) -> str | None:
        return os.fspath(self.model) if isinstance(self.model, (str, os.PathLike)) else None

    @property
    def num_sessions(self) -> int:
        return len(set(_session_keys(self.streams)))

    @cached_property
    def prepared(self) -> PreparedModel:
        """Parsed only if it is not in the cache. Raises ModelError, OptionError."""
        return prepare_model(self.model, self.batch_size, self.input_shapes)

    @cached_property
    def no_room_to_try(self) -> str:
        """Why neither rewrites nor batches can be tried now; empty if they can."""
        reason = shortage(self.prepared, in_memory=False, is_rewritten=True)
        if reason:
            logger.info("rewrites and batches are not tried: %s", reason)
        return reason

    @cached_property
    def rewritten(self) -> tuple[PreparedModel, tuple[Tried, ...]]:
        """The model to be compiled, and the rewrites that were tried."""
        if self.no_room_to_try:
            return self.prepared, ()
        return rewrite_model(
            self.prepared, self.rewrites, self._open_prepared, self.streams, self.is_pinned
        )

    @cached_property
    def form(self) -> tuple[PreparedModel, Batching]:
        """The model to be compiled, and whether its requests may run together.

        Raises:
            OptionError: see open_batch.
        """
        plain, tried = self.rewritten
        if reason := self.no_room_to_try:
            return plain, Batching(why_not=f"there is no room to try: {reason}")

        def prepare_opened() -> PreparedModel:
            opened = prepare_model(self.model, self.batch_size, self.input_shapes, opens_batch=True)
            return with_rules(opened, tried)

        return open_batch(
            plain,
            prepare_opened,
            self.batching,
            self.needs_same_bits,
            self._open_prepared,
            self.streams,
        )

    def _open_prepared(self, form: PreparedModel, stream: Stream) -> Session:
        with source_of(form, self.custom_ops) as source:
            return self.open_one(source, stream, None)

    def may_settle(self, entry: Entry) -> bool:
        """Whether it was compiled while batches could not be measured, or without room to try
        anything, and now that can be done."""
        if entry.about.get("had_no_room", False):
            return not self.no_room_to_try
        if Batching.from_json(entry.about.get("batching", [])).is_settled:
            return False
        _, found = self.form
        return found.is_settled

    def batches_of(self, found: Batching) -> Batching:
        """What was found, for this request's option. Raises OptionError: no two requests fit."""
        if not isinstance(self.batching, int):
            return found
        rows = found.rows or 1
        if 2 * rows > self.batching:
            raise OptionError(
                f"batching={self.batching}, but a request has {rows} items, so no two can run "
                f'together: give {2 * rows} or more, or leave it at "auto", or "off"'
            )
        return found.limited_to(self.batching)

    def read(self, cache: Cache) -> RawModel | None:
        """See RawModel.of."""
        # How large a batch may be is not compiled in; which bits have to stay, other options tell.
        batching = "any" if isinstance(self.batching, int) else self.batching
        options = {**self.options, "rewrites": self.rewrites, "batching": batching}
        return RawModel.of(
            self.model, self.batch_size, self.input_shapes, options, cache, self.custom_ops
        )


class _FilesChanged(Exception):
    """The model's files were written to or replaced while it was compiled."""


class _Unavailable(NamedTuple):
    """A strategy does not work here; the next one is tried."""

    reason: str
    """Empty if it is not wanted."""
    warning: str = ""
    """What the log says once another strategy has worked."""


@file_limit_errors()
def open_model(
    model: ModelLike,
    batch_size: BatchSize,
    input_shapes: Shapes | None,
    custom_ops: tuple[str, ...],
    cache_dir: CacheDir,
    options: Mapping[str, object],
    streams: Sequence[Stream],
    open_one: OpenOne,
    rewrites: str,
    batching: BatchingOption,
    needs_same_bits: bool,
    is_pinned: bool,
    elsewhere: OpenedModel | None = None,
) -> OpenedModel:
    """Opens a model's sessions: from the cache, else from memory, else each with its own weights.

    Args:
        model, batch_size, input_shapes: see prepare_model.
        custom_ops: see check_custom_ops.
        cache_dir: see Engine.
        options: what else decides how `open_one` compiles a model, JSON; part of the cache's key.
        streams, open_one: a session for each stream is opened by `open_one`.
        rewrites, batching: see Engine.
        needs_same_bits: whether batches have to keep every bit, unless `batching` is a number.
        is_pinned: whether the sessions' threads are.
        elsewhere: the same model with sessions on other cores: its compiled form is opened again,
            if it is kept and intact.

    Raises:
        ModelError: see prepare_model, and what ONNX Runtime says of the model; or `elsewhere` is
            not kept, and the file has another model by now.
        OptionError: cache_dir is not a folder, or one of custom_ops no library of operators; or
            batching is a number, and requests cannot run together.
        ThreadError: the system refuses a session's threads.
        FileLimitError: the process may open no more files.
    """
    sweep_once()
    request = _Request(
        model,
        batch_size,
        input_shapes,
        custom_ops,
        cache_dir,
        options,
        streams,
        open_one,
        rewrites,
        batching,
        needs_same_bits,
        is_pinned,
    )
    stamp = _stamp(request.path)
    if elsewhere is not None:
        entry = elsewhere.entry
        if entry is not None and (again := _open_again(entry, request)):
            return again._replace(measurements=elsewhere.measurements, stamp=elsewhere.stamp)
        if stamp != elsewhere.stamp:
            raise ModelError(
                f"{request.path} has been written to since it was opened, and is not kept in the "
                "cache, or no longer: it cannot be opened again on other cores. Open it anew"
            )
    opened = None
    try:
        opened = _open(request)
    except ModelError:
        if batch_size != AUTO:
            raise
    # Nobody asked for a batch of 1: the model may not take it.
    opened = opened or _open(replace(request, batch_size=None))
    return opened._replace(stamp=stamp)


def _open_again(entry: Entry, request: _Request) -> OpenedModel | None:
    """On other cores, from the entry that a model was opened from. None: that has been damaged
    since, or another process has found it so and removed it."""
    try:
        entry.verify()
        return _open_compiled(entry, request, was_cached=True)
    except (Damaged, ModelError) as error:
        logger.warning(
            "the compiled model in %s cannot be opened again, and is compiled again: %s",
            entry.path,
            error,
        )
        return None


def _stamp(path: str | None) -> tuple[int, ...]:
    if path is None:
        return ()
    try:
        status = os.stat(path)
    except OSError:  # told better by whoever reads it
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _open(request: _Request) -> OpenedModel:
    """By the first strategy that works."""
    failed = _Unavailable("")
    for strategy in (_open_in_cache, _open_in_memory):
        result = strategy(request)
        if isinstance(result, OpenedModel):
            break
        failed = result if result.reason else failed
    else:
        result = _open_unshared(request)
    if failed.reason:  # only now is it known that the model is not to blame
        logger.warning(failed.warning, failed.reason)
    return result._replace(compiled=result.compiled._replace(why_not=failed.reason))


# --- Strategies -------------------------------------------------------------------------------


def _open_in_cache(request: _Request) -> OpenedModel | _Unavailable:
    """From the model's entry in the cache, which is made if there is none."""
    if keeps_in_memory(request.model, request.cache_dir):
        return _Unavailable("")
    try:
        cache = open_cache(request.cache_dir)
    except OSError as error:
        return _not_kept(str(error))
    if cache is None:
        return _Unavailable("")
    for _ in range(_MAX_TRIES):
        try:
            return _open_with(cache, replace(request))  # one that has nothing prepared yet
        except _FilesChanged:
            continue
        except ThreadError:  # no other strategy would have more of them
            raise
        except OSError as error:
            return _not_kept(f"{cache.folder}: {error}")
    return _not_kept(f"the model's files changed while it was compiled, {_MAX_TRIES} times")


def _open_with(cache: Cache, request: _Request) -> OpenedModel | _Unavailable:
    """Raises OSError, _FilesChanged, and the errors of prepare_model."""
    raw = request.read(cache)
    if raw is None:
        return _Unavailable("")
    entry = raw.find(cache)
    if entry is not None and request.may_settle(entry):
        cache.discard(entry)
        entry = None
    if entry is not None:
        try:
            opened = _open_compiled(entry, request, was_cached=True)
            return opened._replace(measurements=_measurements(cache, entry))
        except ModelError as error:
            # The system may be short of something, or the file is damaged: the error does not tell.
            # An intact entry serves other processes, and stays until one that opens is there.
            if not cache.is_still_intact(entry):
                entry = None
            logger.warning("a compiled model cannot be opened, and is compiled again: %s", error)
    prepared = request.prepared  # its errors are the model's, not the cache's
    snapshot = raw.with_files(prepared.external_files, cache)
    try:
        with cache.stage() as staged:
            if reason := shortage(prepared, is_in_memory(staged.folder.fd)):
                return _no_room(reason)
            opened = _compile(staged, request)
            if _snapshot(request, prepared, cache) != snapshot:
                raise _FilesChanged
            if entry is not None:
                cache.discard(entry)
            is_published = snapshot.publish(cache, staged)
    except ModelError as error:
        if _snapshot(request, prepared, cache) != snapshot:
            raise _FilesChanged from error
        return _not_kept(f"{cache.folder}: {error}")
    if not is_published:
        # Another process was faster. Ours is without names now, as if it were in memory.
        return opened._replace(compiled=opened.compiled._replace(folder=None), entry=None)
    return opened._replace(
        compiled=opened.compiled._replace(folder=str(staged.path)),
        measurements=_measurements(cache, staged),
    )


def _snapshot(request: _Request, prepared: PreparedModel, cache: Cache) -> Snapshot | None:
    """Of the model's files now; None if one of them is not there."""
    try:
        raw = request.read(cache)
        return None if raw is None else raw.with_files(prepared.external_files, cache)
    except (OSError, ModelError):
        return None


def _not_kept(reason: str) -> _Unavailable:
    return _Unavailable(
        reason,
        "the compiled model is not kept for the next start: %s; cache_dir= or DEEPSCHED_CACHE_DIR "
        "chooses another folder",
    )


def _no_room(reason: str) -> _Unavailable:
    return _Unavailable(
        reason,
        "the model is not compiled, so each stream has weights of its own, and the next start is "
        "no faster: %s",
    )


def _measurements(cache: Cache, entry: Entry) -> Measurements:
    return Measurements(cache, entry.key, entry.about["model"], entry.about["batch_size"])


def _measurements_of_bytes(request: _Request) -> Measurements | None:
    """Figures under a hash, which the default cache keeps though the model is none of its own."""
    cache = None
    if keeps_in_memory(request.model, request.cache_dir):
        with contextlib.suppress(OSError):
            cache = open_cache(request.cache_dir)
    if cache is None:
        return None
    form, _ = request.form
    return Measurements(cache, key_of_bytes(form), form.name, form.batch_size)


def _open_in_memory(request: _Request) -> OpenedModel | _Unavailable:
    """From files that lose their names as soon as all sessions have them mapped."""
    if request.num_sessions == 1:  # nobody to share with: files would only take memory beside it
        return _open_unshared(request)
    prepared = request.prepared
    reason = "no folder for temporary files can be written"
    is_on_no_disk = request.path is None  # and stays so
    for parent in memory_folders() if request.path is None else temporary_places(request.path):
        try:
            with stage_in(parent, is_on_no_disk) as entry:
                if reason := shortage(prepared, is_in_memory(entry.folder.fd)):
                    return _no_room(reason)
                opened = _compile(entry, request)
        except ThreadError:
            raise
        except (OSError, ModelError) as error:
            reason = str(error)
            continue
        return opened._replace(
            compiled=opened.compiled._replace(folder=None),
            entry=None,
            measurements=_measurements_of_bytes(request),
        )
    return _Unavailable(
        reason, "each stream has weights of its own, since they cannot be shared: %s"
    )


def _open_unshared(request: _Request) -> OpenedModel:
    """As plain ONNX Runtime does it: every session optimises the model and holds its weights.

    Raises:
        ModelError: the model does not work.
    """
    prepared = request.prepared
    try:
        _, tried = request.rewritten
        form, batching = request.form
        with source_of(form, request.custom_ops) as source:
            sessions = _open_all(
                lambda stream: request.open_one(source, stream, None), request.streams
            )
        trim_heap()
    except ModelError as error:
        if not prepared.changed_fixed_sizes:
            raise
        raise explain_override(error, prepared.batch_size, request.input_shapes) from error
    return OpenedModel(
        sessions,
        Compiled(
            is_shared=request.num_sessions == 1,
            was_cached=False,
            folder=None,
            weights_bytes=prepared.weights_bytes,
            num_copies=request.num_sessions,
            why_not="",
            rewrites=tried,
            batching=request.batches_of(batching),
        ),
        prepared.path,
        prepared.batch_size,
        prepared.changed_fixed_sizes,
        None,
        frozenset(),
        form.varying,
    )


# --- Compiling and opening --------------------------------------------------------------------


def _compile(entry: Entry, request: _Request) -> OpenedModel:
    """Writes the compiled form into `entry`, seals it, and opens the sessions from there."""
    _, tried = request.rewritten
    prepared, batching = request.form
    widest = max(request.streams, key=lambda stream: len(stream.cpus))
    with source_in(prepared, entry.folder, request.custom_ops) as source:
        source = source._replace(config={**source.config, **SAVING})
        session = request.open_one(source, widest, str(entry.model))
    interface = _interface(session)
    del session  # and its copy of the weights
    trim_heap()  # before others are made
    entry.about = {
        "model": prepared.name,
        "batch_size": prepared.batch_size,
        "changed_fixed_sizes": prepared.changed_fixed_sizes,
        "varying": prepared.varying,
        "rewrites": tried,
        "batching": batching,
        "had_no_room": bool(request.no_room_to_try),
    }
    with thread_errors("a thread that opens the model"), ThreadPoolExecutor(1) as pool:
        sealing = pool.submit(entry.seal)
        opened = _open_compiled(entry, request, was_cached=False)
    sealing.result()
    if _interface(opened.sessions[0]) != interface:
        raise ModelError("as ONNX Runtime saves it, the model has other inputs or outputs")
    return opened


def _interface(session: Session) -> list[tuple[str, object]]:
    described = (
        session.describe_inputs(),
        session.describe_overridable(),
        session.describe_outputs(),
    )
    return [(info.name, info.dtype) for infos in described for info in infos]


def _open_compiled(entry: Entry, request: _Request, was_cached: bool) -> OpenedModel:
    path = request.path
    name = path or str(entry.path)  # not the descriptor's path
    with numa_copies(entry, request.streams) as models:

        def open_for(stream: Stream) -> Session:
            source = Source(str(models[nodes_of(stream)]), {}, True, name, request.custom_ops)
            return request.open_one(source, stream, None)

        sessions = _open_all(open_for, request.streams)
        trim_heap()
        files = [model.with_name(entry.weights.name) for model in dict.fromkeys(models.values())]
        mapped = [file.stat() for file in files if file.exists()]
    about = entry.about
    return OpenedModel(
        sessions,
        Compiled(
            is_shared=True,
            was_cached=was_cached,
            folder=str(entry.path),
            weights_bytes=mapped[0].st_size if mapped else 0,
            num_copies=len(mapped),
            why_not="",
            rewrites=tuple(Tried.from_json(it) for it in about["rewrites"]),
            batching=request.batches_of(Batching.from_json(about["batching"])),
        ),
        path,
        about["batch_size"],
        about["changed_fixed_sizes"],
        entry,
        frozenset(found.st_ino for found in mapped),
        Varying(*(tuple(names) for names in about["varying"])),
    )


def _open_all(open_for: Callable[[Stream], Session], streams: Sequence[Stream]) -> list[Session]:
    """A session for each stream, opened in parallel.

    A session of one thread has no threads of its own, so all streams of one core share a session
    (per NUMA node), each running it on its own core: one graph, and one copy of what it keeps. For
    models that do not fit into the CPU's cache twice, two streams have 1.2 to 1.5 times the
    throughput that way.
    """
    keys = _session_keys(streams)
    firsts = dict(zip(reversed(keys), reversed(streams), strict=True))
    if len(firsts) == 1:
        # Here, and not in a thread, for which glibc has a heap of its own with room for few large
        # blocks: packing weights leaves holes in it.
        return [open_for(streams[0])] * len(streams)
    with (
        thread_errors("a thread that opens the model"),
        ThreadPoolExecutor(min(len(firsts), len(own_cpus()))) as pool,
    ):
        sessions = dict(zip(firsts, pool.map(open_for, firsts.values()), strict=True))
    return [sessions[key] for key in keys]


def _session_keys(streams: Sequence[Stream]) -> list[tuple[str, object]]:
    """What streams that share a session have in common."""
    return [
        ("node", nodes_of(stream)) if len(stream.cpus) == 1 else ("stream", stream.index)
        for stream in streams
    ]
