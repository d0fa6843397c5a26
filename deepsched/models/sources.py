"""What ONNX Runtime opens a prepared model from, in as little memory as can be."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from deepsched.models.entry import LARGE_WEIGHTS
from deepsched.models.external_data import FOLDER
from deepsched.models.folders import Folder
from deepsched.models.locations import temporary_folder, temporary_places
from deepsched.models.prepare import PreparedModel


class Source(NamedTuple):
    """What a session is opened from."""

    model: str | bytes
    """A path, or a serialized ModelProto."""
    config: Mapping[str, str]
    """ONNX Runtime's session config entries that it needs."""
    is_optimized: bool
    name: str | None
    """The model's name in errors."""
    custom_ops: tuple[str, ...] = ()
    """Libraries of operators that it needs."""
    files: Mapping[str, bytes] = MappingProxyType({})
    """External data that is in memory, by the names that the model has for it."""


@contextlib.contextmanager
def source_in(
    prepared: PreparedModel, folder: Folder, custom_ops: tuple[str, ...]
) -> Iterator[Source]:
    """The model, with its large weights in a file in that folder. Sessions that are opened before
    the block's end keep the file mapped.

    Raises:
        OSError: the file cannot be written.
        InvalidModelError: the model's file has changed since it was prepared.
    """
    if not prepared.weights.places:
        yield _as_it_is(prepared, custom_ops)
        return
    try:
        offsets = prepared.weights.write(folder.inside(LARGE_WEIGHTS))
        model = prepared.weights.refer_to(prepared.graph, LARGE_WEIGHTS, offsets)
        config = {**prepared.config, FOLDER: str(folder.inside("."))}
        yield Source(model, config, False, prepared.path, custom_ops)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(LARGE_WEIGHTS, dir_fd=folder.fd)


@contextlib.contextmanager
def source_of(prepared: PreparedModel, custom_ops: tuple[str, ...]) -> Iterator[Source]:
    """The model, for sessions that are opened before the block's end.

    Raises:
        InvalidModelError: the model's file has changed since it was prepared.
    """
    weights = prepared.weights
    if not weights.places or prepared.is_unchanged:
        yield _as_it_is(prepared, custom_ops)
    elif (data := weights.in_memory) is not None:
        offsets = [place.offset for place in weights.places]
        model = weights.refer_to(prepared.graph, LARGE_WEIGHTS, offsets)
        files = {LARGE_WEIGHTS: data}
        yield Source(model, prepared.config, False, prepared.path, custom_ops, files)
    else:
        assert prepared.path is not None
        with contextlib.ExitStack() as stack:
            try:
                places = temporary_places(prepared.path)
                folder = stack.enter_context(temporary_folder(places))
                source = stack.enter_context(source_in(prepared, folder, custom_ops))
            except OSError:  # no room for a file: then more memory
                source = _as_it_is(prepared, custom_ops)
            yield source


def _as_it_is(prepared: PreparedModel, custom_ops: tuple[str, ...]) -> Source:
    return Source(prepared.source, prepared.config, False, prepared.path, custom_ops)
