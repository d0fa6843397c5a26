"""open_server: a model behind a server that speaks the Open Inference Protocol v2, as an engine.

    http://host:8000     REST; tensors as raw bytes (Triton's binary extension) or as JSON
    https://host:8443    the same over TLS, with the system's certificates
    grpc://host:8001     gRPC

A load sends the same inputs each time, so a request is encoded once. What is measured is the way
there, the server, and the way back; of an answer no more than its status is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from deepsched.client.grpc import GrpcClient
from deepsched.client.protocol import Client, RemoteModel
from deepsched.client.rest import RestClient
from deepsched.errors import OptionError
from deepsched.models.batch import AUTO, BatchSize
from deepsched.models.prepare import Shapes
from deepsched.models.random_inputs import random_value
from deepsched.server.datatypes import dtype_of

TENSORS = ("binary", "json")
_DEFAULT_PORTS = {"http": 8000, "https": 443, "grpc": 8001}


def open_server(
    url: str,
    model: str | None = None,
    version: str = "",
    *,
    tensors: str = "binary",
    batch_size: BatchSize = AUTO,
    input_shapes: Shapes | None = None,
) -> RemoteEngine:
    """Connects to a server, asks it for a model, and has it answer a first request.

    Args:
        url: see the module. Without a port: 8000, 443 or 8001.
        model: its name there; None for the only one that the server has.
        version: empty: the one that the server chooses.
        tensors: "binary" or "json", which needs REST.
        batch_size: the first dimension of each input that the server leaves open; "auto" and None
            are 1.
        input_shapes: a shape for each input, in the server's order; None takes the server's, with 1
            for what is open behind the first dimension.

    Raises:
        OptionError: an option has a value that is not allowed.
        ServerError: the server cannot be reached, does not have the model, or refuses the request.
    """
    if tensors not in TENSORS:
        raise OptionError(f"tensors must be one of {', '.join(TENSORS)}, got {tensors!r}")
    client = _client(url, tensors)
    try:
        server = client.server()
        name = model or _only_model(client, url)
        found = client.model(name, version)
        size = 1 if batch_size == AUTO or batch_size is None else int(batch_size)
        text = f"{server} at {url}, model {found.name}, {tensors} tensors"
        engine = RemoteEngine(client, text, found, size, input_shapes)
        engine.run(engine.generate_random_inputs())
    except BaseException:
        client.close()
        raise
    return engine


class RemoteEngine:
    """A model behind a server, as `measure` takes an engine; `open_server` makes it."""

    num_cores = None
    num_streams = None

    def __init__(
        self,
        client: Client,
        text: str,
        model: RemoteModel,
        batch_size: int,
        input_shapes: Shapes | None,
    ) -> None:
        self._client = client
        self._model = model
        self._text = text
        self._infos = _infos(model, input_shapes)
        is_open = any(info.shape[:1] == (None,) for info in self._infos)
        if batch_size > 1 and not is_open:
            raise OptionError(
                f"batch_size must be 1 for {model.name!r}, whose inputs the server gives fixed "
                f"shapes ({_described(model)}), got {batch_size}"
            )
        self.batch_size = batch_size
        self._prepared: tuple[Any, Callable[[], None]] | None = None

    def generate_random_inputs(self) -> list[Any]:
        """The same as Engine's."""
        rng = np.random.default_rng(0)
        return [random_value(rng, info, self.batch_size) for info in self._infos]

    def run(self, inputs: list[Any]) -> None:
        """Sends the inputs and waits for the answer."""
        prepared = self._prepared
        if prepared is None or prepared[0] is not inputs:
            prepared = self._prepared = inputs, self._client.sender(self._model, inputs)
        prepared[1]()

    def close(self) -> None:
        """Ends the connections."""
        self._client.close()

    def __repr__(self) -> str:
        return f"<{self._text}>"


def _client(url: str, tensors: str) -> Client:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or port == -1:
        raise OptionError(
            "server must look like http://localhost:8000, https://host or grpc://localhost:8001, "
            f"got {url!r}"
        )
    port = port or _DEFAULT_PORTS[parts.scheme]
    if parts.scheme == "grpc":
        if tensors == "json":
            raise OptionError("tensors must be 'binary' over gRPC, got 'json'; give an http:// URL")
        return GrpcClient(parts.hostname, port)
    return RestClient(parts.scheme, parts.hostname, port, parts.path, is_binary=tensors == "binary")


def _only_model(client: Client, url: str) -> str:
    names = client.models()
    if len(names) == 1:
        return names[0]
    has = f"it has {', '.join(map(repr, names))}" if names else "it does not list its models"
    raise OptionError(f"model must be the name of a model at {url}: {has}")


def _infos(model: RemoteModel, input_shapes: Shapes | None) -> list[Any]:
    """The inputs as `random_value` takes them."""
    shapes = [None] * len(model.inputs) if input_shapes is None else list(input_shapes)
    if len(shapes) != len(model.inputs):
        raise OptionError(
            f"input_shapes must have a shape for each input of {model.name!r} ({_described(model)})"
            f", got {len(shapes)}"
        )
    infos = []
    for tensor, shape in zip(model.inputs, shapes, strict=True):
        told = tuple(None if size < 0 else size for size in tensor.shape)
        infos.append(
            SimpleNamespace(
                name=tensor.name,
                kind="tensor",
                shape=told if shape is None else tuple(shape),
                dtype=dtype_of(tensor.datatype, f"input {tensor.name!r}"),
            )
        )
    return infos


def _described(model: RemoteModel) -> str:
    return ", ".join(f"{it.name}: {it.datatype} {list(it.shape)}" for it in model.inputs)
