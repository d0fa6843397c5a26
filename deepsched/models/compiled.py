"""The compiled form of a model: optimised once, its weights mapped and shared by all sessions.

ONNX Runtime saves the optimised graph, and beside it the initializers together with what kernels
made of them (packed for the matrix units, say). A session opened from there maps that file: nothing
is optimised, packed or copied again, and all sessions of all processes share the pages.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import blake3

from deepsched.errors import ModelError, OptionError
from deepsched.machine.partition import Stream
from deepsched.models.cache import (
    Cache,
    Entry,
    default_folder,
    hash_file,
    make_private_folder,
    remove_if_left,
)
from deepsched.models.prepare import (
    ModelLike,
    PreparedModel,
    Shapes,
    explain_override,
    prepare_model,
    serialize,
)
from deepsched.runtime.library import describe_library
from deepsched.runtime.numa import copy_to_node
from deepsched.runtime.session import Session, trim_heap

logger = logging.getLogger("deepsched")

CacheDir = str | os.PathLike[str] | None

DEFAULT = "default"
"""The cache folder that the environment chooses."""

# Smaller initializers stay in the graph's file: ONNX Runtime looks at their values.
_SMALLEST_EXTERNAL = 1024

_SAVING = {
    "session.optimized_model_external_initializers_file_name": "weights",
    "session.optimized_model_external_initializers_min_size_in_bytes": str(_SMALLEST_EXTERNAL),
    # Since 1.21. Older ones ignore it, and each session packs weights for itself.
    "session.save_external_prepacked_constant_initializers": "1",
}


class Compiled(NamedTuple):
    """How an engine's sessions were opened; `Engine.compiled`."""

    is_shared: bool
    """Whether all sessions map one copy of the weights (one for each NUMA node)."""
    was_cached: bool
    """Whether that copy was found in the cache, and nothing had to be compiled."""
    folder: str | None
    """Its folder in the cache; None: it is kept in no cache."""
    weights_bytes: int
    """The size of one copy, with what kernels made of the weights."""
    num_copies: int
    """One for each NUMA node that the streams lie in; 0 if it is not shared."""
    why_not: str
    """Why it is not shared, or not kept in the cache; empty if all is well."""


class Source(NamedTuple):
    """What a session is opened from."""

    model: str | bytes
    """A path, or a serialized ModelProto."""
    config: dict[str, str]
    """ONNX Runtime's session config entries that it needs."""
    is_optimized: bool
    name: str | None
    """What errors call it."""


class OpenedModel(NamedTuple):
    """A model's sessions, one for each stream, and what is known of it."""

    sessions: list[Session]
    compiled: Compiled
    path: str | None
    batch_size: int | None
    changed_fixed_sizes: bool
    entry: Entry | None
    """To be held while the sessions are in use: the cache then keeps what they map."""
    inodes: frozenset[int]
    """Of the weights' files, as /proc/self/smaps names them."""


OpenOne = Callable[[Source, Stream, "str | None"], Session]
"""Opens a session for a stream; with a path, ONNX Runtime saves the optimised model there."""


def open_model(
    model: ModelLike,
    batch_size: int | None,
    input_shapes: Shapes | None,
    cache_dir: CacheDir,
    streams: Sequence[Stream],
    open_one: OpenOne,
) -> OpenedModel:
    """Opens a model's sessions from its compiled form, which is made if there is none.

    Raises:
        ModelError: see prepare_model, and what ONNX Runtime says of the model.
        OptionError: cache_dir is not a folder.
    """
    path = os.fspath(model) if isinstance(model, (str, os.PathLike)) else None
    cache, trouble = _open_cache(cache_dir)
    raw = _RawModel.of(model, batch_size, input_shapes) if cache is not None else None
    if cache is not None and raw is not None:
        entry = raw.find(cache)
        if entry is not None:
            try:
                return _open_compiled(entry, path, streams, open_one, was_cached=True)
            except ModelError as error:
                logger.warning("%s cannot be opened, and is made anew: %s", entry.folder, error)
                cache.discard(entry)
    prepared = prepare_model(model, batch_size, input_shapes)
    if cache is not None and raw is not None:
        try:
            with cache.stage() as entry:
                opened = _compile(prepared, entry, streams, open_one)
                raw.publish(cache, entry, prepared)
            folder = str(entry.folder) if entry.folder.is_dir() else None
            return opened._replace(compiled=opened.compiled._replace(folder=folder))
        except (OSError, ModelError) as error:
            trouble = f"{cache.folder}: {error}"
    for parent in _memory_folders():
        try:
            with _stage_in(parent) as entry:
                opened = _compile(prepared, entry, streams, open_one)
        except (OSError, ModelError) as error:
            why_not = str(error)
            continue
        if trouble:
            logger.warning(
                "the compiled model is not kept for the next start: %s; cache_dir= or "
                "DEEPSCHED_CACHE_DIR chooses another folder",
                trouble,
            )
        compiled = opened.compiled._replace(folder=None, why_not=trouble)
        return opened._replace(compiled=compiled, entry=None)
    source = Source(prepared.source, prepared.config, False, prepared.path)
    try:
        sessions = _open_all(lambda stream: open_one(source, stream, None), streams)
    except ModelError as error:
        if not prepared.changed_fixed_sizes:
            raise
        raise explain_override(error, prepared.batch_size, input_shapes) from error
    # Now it is known that the model is not to blame.
    logger.warning("each stream has weights of its own, since they cannot be shared: %s", why_not)
    return OpenedModel(
        sessions,
        Compiled(False, False, None, 0, 0, why_not),
        prepared.path,
        prepared.batch_size,
        prepared.changed_fixed_sizes,
        None,
        frozenset(),
    )


