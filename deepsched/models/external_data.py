"""External data: the files beside a model that hold its weights, and whether they may be read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepsched.errors import InvalidModelError, ModelNotFoundError
from deepsched.models.folders import working_folder

if TYPE_CHECKING:
    import onnx

FOLDER = "session.model_external_initializers_file_folder_path"
"""The session config entry for the folder of external data, of a model that is opened from
bytes."""

_EXTERNAL = 1
"""TensorProto.EXTERNAL."""


def external_files(proto: onnx.ModelProto) -> tuple[str, ...]:
    """The names by which the model refers to its external data, sorted.

    Raises:
        InvalidModelError: one is not UTF-8.
    """
    names = {entry.value for entry in _locations(proto)}
    for name in names:
        if not isinstance(name, str):  # protobuf gives the bytes
            raise InvalidModelError(
                f"the model names external data at {name!r:.80}, which is not UTF-8, as all text "
                "in ONNX files has to be"
            )
    return tuple(sorted(names))


def external_paths(path: str | None, names: Sequence[str]) -> dict[str, str]:
    """By name, the path of each file of external data, without links.

    A model may name any file of this machine, and link to it, and a kernel would hand its bytes
    out. So a file has to be in the model's folder, as onnxruntime 1.32 checks it and older versions
    do not: where the model is a link, in the folder of the link or in that of its target. Hugging
    Face's cache links both model and data to files that are beside each other elsewhere.

    Args:
        path: the model's; None for one that is no file, whose folder is the working folder.

    Raises:
        InvalidModelError: a file is elsewhere.
        ModelNotFoundError: there is no such file.
    """
    if not names:
        return {}
    # Not the working folder for an absolute path: it may have been removed.
    folder = os.path.dirname(path) if path is not None else ""
    if not os.path.isabs(folder):
        folder = os.path.join(working_folder(), folder)
    folders = [os.path.realpath(folder)]
    if path is not None:
        folders.append(os.path.dirname(os.path.realpath(path)))
    return {name: _resolve(path, folder, folders, name) for name in names}


def has_links(path: str, paths: Mapping[str, str]) -> bool:
    """Whether links lead from the model at `path` to its data. onnxruntime 1.32 takes none for data
    of a subgraph, though it does for that of the graph."""
    folder = os.path.dirname(path)
    return any(os.path.abspath(os.path.join(folder, name)) != paths[name] for name in paths)


def point_at(proto: onnx.ModelProto, paths: Mapping[str, str]) -> str:
    """Makes the model name its external data by `paths`, relative to the folder that is returned.

    A session that is opened from bytes is told one folder, and onnxruntime refuses links that lead
    out of it.
    """
    folder = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
    for entry in _locations(proto):
        entry.value = os.path.relpath(paths[entry.value], folder)
    return folder


def _resolve(path: str | None, folder: str, folders: Sequence[str], name: str) -> str:
    model = "the model" if path is None else f"the model {path!r}"
    try:
        found = os.path.realpath(os.path.join(folder, name), strict=True)
    except ValueError:  # a NUL in it
        found = ""
    except OSError as error:
        raise ModelNotFoundError(
            f"{model} has external data in {name!r}, which cannot be found: {error}"
        ) from error
    if os.path.isabs(name) or not any(map(Path(found).is_relative_to, folders)):
        raise InvalidModelError(
            f"{model} names external data at {name!r}, which is outside its folder; save it with "
            "its data beside it"
        )
    if not os.path.isfile(found):  # a pipe would keep whoever reads it waiting
        raise InvalidModelError(
            f"{model} names external data at {name!r}, which is not a regular file"
        )
    return found


def _locations(proto: onnx.ModelProto) -> Iterator[onnx.StringStringEntryProto]:
    for tensor in _tensors(proto):
        # Tools that read the data into the model may leave its old place there, which nobody uses.
        if tensor.data_location == _EXTERNAL:
            yield from (entry for entry in tensor.external_data if entry.key == "location")


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All that are stored in the model: in its graph, in subgraphs and functions."""
    graphs = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        while graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
        for attribute in nodes.pop().attribute if nodes else ():
            graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
            yield from [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
            for sparse in (
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                *attribute.sparse_tensors,
            ):
                yield from (sparse.values, sparse.indices)
