"""ONNX Runtime's timeline of a session, as what each operator took in each run: pure functions.

The timeline is a list of events in the order in which they ended, in Chrome's format; times are
microseconds, rounded down (onnxruntime/core/common/profiler.cc). Of a run there are: an event of
category "Node" for each kernel, whose name ends in "_kernel_time"; after those of each graph one
named "SequentialExecutor::Execute"; last "model_run". Sessions of ours run one operator at a time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Shape = tuple[int, ...]
Event = Mapping[str, Any]


class Key(NamedTuple):
    """Which operator it is."""

    path: tuple[str, ...]
    """Its name, after those of the operators whose subgraphs it is in."""
    node: int
    """Its number in its graph, in the file's order."""
    op_type: str


class Call(NamedTuple):
    """What one call of an operator worked on."""

    input_shapes: tuple[Shape, ...]
    """Without the constants that the kernel has packed for itself."""
    output_shapes: tuple[Shape, ...]
    dtype: str
    """As ONNX Runtime writes it ("float", "uint8"), of the first input, or output if it has none;
    empty if it has neither."""
    activation_bytes: int
    """The inputs that are no constants, and the outputs."""


@dataclass
class Reading:
    """What a timeline says of one operator."""

    calls: Counter[Call] = field(default_factory=Counter)
    """Of all runs together."""
    num_calls: list[int] = field(default_factory=list)
    """By run; 0 in a branch not taken."""
    microseconds: list[int] = field(default_factory=list)
    """By run: of all its calls, without the operators inside of it."""

    def pad(self, num_runs: int) -> None:
        """Adds the runs that it was not called in."""
        self.num_calls += [0] * (num_runs - len(self.num_calls))
        self.microseconds += [0] * (num_runs - len(self.microseconds))


class Profile(NamedTuple):
    """What a timeline says of a session's runs."""

    operators: dict[Key, Reading]
    """In the order in which they first ended."""
    run_us: list[int]
    """By run: all of it."""


def events_of(path: Path) -> Iterator[Event]:
    """The events of a timeline's file, which has one a line: it may be larger than memory."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            text = line.strip().rstrip(",")
            if text not in ("[", "]", ""):
                yield json.loads(text)


def read(events: Iterable[Event], num_warmups: int = 0) -> Profile:
    """Reads a timeline. The first `num_warmups` runs are left out.

    The time of a subgraph is taken off the operator that ran it, so that nothing counts twice.
    """
    operators: dict[Key, Reading] = {}
    run_us: list[int] = []
    for number, (nodes, microseconds) in enumerate(_runs(events)):
        if number < num_warmups:
            continue
        run_us.append(microseconds)
        for node in nodes:
            key = Key(node.path, node.number, node.args["op_name"])
            reading = operators.setdefault(key, Reading())
            reading.pad(len(run_us))
            reading.calls[_describe(node.args)] += 1
            reading.num_calls[-1] += 1
            reading.microseconds[-1] += node.own_us
    for reading in operators.values():
        reading.pad(len(run_us))
    return Profile(operators, run_us)


@dataclass
class _Node:
    path: tuple[str, ...]
    number: int
    began: int
    own_us: int
    args: Event


def _runs(events: Iterable[Event]) -> Iterator[tuple[list[_Node], int]]:
    """Of each run: its nodes in the order of their ends, and how long all of it took."""
    nodes: list[_Node] = []
    executed: list[tuple[int, int]] = []  # subgraphs whose operator has not ended: (began, took)
    for event in events:
        name, began, took = event["name"], event["ts"], event["dur"]
        if name == "model_run":
            yield nodes, took
            nodes, executed = [], []
        elif name == "SequentialExecutor::Execute":
            executed.append((began, took))
        elif event["cat"] == "Node" and name.endswith("_kernel_time"):
            args = event["args"]
            path = (name.removesuffix("_kernel_time"),)
            node = _Node(path, int(args.get("node_index", -1)), began, took, args)
            # What began no earlier than this operator, which is the next to end, is inside of it.
            inside = began + took + 1
            while executed and executed[-1][0] >= began:
                inside, subgraph_us = executed.pop()
                node.own_us = max(0, node.own_us - subgraph_us)
            for other in reversed(nodes):
                if other.began < inside:
                    break
                other.path = path + other.path
            nodes.append(node)


def _describe(args: Event) -> Call:
    inputs = [pair for typed in args.get("input_type_shape", ()) for pair in typed.items()]
    outputs = [pair for typed in args.get("output_type_shape", ()) for pair in typed.items()]
    return Call(
        input_shapes=tuple(tuple(shape) for _, shape in inputs),
        output_shapes=tuple(tuple(shape) for _, shape in outputs),
        dtype=(inputs or outputs or [("", ())])[0][0],
        activation_bytes=sum(int(args.get(f"{it}_size", 0)) for it in ("activation", "output")),
    )