# --- Compiling and opening --------------------------------------------------------------------


def _compile(
    prepared: PreparedModel, entry: Entry, streams: Sequence[Stream], open_one: OpenOne
) -> OpenedModel:
    """Writes the compiled form into `entry`, seals it, and opens the sessions from there."""
    widest = max(streams, key=lambda stream: len(stream.cpus))
    source = Source(prepared.source, {**prepared.config, **_SAVING}, False, prepared.path)
    session = open_one(source, widest, str(entry.model))
    interface = _interface(session)
    del session  # and its copy of the weights
    entry.about = {
        "model": prepared.path or f"{len(prepared.source)} bytes",
        "batch_size": prepared.batch_size,
        "changed_fixed_sizes": prepared.changed_fixed_sizes,
    }
    with ThreadPoolExecutor(1) as pool:
        sealing = pool.submit(entry.seal)
        opened = _open_compiled(entry, prepared.path, streams, open_one, was_cached=False)
    sealing.result()
    if _interface(opened.sessions[0]) != interface:
        raise ModelError("as ONNX Runtime saves it, the model has other inputs or outputs")
    return opened


def _interface(session: Session) -> list[tuple[str, object]]:
    described = [*session.describe_inputs(), *session.describe_outputs()]
    return [(info.name, info.dtype) for info in described]


def _open_compiled(
    entry: Entry, path: str | None, streams: Sequence[Stream], open_one: OpenOne, was_cached: bool
) -> OpenedModel:
    with _copies(entry, streams) as copies:

        def open_for(stream: Stream) -> Session:
            model = copies.get(home_node(stream), entry.model)
            return open_one(Source(str(model), {}, True, path), stream, None)

        sessions = _open_all(open_for, streams)
        trim_heap()
        files = [path.with_name("weights") for path in copies.values()] or [entry.weights]
        mapped = [path.stat() for path in files if path.exists()]
    about = entry.about
    compiled = Compiled(
        True, was_cached, str(entry.folder), mapped[0].st_size if mapped else 0, len(mapped), ""
    )
    return OpenedModel(
        sessions,
        compiled,
        path,
        about["batch_size"],
        about["changed_fixed_sizes"],
        entry,
        frozenset(found.st_ino for found in mapped),
    )


def _open_all(open_for: Callable[[Stream], Session], streams: Sequence[Stream]) -> list[Session]:
    """A session for each stream, opened side by side.

    A session of one thread has no threads of its own, so streams of one core can all run in the
    same one, each on its own core (for each NUMA node): one graph, one copy of what it keeps. Two
    streams of models that do not fit the cache twice: 1.2 to 1.5 times the rate.
    """
    keys = [
        ("node", home_node(stream)) if len(stream.cpus) == 1 else ("stream", stream.index)
        for stream in streams
    ]
    firsts = dict(zip(reversed(keys), reversed(streams), strict=True))
    with ThreadPoolExecutor(min(len(firsts), len(os.sched_getaffinity(0)))) as pool:
        sessions = dict(zip(firsts, pool.map(open_for, firsts.values()), strict=True))
    return [sessions[key] for key in keys]


# --- NUMA -------------------------------------------------------------------------------------


def home_node(stream: Stream) -> int:
    """The node whose copy of the weights a stream uses: that of its first core.

    >>> from deepsched import Topology, partition
    >>> machine = Topology.synthetic(packages=2, cores_per_l3=8)
    >>> [home_node(stream) for stream in partition(machine, num_streams=3)[0]]
    [0, 0, 1]
    """
    return stream.numa_nodes[0]


