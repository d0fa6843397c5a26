"""Every integer option takes the same integers, and refuses the same values."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deepsched import Context, Engine, Topology, partition
from deepsched.advice import advise
from deepsched.benchmark import measure
from deepsched.errors import DeepschedError
from deepsched.machine.partition import most_cores
from deepsched.models.prepare import prepare_model
from tests.support import models

HERE = most_cores(Topology.detect())
MACHINE = Topology.synthetic(packages=2, cores_per_l3=4, threads_per_core=2)


class Option(NamedTuple):
    """An integer option, and a call that it is given to."""

    name: str
    call: Callable[[Engine, Any], object]
    lowest: int
    highest: int | None
    """The highest that is allowed; None where only memory bounds it."""
    takes_none: bool = False


def context(**options):
    with Context(**{"topology": MACHINE, "pin": "none", **options}):
        pass


def trace(engine, capacity):
    with engine.context.trace(capacity):
        pass


def measured(**options):
    return measure(sum, [1], **{"seconds": 1e-3, "warmup_seconds": 0.0, **options})


def timed(engine, **options):
    inputs = engine.generate_random_inputs()
    return engine.benchmark(inputs, **{"num_iterations": 1, "num_warmup_iterations": 0, **options})


class Started(Exception):
    """The options were taken, and measuring begins."""


def advised(**options):
    def on_progress(_):
        raise Started

    with suppress(Started):
        advise(models.mlp(), cache_dir=None, on_progress=on_progress, **options)


OPTIONS = [
    Option(
        "priority", lambda engine, n: engine.run(engine.generate_random_inputs(), priority=n), -1, 1
    ),
    Option("num_cores", lambda engine, n: partition(MACHINE, n), 1, 8, True),
    Option("num_streams", lambda engine, n: partition(MACHINE, 8, n), 1, 8, True),
    Option("threads_per_core", lambda engine, n: partition(MACHINE, threads_per_core=n), 1, 2),
    Option("num_cores", lambda engine, n: context(num_cores=n), 1, 8, True),
    Option("num_streams", lambda engine, n: context(num_streams=n), 1, 8, True),
    Option(
        "num_streams", lambda engine, n: context(num_streams=n, scheduler="elastic"), 1, 8, True
    ),
    Option("queue_capacity", lambda engine, n: context(num_streams=1, queue_capacity=n), 1, 2**20),
    Option("capacity", trace, 1, 2**30),
    Option("packages", lambda engine, n: Topology.synthetic(n), 1, None),
    Option("cores_per_l3", lambda engine, n: Topology.synthetic(cores_per_l3=n), 1, None),
    Option("threads_per_core", lambda engine, n: Topology.synthetic(threads_per_core=n), 1, None),
    Option("batch_size", lambda engine, n: prepare_model(models.mlp(), n, None), 1, None, True),
    Option("input_shapes", lambda engine, n: prepare_model(models.mlp(), 1, [[n, 64]]), 1, None),
    Option("in_flight", lambda engine, n: list(engine.map([], n)), 1, None, True),
    Option("callers", lambda engine, n: measured(callers=n), 1, None, True),
    Option("batch_size", lambda engine, n: measured(batch_size=n), 1, None, True),
    Option("seed", lambda engine, n: measured(seed=n), 0, None),
    Option("num_iterations", lambda engine, n: timed(engine, num_iterations=n), 1, None),
    Option(
        "num_warmup_iterations", lambda engine, n: timed(engine, num_warmup_iterations=n), 0, None
    ),
    Option("callers", lambda engine, n: advised(callers=n), 1, None, True),
    Option("num_cores", lambda engine, n: advised(num_cores=n), 1, HERE, True),
    Option("batch_size", lambda engine, n: advised(batch_size=n), 1, None, True),
]

TYPES = [int, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


class Index:
    """An integer that is none of Python's, nor numpy's."""

    def __init__(self, number):
        self.number = int(number)

    def __index__(self):
        return self.number

    def __repr__(self):
        return f"Index({self.number})"


options = pytest.mark.parametrize(
    "option", [pytest.param(it, id=f"{number}-{it.name}") for number, it in enumerate(OPTIONS)]
)


@options
def test_integer_options_take_whatever_has_an_index(option):
    most = min(4, 4 if option.highest is None else option.highest)

    with Engine(models.mlp(), None, cache_dir=None) as engine:

        @given(st.integers(option.lowest, most), st.sampled_from([*TYPES, Index]))
        def takes(number, kind):
            assume(number >= 0 or not issubclass(kind, np.unsignedinteger))
            option.call(engine, kind(number))

        takes()
        if option.takes_none:
            option.call(engine, None)


@options
def test_integer_options_refuse_everything_else_by_name(option):
    most = 2**63 - 1 if option.highest is None else option.highest
    wrong = (
        st.booleans()
        | st.booleans().map(np.bool_)
        | st.floats()
        | st.floats().map(np.float64)
        | st.text()
        | st.binary()
        | st.integers(max_value=option.lowest - 1)
        | st.integers(min_value=most + 1)
        | st.integers(-128, option.lowest - 1).map(np.int8)
        | st.just([1])
    )
    if not option.takes_none:
        wrong |= st.none()

    with Engine(models.mlp(), None, cache_dir=None) as engine:

        @given(wrong)
        def refuses(value):
            with pytest.raises(DeepschedError) as caught:
                option.call(engine, value)
            assert isinstance(caught.value, ValueError)
            assert option.name in str(caught.value)
            assert repr(value) in str(caught.value)

        refuses()
