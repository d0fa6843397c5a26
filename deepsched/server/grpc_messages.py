"""The messages of inference.proto, in a pool of their own: generated code would register them where
tritonclient, in the same process, registers the same."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

SERVICE = "inference.GRPCInferenceService"

_pool = DescriptorPool()
for _file in FileDescriptorSet.FromString(
    files("deepsched.server").joinpath("inference.binpb").read_bytes()
).file:
    _pool.Add(_file)


def message_class(name: str) -> Any:
    """The class of a message.

    >>> message_class("ModelReadyRequest")(name="resnet").SerializeToString()
    b'\\n\\x06resnet'
    """
    return GetMessageClass(_pool.FindMessageTypeByName(f"inference.{name}"))


def methods() -> list[tuple[str, Any, Any]]:
    """Name, request and response of each call of the service."""
    service = _pool.FindServiceByName(SERVICE)
    return [
        (method.name, GetMessageClass(method.input_type), GetMessageClass(method.output_type))
        for method in service.methods
    ]
