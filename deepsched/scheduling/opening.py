"""How a model is opened on streams, at first and again wherever these move."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from deepsched.errors import InferenceError, InputError, OptionError
from deepsched.machine.partition import Stream
from deepsched.machine.shape import cpu_models, describe_shape
from deepsched.machine.state import neighbour_trips_ns
from deepsched.models.batch import BatchSize
from deepsched.models.batching.option import OFF, BatchingOption
from deepsched.models.compiled import OpenedModel, open_model
from deepsched.models.locations import CacheDir
from deepsched.models.prepare import ModelLike, Shapes
from deepsched.models.random_inputs import random_inputs
from deepsched.runtime.model import Model
from deepsched.scheduling.determinism import open_with_one_width
from deepsched.scheduling.placement import Placement
from deepsched.scheduling.scaling import run_lengths

logger = logging.getLogger("deepsched")


@dataclass(frozen=True)
class Opener:
    """What an engine was asked for; see Engine."""

    model: ModelLike
    batch_size: BatchSize
    input_shapes: Shapes | None
    custom_ops: tuple[str, ...]
    cache_dir: CacheDir
    deterministic: bool
    rewrites: str
    batching: BatchingOption

    def open(self, placement: Placement, elsewhere: OpenedModel | None) -> OpenedModel:
        """Its sessions on a placement: from what is open `elsewhere`, if that is given.

        Raises:
            ModelError, OptionError, ThreadError: see open_model.
        """
        layout = placement.layout
        # Beside what serves, which is to have the CPUs.
        open_one = partial(placement.open_session, is_aside=elsewhere is not None)

        def open_groups(groups: list[Stream], options: Mapping[str, object]) -> OpenedModel:
            return open_model(
                self.model,
                self.batch_size,
                self.input_shapes,
                self.custom_ops,
                self.cache_dir,
                {**placement.compile_options, **options},
                groups,
                open_one,
                self.rewrites,
                OFF if placement.is_inspected else self.batching,
                self.deterministic or self.rewrites != "fast",
                layout.pin == "core",
                elsewhere,
            )

        if not self.deterministic:
            return open_groups(layout.groups, {})
        if elsewhere is None:
            return open_with_one_width(open_groups, layout)
        # The same bits as before the move.
        width = elsewhere.width
        assert width is not None
        return open_groups(layout.groups_of(width), {"width": width})._replace(width=width)

    def prepare(
        self, placement: Placement, model: Model, opened: OpenedModel, known_ns: Mapping[int, int]
    ) -> None:
        """Tells a model that nobody uses yet how it is to run.

        Args:
            known_ns: by cores, how long its runs take, as far as that was learned in service.
        """
        tree = placement.layout.tree
        if self.deterministic:
            model.keep_narrow()
        elif tree is not None:
            widths = [tree.num_cores(group) for group in range(len(tree.leaves))]
            if known_ns.keys() >= set(widths):
                model.set_run_ns([known_ns[width] for width in widths])
                return
            try:
                _measure_scaling(placement, model, opened)
            except (OptionError, InputError, InferenceError) as error:
                logger.warning(
                    "requests take one stream each, since how the model scales cannot be measured "
                    "with made-up inputs now: %s",
                    error,
                )

    def warm(
        self, placement: Placement, model: Model, opened: OpenedModel, beside: Placement
    ) -> None:
        """Makes the first runs on other cores, so that no request has to; with made-up inputs,
        unless the model does not take such. Where it can choose, on cores where `beside` does not
        serve."""
        busy = {cpu for stream in beside.layout.streams for cpu in stream.cpus}
        groups = placement.layout.groups
        idle_first = sorted(range(len(groups)), key=lambda it: not busy.isdisjoint(groups[it].cpus))
        with contextlib.suppress(OptionError, InputError, InferenceError):
            model.warm(random_inputs(model.inputs, opened.batch_size), idle_first)


def _measure_scaling(placement: Placement, model: Model, opened: OpenedModel) -> None:
    """Tells the elastic policy how long the model's runs take on groups of each width: what it
    starts from, and corrects in service."""
    layout = placement.layout
    assert layout.tree is not None
    inputs = random_inputs(model.inputs, opened.batch_size)
    cores = [core for stream in layout.streams for core in stream.cores]
    conditions = [
        layout.pin,
        placement.spin,
        layout.topology.cpu_quota,
        [len(stream.cpus) for stream in layout.streams],
        describe_shape(cores),
        cpu_models(),
    ]
    lengths = run_lengths(
        layout.tree,
        lambda group, seconds: model.measure(group, inputs, seconds),
        opened.measurements,
        conditions,
        None if layout.pin == "none" else {cpu for core in cores for cpu in core.cpus},
        () if layout.pin == "none" else neighbour_trips_ns([core.cpus[0] for core in cores]),
    )
    model.set_run_ns(lengths)
