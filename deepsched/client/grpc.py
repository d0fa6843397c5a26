"""GrpcClient: the Open Inference Protocol v2 over gRPC, as a load generator needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deepsched.client.protocol import RemoteModel, RemoteTensor
from deepsched.errors import OptionError, ServerError
from deepsched.server.tensors import to_raw

_ANSWER_SECONDS = 300.0


class GrpcClient:
    """See the module.

    Raises:
        OptionError: grpcio is not installed.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            import grpc

            from deepsched.server.grpc_messages import SERVICE, message_class
        except ImportError as error:
            raise OptionError(
                f"a grpc:// server needs grpcio ({error}); pip install 'deepsched[serve]'"
            ) from error
        self._grpc: Any = grpc
        self._message_class = message_class
        self._service = SERVICE
        self._target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._of_thread = threading.local()
        self._channels: list[Any] = []

    def server(self) -> str:
        """The server's name and version."""
        found = self._ask("ServerMetadata")
        return f"{found.name or 'a server'} {found.version}".strip()

    def models(self) -> list[str]:
        """Names in the repository's index."""
        try:
            found = self._ask("RepositoryIndex")
        except ServerError:
            return []  # an extension of the protocol
        return list(dict.fromkeys(str(entry.name) for entry in found.models))

    def model(self, name: str, version: str) -> RemoteModel:
        """What the server says of a model."""
        found = self._ask("ModelMetadata", name=name, version=version)
        inputs = tuple(RemoteTensor(it.name, it.datatype, tuple(it.shape)) for it in found.inputs)
        return RemoteModel(name, version, inputs)

    def sender(
        self, model: RemoteModel, arrays: Sequence[np.ndarray[Any, Any]]
    ) -> Callable[[], None]:
        """See protocol.Client."""
        request = self._message_class("ModelInferRequest")(
            model_name=model.name, model_version=model.version
        )
        for tensor, array in zip(model.inputs, arrays, strict=True):
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
            request.raw_input_contents.append(bytes(to_raw(array)))
        data = request.SerializeToString()

        def send() -> None:
            self._call("ModelInfer", data)

        return send

    def _ask(self, rpc: str, **fields: Any) -> Any:
        request = self._message_class(f"{rpc}Request")(**fields)
        answer = self._call(rpc, request.SerializeToString())
        return self._message_class(f"{rpc}Response").FromString(answer)

    def _call(self, rpc: str, request: bytes) -> bytes:
        try:
            answer: bytes = self._method(rpc)(request, timeout=_ANSWER_SECONDS)
        except self._grpc.RpcError as error:
            raise ServerError(
                f"grpc://{self._target}: {rpc} was answered with {error.code().name}: "
                f"{error.details()}"
            ) from error
        return answer

    def _method(self, rpc: str) -> Any:
        """Of this thread's channel: threads that share a connection wait for each other. Messages
        go and come as bytes."""
        methods: dict[str, Any] | None = getattr(self._of_thread, "methods", None)
        if methods is None:
            options = [
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
            ]
            channel = self._grpc.insecure_channel(self._target, options)
            self._channels.append(channel)
            self._of_thread.channel = channel
            methods = self._of_thread.methods = {}
        if rpc not in methods:
            methods[rpc] = self._of_thread.channel.unary_unary(f"/{self._service}/{rpc}")
        return methods[rpc]

    def close(self) -> None:
        """Ends the connections."""
        for channel in self._channels:
            channel.close()
