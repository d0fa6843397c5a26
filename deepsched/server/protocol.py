"""What a server says of itself and of its models, in the protocol's fields; REST and gRPC alike."""

from __future__ import annotations

from typing import Any

from deepsched.server.errors import NotReady
from deepsched.server.server import Server
from deepsched.version import __version__

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
    "system_shared_memory",
]


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions."""
    return {"name": "deepsched", "version": __version__, "extensions": EXTENSIONS}


def model_metadata(server: Server, name: str, version: str) -> dict[str, Any]:
    """Inputs and outputs of a model.

    Raises:
        ModelNotFound, NotReady: see `Repository.get`.
    """
    found = server.repository.get(name, version)
    return found.metadata(server.repository.versions(name))


def is_model_ready(server: Server, name: str, version: str) -> bool:
    """Whether a model takes requests.

    Raises:
        ModelNotFound: there is none.
    """
    try:
        server.repository.get(name, version)
    except NotReady:
        return False
    return True


def statistics(server: Server, name: str, version: str) -> dict[str, Any]:
    """Of one model, or of all where `name` is empty.

    Raises:
        ModelNotFound, NotReady: see `Repository.get`.
    """
    if name and not version:
        found = [it for it in server.repository.serving() if it.name == name]
        if not found:
            found = [server.repository.get(name)]
    elif name:
        found = [server.repository.get(name, version)]
    else:
        found = server.repository.serving()
    return {"model_stats": [version.statistics() for version in found]}


def index(server: Server, ready: bool) -> list[dict[str, Any]]:
    """The repository's."""
    return [entry._asdict() for entry in server.repository.index(ready)]


def regions(server: Server, name: str) -> list[dict[str, Any]]:
    """Registered shared memory; "": all.

    Raises:
        RequestError: no such region.
    """
    return [
        {
            "name": region.name,
            "key": region.key,
            "offset": region.offset,
            "byte_size": region.byte_size,
        }
        for region in server.regions.status(name)
    ]
