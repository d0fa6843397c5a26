"""From a model's file to a version that serves: opened, compared with its configuration, warmed
up."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from deepsched.context import Context
from deepsched.engine import Engine
from deepsched.errors import DeadlineExceeded, InferenceError, InputError, OptionError
from deepsched.server.model_version import ModelVersion
from deepsched.server.repository.found import FoundModel
from deepsched.server.repository.model_options import DeclaredTensor
from deepsched.server.repository.warm_up import values_of
from deepsched.server.tensors import TensorSpec

logger = logging.getLogger("deepsched.server")

_WARM_UP_SECONDS = 300.0
"""After which a model is taken not to answer at all."""


def open_version(
    found: FoundModel, version: str, context: Context, defaults: Mapping[str, Any]
) -> ModelVersion:
    """Opens a version on the streams of `context`, beside whatever serves there.

    Takes as long as it takes to compile the model: not for the event loop's thread.

    Args:
        defaults: options of Engine that the model's own go before.

    Raises:
        DeepschedError: it cannot be opened, does not fit its configuration, or does not answer.
    """
    options = found.options
    if options.unread:
        logger.info(
            "version %s of model %r: of its configuration this server leaves out %s",
            version,
            found.name,
            ", ".join(options.unread),
        )
    # Any batch that the model takes, as clients of servers expect; Engine's own default is 1.
    given = {"batch_size": None, **defaults, **options.engine}
    engine = Engine(found.versions[version], context=context, **given)
    if options.max_batch_size:  # for a run as for a request: the model may not take more
        engine._served.limit_together(options.max_batch_size)
    try:
        opened = ModelVersion(
            found.name,
            version,
            engine,
            max_batch_size=options.max_batch_size,
            labels=options.labels,
            limits=options.limits,
        )
        _check_tensors("input", opened.inputs, options.inputs)
        _check_tensors("output", opened.outputs, options.outputs)
        _check_batch(opened)
        _warm_up(opened, found)
    except BaseException:
        engine.close()
        raise
    return opened


def _check_tensors(
    what: str, specs: Mapping[str, TensorSpec], declared: Sequence[DeclaredTensor]
) -> None:
    """Raises OptionError where the configuration speaks of another model than this one."""
    for tensor in declared:
        spec = specs.get(tensor.name)
        if spec is None:
            raise OptionError(
                f"the configuration has an {what} {tensor.name!r}, the model has {list(specs)}"
            )
        if tensor.datatype not in ("", spec.datatype):
            raise OptionError(
                f"{what} {tensor.name!r}: the configuration says {tensor.datatype}, the model "
                f"{spec.datatype}"
            )
        if tensor.shape is not None and not _fit(tensor.shape, spec.shape):
            raise OptionError(
                f"{what} {tensor.name!r}: the configuration says {list(tensor.shape)}, its batch "
                f"included, the model {list(spec.shape)}"
            )


def _fit(declared: Sequence[int], shape: Sequence[int]) -> bool:
    return len(declared) == len(shape) and all(
        -1 in sizes or sizes[0] == sizes[1] for sizes in zip(declared, shape, strict=True)
    )


def _check_batch(opened: ModelVersion) -> None:
    if opened.max_batch_size <= 1:
        return
    for spec in (*opened.inputs.values(), *opened.outputs.values()):
        if spec.shape[:1] != (-1,) and not spec.is_optional:
            raise OptionError(
                f"max_batch_size is {opened.max_batch_size}, but the first dimension of "
                f"{spec.name!r} is not open: its shape is {list(spec.shape)}"
            )


def _warm_up(opened: ModelVersion, found: FoundModel) -> None:
    """Runs what the configuration asks for, which must be answered, or a request with made-up
    inputs on each stream, which may not fit what the model expects of numbers."""
    engine = opened.engine
    try:
        for warm_up in found.options.warm_ups:
            values = values_of(warm_up, opened.inputs)
            for _ in range(warm_up.repeat):
                engine.run(opened.in_order(values), timeout=_WARM_UP_SECONDS)
        if not found.options.warm_ups:
            _try_streams(engine, found.name)
    except DeadlineExceeded:
        raise InferenceError(
            f"model {found.name!r} has not answered its warm-up in {_WARM_UP_SECONDS:g} s"
        ) from None


def _try_streams(engine: Engine, name: str) -> None:
    try:
        inputs = engine.generate_random_inputs()
        engine.run(inputs, timeout=_WARM_UP_SECONDS)
        for _ in engine.map(itertools.repeat(inputs, engine.num_streams)):
            pass
    except (OptionError, InputError, InferenceError) as error:
        logger.warning(
            "model %r serves without a warm-up, since inputs that were made up do not fit: %s. "
            "model_warmup in its config.pbtxt gives others",
            name,
            error,
        )
