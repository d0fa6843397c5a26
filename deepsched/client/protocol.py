"""What the clients of REST and of gRPC have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class RemoteTensor(NamedTuple):
    """An input as a server describes it."""

    name: str
    datatype: str
    """The protocol's name, such as FP32."""
    shape: tuple[int, ...]
    """-1: any size."""


class RemoteModel(NamedTuple):
    """A model as a server describes it."""

    name: str
    version: str
    """Empty: the server chooses."""
    inputs: tuple[RemoteTensor, ...]


class Client(Protocol):
    """A client of one of the protocol's two forms. Its methods raise ServerError."""

    def server(self) -> str:
        """The server's name and version."""

    def models(self) -> list[str]:
        """Names of the models that the server has; empty if it does not tell."""

    def model(self, name: str, version: str) -> RemoteModel:
        """What the server says of a model."""

    def sender(
        self, model: RemoteModel, arrays: Sequence[np.ndarray[Any, Any]]
    ) -> Callable[[], None]:
        """A function that sends these inputs and waits for the answer; called from several threads
        at once, each of which has a connection of its own."""

    def close(self) -> None:
        """Ends the connections."""
