"""Traces: whatever was recorded, the timeline is JSON whose times are numbers, the picture is XML,
the text is as wide as it was asked for, and runs are told apart.

The bytes are the choices of a hypothesis strategy: entries as the native core writes them, with
times that are in order, of streams that there are.
"""

from __future__ import annotations

import json
import math
import random
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsched.machine.partition import partition
from deepsched.machine.topology import Topology
from deepsched.runtime.request import OUTCOMES
from deepsched.runtime.tracing import ENTRY
from deepsched.scheduler import Scheduler
from deepsched.timeline.perfetto import to_perfetto
from deepsched.timeline.records import TracedModel
from deepsched.timeline.svg import draw
from deepsched.timeline.trace import Trace
from deepsched.timeline.window import windows
from fuzz.target import Target

_STREAMS = partition(Topology.synthetic(packages=1, cores_per_l3=4), num_streams=4).streams
_RANGES = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 2), (2, 4), (0, 4)]
_MODELS = {
    0: TracedModel("a", 1),
    1: TracedModel("<b&\"'>\0", None),
    2: TracedModel("\ud800ä\n" * 40, 2**31),
}

_gaps = st.integers(0, 2**8) | st.integers(0, 2**62 // 4)


@st.composite
def _entries(draw: st.DrawFn) -> Any:
    submitted = draw(st.integers(0, 2**50)) + draw(st.sampled_from([0, 2**61]))
    ran = draw(st.booleans())
    started = submitted + draw(_gaps) if ran else 0
    ended = max(submitted, started) + draw(_gaps)
    group = draw(st.integers(0, len(_RANGES) - 1)) if ran else -1
    return (
        *(submitted, started, ended, draw(st.sampled_from(sorted(_MODELS))), group),
        *(draw(st.sampled_from(sorted(OUTCOMES))), draw(st.booleans()), int(ran) * draw(_counts)),
    )


_counts = st.integers(1, 4)


@settings(database=None, deadline=None)
@given(
    entries=st.lists(_entries(), max_size=12),
    began=st.integers(0, 2**60),
    length=st.integers(1, 2**60),
    width=st.integers(1, 200),
)
def _drawn(entries: list[Any], began: int, length: int, width: int) -> None:
    trace = Trace(Scheduler.elastic, _STREAMS, began)
    trace._fill(np.array(entries, ENTRY).tobytes(), 0, 0, _MODELS, _RANGES)
    trace.ended_ns = began + length
    events = _events(trace)
    assert len(json.loads(json.dumps(events))) == len(events)
    ET.fromstring(draw([trace]))
    assert trace.text(width)
    for window in windows([trace]):
        for run in window.runs():
            assert 0 <= run.begin_ns < run.end_ns <= window.length_ns
    numbers = [number for run in trace.batches.values() for number in run]
    assert sorted(numbers) == [i for i, it in enumerate(trace) if it.num_together]


def _events(trace: Trace) -> list[Any]:
    events: list[Any] = to_perfetto([trace])["traceEvents"]
    for event in events:
        assert math.isfinite(event.get("ts", 0))
        assert event.get("dur", 0) >= 0
    return events


def check(data: bytes) -> None:
    _drawn.hypothesis.fuzz_one_input(data)  # type: ignore[attr-defined]


def _seeds() -> Iterator[bytes]:
    source = random.Random(0)
    for length in (16, 64, 256, 256, 1024, 1024):
        yield source.randbytes(length)


TARGET = Target(check, _seeds)
