"""Keys of cache entries: a hash of everything that decides what ONNX Runtime makes of a model."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import platform
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import blake3

from deepsched.errors import ModelError
from deepsched.models.batch import BatchSize
from deepsched.models.cache import Cache
from deepsched.models.entry import Entry
from deepsched.models.external_data import external_paths
from deepsched.models.prepare import ModelLike, PreparedModel, Shapes, serialize
from deepsched.runtime.library import describe_library

PREPARATION_VERSION = 7
"""To be raised with every change of `prepare`, `compiled` or `rewrites` that changes what is
compiled. Not the package's version: most releases change nothing of that and would compile every
model again, while a change in a working tree would not be noticed."""

# Smaller initializers stay in the graph's file: ONNX Runtime looks at their values.
_SMALLEST_EXTERNAL = 1024

SAVING = {
    "session.optimized_model_external_initializers_file_name": "weights",
    "session.optimized_model_external_initializers_min_size_in_bytes": str(_SMALLEST_EXTERNAL),
    "session.save_external_prepacked_constant_initializers": "1",
}
"""Session config entries with which ONNX Runtime saves the compiled form."""


class Content(NamedTuple):
    """A model as it was given, identified without parsing it."""

    checksum: str
    """Of its bytes, without external data."""
    state: list[int]
    """Of its file, see file_state; empty for a model that is no file."""
    name: str
    """Its path; for a model given as bytes, how many they are."""
    path: str | None
    """Of its file; None for a model that is no file."""

    @classmethod
    def of(cls, model: ModelLike, cache: Cache) -> Content:
        """Reads the model, unless the cache knows the hash of its file.

        Raises:
            OSError: its file cannot be read.
            AttributeError, TypeError: it is no model.
            InvalidModelError: it cannot be serialized.
        """
        if isinstance(model, (str, os.PathLike)):
            path = os.fspath(model)
            checksum, state = cache.hash_file(path)
            return cls(checksum, state, path, path)
        serialized = serialize(model)
        checksum = blake3.blake3(serialized).hexdigest()
        return cls(checksum, [], f"{len(serialized)} bytes", None)


class RawModel(NamedTuple):
    """A model before it is prepared: enough to find it in the cache."""

    checksum: str
    """Of all that decides what is compiled, but for external data."""
    state: list[int]
    """Of its file."""
    name: str
    """Its path; for a model given as bytes, how many they are."""
    path: str | None
    """Of its file; None for a model that is no file."""

    @classmethod
    def of(
        cls,
        model: ModelLike,
        batch_size: BatchSize,
        input_shapes: Shapes | None,
        options: Mapping[str, object],
        cache: Cache,
        custom_ops: Sequence[str] = (),
    ) -> RawModel | None:
        """None if one of these is wrong; prepare_model raises the error that says what.

        Args:
            model, batch_size, input_shapes: see prepare_model.
            options: what else decides how it is compiled, JSON.
            cache: see Content.of.
            custom_ops: paths of libraries, whose content counts.
        """
        try:
            content = Content.of(model, cache)
            libraries = [cache.hash_file(path)[0] for path in custom_ops]
            wanted = [batch_size, input_shapes, options, *libraries]
            wanted_json = json.dumps(wanted, sort_keys=True, default=operator.index)  # numpy's ints
        except (AttributeError, OSError, TypeError, ValueError):
            return None
        checksum = hash_json([content.checksum, wanted_json, *_environment()])
        return cls(checksum, content.state, content.name, content.path)

    def find(self, cache: Cache) -> Entry | None:
        """Its entry, if there is one. Raises OSError, see Cache.find."""
        # A model without external data is found by its own bytes. Else the cache knows which files
        # to hash, if it has seen the model before.
        if (entry := cache.find(Snapshot(self, []).key)) is not None:
            return entry
        names = cache.external_files(self.checksum)
        if not names:
            return None
        try:
            key = self.with_files(names, cache).key
        except (OSError, ModelError):  # prepare_model will say it
            return None
        return cache.find(key)

    def with_files(self, names: Sequence[str], cache: Cache) -> Snapshot:
        """Reads the external data files as well, unless the cache knows their hashes. Raises
        OSError, and as external_paths."""
        paths = external_paths(self.path, names)
        files = [(name, *cache.hash_file(path)) for name, path in paths.items()]
        return Snapshot(self, files)


class Snapshot(NamedTuple):
    """All files of a model at one moment. Two that are equal had the same content and were not
    written to or replaced between: a change back leaves another time in the inode."""

    raw: RawModel
    files: list[tuple[str, str, list[int]]]
    """Name, checksum and state of each external data file."""

    @property
    def key(self) -> str:
        """Of the model's entry."""
        files = [[name, checksum] for name, checksum, _ in self.files]
        return hash_json([self.raw.checksum, files])[:32]

    def publish(self, cache: Cache, entry: Entry) -> bool:
        """As Cache.publish. Raises OSError."""
        if self.files:
            names = [name for name, *_ in self.files]
            cache.remember_external_files(self.raw.checksum, self.raw.name, names)
        return cache.publish(entry, self.key)


def key_of_bytes(prepared: PreparedModel) -> str:
    """Of a model that was given as bytes: for what it was measured to do, which the content of its
    external data does not change."""
    graph = blake3.blake3(prepared.graph).hexdigest()
    return hash_json([graph, prepared.weights.checksum(), *_environment()])[:32]


def hash_json(value: object) -> str:
    """The checksum of a JSON value, 64 hex digits; what is not JSON counts as its str."""
    return blake3.blake3(json.dumps(value, default=str).encode()).hexdigest()


def _environment() -> list[object]:
    """What decides beside the model: how we prepare it, the library, the CPU, and how the library
    is asked to save."""
    library = describe_library()
    # Two builds may have the same version.
    found = os.stat(library["path"])
    return [
        PREPARATION_VERSION,
        library["version"],
        found.st_size,
        platform.machine(),
        _instruction_sets(),
        sorted(SAVING.items()),
    ]


def _instruction_sets() -> str:
    """The CPU's features as the kernel lists them: x86's flags, Arm's Features."""
    with (
        contextlib.suppress(OSError),  # a sandbox without it
        open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return " ".join(sorted(value.split()))
    return f"unknown, of {platform.node()}"
