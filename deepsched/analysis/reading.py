"""Parses ONNX Runtime's profile of a session into times by operator and run: pure functions.

ONNX Runtime writes a list of events in Chrome's trace format, in the order in which they ended;
times are microseconds, rounded down (onnxruntime/core/common/profiler.cc). A run has an event of
category "Node" for each kernel, whose name ends in "_kernel_time", then one named
"SequentialExecutor::Execute" for each graph, last "model_run". Our sessions run one operator at a
time, so events of one run do not overlap unless they nest.
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


class OperatorKey(NamedTuple):
    """Identifies an operator of a model."""

    path: tuple[str, ...]
    """Its name, preceded by those of the operators whose subgraphs it is in."""
    node: int
    """Index of its node in its graph."""
    op_type: str


class OperatorCall(NamedTuple):
    """Shapes, type and size of the tensors of one call of an operator."""

    input_shapes: tuple[Shape, ...]
    """Without constants that the kernel has prepacked: ONNX Runtime does not report these."""
    output_shapes: tuple[Shape, ...]
    dtype: str
    """ONNX Runtime's name ("float", "uint8") of the type of the first input, or of the first output
    if there is no input; empty if there is neither."""
    activation_bytes: int
    """Size of the outputs and of the inputs that are not constants."""


@dataclass
class OperatorProfile:
    """The calls and times of one operator in a profile."""

    calls: Counter[OperatorCall] = field(default_factory=Counter)
    """Over all runs."""
    num_calls: list[int] = field(default_factory=list)
    """By run; 0 in a branch that was not taken."""
    microseconds: list[int] = field(default_factory=list)
    """By run: time of all its calls, without that of the operators in its subgraphs."""

    def pad(self, num_runs: int) -> None:
        """Appends zeros for the runs that it was not called in."""
        self.num_calls += [0] * (num_runs - len(self.num_calls))
        self.microseconds += [0] * (num_runs - len(self.microseconds))


class Profile(NamedTuple):
    """The profile of a session's runs."""

    operators: dict[OperatorKey, OperatorProfile]
    """In order of their first end."""
    run_us: list[int]
    """Time of each run."""


def read_events(path: Path) -> Iterator[Event]:
    """The events of a profile's file, one line at a time: it may be larger than memory."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            text = line.strip().rstrip(",")
            if text not in ("[", "]", ""):
                yield json.loads(text)


def read_profile(events: Iterable[Event], num_warmups: int = 0) -> Profile:
    """Parses a profile, without its first `num_warmups` runs.

    The time of a subgraph is subtracted from the operator that ran it: nothing counts twice.
    """
    operators: dict[OperatorKey, OperatorProfile] = {}
    run_us: list[int] = []
    for number, (nodes, microseconds) in enumerate(_runs(events)):
        if number < num_warmups:
            continue
        run_us.append(microseconds)
        for node in nodes:
            key = OperatorKey(node.path, node.number, node.args["op_name"])
            operator = operators.setdefault(key, OperatorProfile())
            operator.pad(len(run_us))
            operator.calls[_describe(node.args)] += 1
            operator.num_calls[-1] += 1
            operator.microseconds[-1] += node.own_us
    for operator in operators.values():
        operator.pad(len(run_us))
    return Profile(operators, run_us)


@dataclass
class _Node:
    path: tuple[str, ...]
    number: int
    began: int
    own_us: int
    args: Event


def _runs(events: Iterable[Event]) -> Iterator[tuple[list[_Node], int]]:
    """The nodes of each run in the order in which they ended, and the time of the run in us."""
    nodes: list[_Node] = []
    # (begin, duration) of the subgraphs whose operator has not ended.
    executed: list[tuple[int, int]] = []
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
            # Events come in order of their ends: graphs that began after this operator, and have
            # ended before it, are its subgraphs.
            inside = began + took + 1
            while executed and executed[-1][0] >= began:
                inside, subgraph_us = executed.pop()
                node.own_us = max(0, node.own_us - subgraph_us)
            for other in reversed(nodes):
                if other.began < inside:
                    break
                other.path = path + other.path
            nodes.append(node)


def _describe(args: Event) -> OperatorCall:
    inputs = [pair for typed in args.get("input_type_shape", ()) for pair in typed.items()]
    outputs = [pair for typed in args.get("output_type_shape", ()) for pair in typed.items()]
    return OperatorCall(
        input_shapes=tuple(tuple(shape) for _, shape in inputs),
        output_shapes=tuple(tuple(shape) for _, shape in outputs),
        dtype=(inputs or outputs or [("", ())])[0][0],
        activation_bytes=sum(int(args.get(f"{it}_size", 0)) for it in ("activation", "output")),
    )