@contextlib.contextmanager
def _copies(entry: Entry, streams: Sequence[Stream]) -> Iterator[dict[int, Path]]:
    """The model to open for each NUMA node; empty where one copy will do.

    The copies are files without a name once the sessions have them mapped.
    """
    nodes = sorted({home_node(stream) for stream in streams})
    with contextlib.ExitStack() as stack:
        copies: dict[int, Path] = {}
        if len(nodes) > 1 and entry.weights.exists():
            try:
                for node in nodes:
                    copy = stack.enter_context(_stage_in(_SHARED_MEMORY))
                    shutil.copyfile(entry.model, copy.model)
                    if not _copy_weights(entry.weights, copy.weights, node):
                        logger.warning("the system lets us choose no NUMA node for the weights")
                    copies[node] = copy.model
            except OSError as error:
                logger.warning("all NUMA nodes share one copy of the weights: %s", error)
                copies = {}
        yield copies


def _copy_weights(source: Path, target: Path, node: int) -> bool:
    with open(source, "rb") as weights, open(target, "w+b") as copy:
        return copy_to_node(weights.fileno(), copy.fileno(), node)


# --- Where ------------------------------------------------------------------------------------

_SHARED_MEMORY = Path("/dev/shm")


def _open_cache(cache_dir: CacheDir) -> tuple[Cache | None, str]:
    """The cache, or None and what is wrong with it; nothing is where none is wanted."""
    if cache_dir is None:
        return None, ""
    if not isinstance(cache_dir, (str, os.PathLike)) or not os.fspath(cache_dir):
        raise OptionError(f"cache_dir must be a folder's path or None, got {cache_dir!r}")
    folder = default_folder() if cache_dir == DEFAULT else Path(cache_dir)
    try:
        return Cache(folder), ""
    except OSError as error:
        return None, str(error)


def _memory_folders() -> list[Path]:
    """Where anonymous files are made; a container's /dev/shm may be too small."""
    folders = dict.fromkeys([_SHARED_MEMORY, Path(tempfile.gettempdir())])
    return [folder for folder in folders if os.access(folder, os.W_OK)]


@contextlib.contextmanager
def _stage_in(parent: Path) -> Iterator[Entry]:
    """A folder that goes at the block's end; what has been mapped from it stays."""
    prefix = f"deepsched-{os.geteuid()}-"
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            remove_if_left(left)
    entry = make_private_folder(parent, prefix)
    try:
        yield entry
    finally:
        shutil.rmtree(entry.folder, ignore_errors=True)
        entry.close()


# --- Keys -------------------------------------------------------------------------------------


class _RawModel(NamedTuple):
    """A model as it was given, by its content; found in the cache without parsing it."""

    content: str
    """The hash of everything that decides what is compiled, but external data."""
    folder: str
    """Where its external data lies."""

    @classmethod
    def of(
        cls, model: ModelLike, batch_size: int | None, input_shapes: Shapes | None
    ) -> _RawModel | None:
        """None: something is wrong with these, which prepare_model will say."""
        try:
            if isinstance(model, (str, os.PathLike)):
                content = hash_file(os.fspath(model))
                folder = os.path.dirname(os.path.abspath(os.fspath(model)))
            else:
                content = blake3.blake3(serialize(model)).hexdigest()
                folder = os.getcwd()
            wanted = json.dumps([batch_size, input_shapes])
        except (AttributeError, OSError, TypeError, ValueError):
            return None
        parts = [content, wanted, *_environment()]
        return cls(blake3.blake3(json.dumps(parts).encode()).hexdigest(), folder)

    def find(self, cache: Cache) -> Entry | None:
        try:
            entry = cache.find(self._key([]))
            names = None if entry is not None else cache.external_files(self.content)
            return cache.find(self._key(names)) if names else entry
        except OSError:
            return None

    def publish(self, cache: Cache, entry: Entry, prepared: PreparedModel) -> None:
        names = list(prepared.external_files)
        key = self._key(names)
        if names:
            cache.remember_external_files(self.content, names)
        cache.publish(entry, key)

    def _key(self, names: list[str]) -> str:
        """Raises OSError if external data cannot be read, or lies elsewhere."""
        for name in names:
            # A model may name anything; ONNX Runtime takes what lies beside it only.
            if os.path.isabs(name) or ".." in Path(name).parts:
                raise OSError(f"external data at {name!r} is outside the model's folder")
        hashes = [[name, hash_file(os.path.join(self.folder, name))] for name in names]
        return blake3.blake3(json.dumps([self.content, hashes]).encode()).hexdigest()[:32]


def _environment() -> list[object]:
    """What else decides what ONNX Runtime makes of a model."""
    library = describe_library()
    # Two builds may have the same version.
    found = os.stat(library["path"])
    options = sorted(_SAVING.items())
    return [library["version"], found.st_size, platform.machine(), _instruction_sets(), options]


def _instruction_sets() -> str:
    """What the kernel says that the CPU can do: x86's flags, Arm's Features."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return " ".join(sorted(value.split()))
    return ""
