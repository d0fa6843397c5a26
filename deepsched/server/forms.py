"""Forms: what requests say beside their tensors, compared with the model once.

Clients say the same again and again, with other tensors behind it; reading it costs more than a
small model's run does. So a version of a model remembers a few forms by their bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from deepsched.server.datatypes import BYTES
from deepsched.server.errors import RequestError
from deepsched.server.model_version import ModelVersion
from deepsched.server.shared_memory import Regions
from deepsched.server.tensors import Array, TensorSpec, from_raw

MOST_BYTES = 1024
"""Of what is remembered; longer ones hold the tensors themselves."""

_MOST = 64

_SPECIAL = {"classification", "shared_memory_region"}


class Given(NamedTuple):
    """An input as the request describes it."""

    spec: TensorSpec
    shape: list[int]
    size: int
    """Of elements."""
    raw: Any
    """Where it is among the raw tensors, in the codec's terms; None: elsewhere."""
    parameters: dict[str, Any]
    data: Any
    """In the codec's terms, where it is neither raw nor in shared memory."""


class Wanted(NamedTuple):
    """An output that is asked for."""

    spec: TensorSpec
    parameters: dict[str, Any]
    is_raw: bool


class Form(NamedTuple):
    """See the module."""

    request_id: str
    inputs: list[Given]
    wanted: list[Wanted]
    timeout: float | None
    """Seconds."""
    priority: int
    """The engine's."""
    num_raw: int
    """How much is behind it, in the codec's terms."""
    is_plain: bool
    """Whether all tensors come and go as raw numbers: then the head of an answer, which is all but
    its tensors, depends on the shapes of the outputs alone."""
    heads: dict[tuple[tuple[int, ...], ...], Any]
    """Heads of answers by these shapes, in the codec's terms."""

    def seconds(self, limit: float | None) -> float | None:
        """What the request may take, where `limit` limits it too."""
        if limit is None or (self.timeout is not None and self.timeout < limit):
            return self.timeout
        return limit

    def arrays(self, outputs: list[Any]) -> list[Array]:
        """Those of `outputs` that are wanted."""
        return [outputs[spec.position] for spec, _, _ in self.wanted]


def make_form(
    version: ModelVersion,
    request_id: str,
    parameters: dict[str, Any],
    inputs: list[Given],
    wanted: list[Wanted],
    num_raw: int,
) -> Form:
    """A form of what has been compared.

    Raises:
        RequestError: a timeout or a priority that is none.
    """
    limits = version.limits
    is_plain = all(it.raw is not None for it in inputs) and all(
        it.is_raw and it.spec.datatype != BYTES and not _SPECIAL.intersection(it.parameters)
        for it in wanted
    )
    return Form(
        request_id,
        inputs,
        wanted,
        limits.seconds(parameters, None),
        limits.engine_priority(parameters),
        num_raw,
        is_plain,
        {},
    )


def check_outputs(version: ModelVersion, count: int) -> None:
    """Raises RequestError where more outputs are asked for than there are: some would be sent again
    and again."""
    if count > len(version.outputs):
        raise RequestError(
            f"{count} outputs are asked for, but model {version.name!r} has {len(version.outputs)}"
        )


def arrays_of(
    form: Form,
    raw: Any,
    regions: Regions,
    decode: Callable[[TensorSpec, list[int], int, Any], Array],
) -> dict[str, Array]:
    """The inputs by name.

    Args:
        raw: what is behind the form; `Given.raw` of it is an input's bytes.
        regions: of shared memory.
        decode: makes an array of an input's `data`.

    Raises:
        InputError, RequestError: the bytes or the data are not of the described array.
    """
    arrays: dict[str, Array] = {}
    for spec, shape, count, where, parameters, data in form.inputs:
        if where is not None:
            arrays[spec.name] = from_raw(spec, shape, count, raw[where])
        elif "shared_memory_region" in parameters:
            view = regions.view(f"input {spec.name!r}", parameters)
            arrays[spec.name] = from_raw(spec, shape, count, view)
        else:
            arrays[spec.name] = decode(spec, shape, count, data)
    return arrays


def remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    """Keeps the newest few."""
    if len(known) >= _MOST:
        del known[next(iter(known))]
    known[key] = value
