"""ModelOptions: what a model is opened with, and what its requests may ask for."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from deepsched.engine import Engine
from deepsched.server.request_limits import RequestLimits

STREAM_OPTIONS = ("num_cores", "num_streams", "scheduler", "pin")
"""Options of Engine that are the streams', not the model's."""

LEASE_OPTIONS = ("cores", "lease_timeout")
"""Those that are all streams' of the server."""

ENGINE_OPTIONS = tuple(
    name
    for name in inspect.signature(Engine).parameters
    if name not in ("model", "context", *STREAM_OPTIONS, *LEASE_OPTIONS)
)
"""Options of Engine that are the model's."""


class VersionPolicy(NamedTuple):
    """Which of the versions that there are serve.

    >>> VersionPolicy(latest=2).choose(["9", "10", "3"])
    ['9', '10']
    >>> VersionPolicy(specific=("3", "4")).choose(["9", "10", "3"])
    ['3']
    """

    latest: int | None = 1
    """How many of the highest; None for all."""
    specific: tuple[str, ...] | None = None
    """These and no others."""

    def choose(self, versions: Iterable[str]) -> list[str]:
        """Those of `versions` that serve, ascending."""
        ordered = sorted(versions, key=int)
        if self.specific is not None:
            return [version for version in ordered if version in self.specific]
        return ordered if self.latest is None else ordered[-self.latest :]


class DeclaredTensor(NamedTuple):
    """An input or an output, as a configuration declares it."""

    name: str
    datatype: str
    """The protocol's name, such as FP32; empty for any."""
    shape: tuple[int, ...] | None
    """The model's, its batch included; -1 for any size. None for any."""


class WarmUpInput(NamedTuple):
    """A value for one input of a warm-up request."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    source: str
    """ "zero", "random", or the path of a file with the raw bytes."""


class WarmUp(NamedTuple):
    """Requests that a version must answer before it serves."""

    name: str
    inputs: tuple[WarmUpInput, ...]
    repeat: int


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What a configuration says of a model; the defaults are those of a model without one."""

    engine: Mapping[str, Any] = field(default_factory=dict)
    """Options of Engine. By default a request may have any batch that the model takes."""
    version_policy: VersionPolicy = VersionPolicy()
    max_batch_size: int | None = None
    """Most items in a request; None for as many as the model takes, 0 for a model without a
    batch."""
    limits: RequestLimits = RequestLimits()
    inputs: tuple[DeclaredTensor, ...] = ()
    outputs: tuple[DeclaredTensor, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For outputs that are classes, the name of each class."""
    warm_ups: tuple[WarmUp, ...] = ()
    """None: one request with made-up inputs."""
    num_instances: int | None = None
    """Requests at once on CPUs, as an instance group asks for."""
    unread: tuple[str, ...] = ()
    """Fields of the configuration that say nothing to this server."""
    files: tuple[str, ...] = ()
    """What else was read, beside the model: a change of these is a change of the model."""
