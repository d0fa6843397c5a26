"""If, Loop, Scan and functions around steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.support.graphs.draft import WORLDS, Draft, Refused, Value, constant_node
from tests.support.graphs.picking import FLOATS, tensor

Grow = Callable[[st.DrawFn, Draft, int], None]

_MOST_DEPTH = 2


def _child(draft: Draft, is_isolated: bool = False) -> Draft:
    if draft.depth >= _MOST_DEPTH:
        raise Refused("deep enough")
    return Draft(draft.root, draft, is_isolated)


def _steps(draw: st.DrawFn) -> int:
    return draw(st.integers(1, 3))


def branches(draw: st.DrawFn, draft: Draft, grow: Grow) -> None:
    """If, on a value or a constant; the branches' shapes may differ."""
    one, other = _child(draft), _child(draft)
    grow(draw, one, _steps(draw))
    if not one.made:
        raise Refused("an empty branch")
    first = one.made[-1]
    grow(draw, other, draw(st.integers(0, 1)))
    same = [
        it for it in other.values if it.is_tensor == first.is_tensor and it.dtype == first.dtype
    ]
    if not same:
        raise Refused("no value of that type in the other branch")
    (second,) = other.add("Identity", [draw(st.sampled_from(same))])
    if draw(st.booleans()):
        condition = draft.constant(np.array(draw(st.booleans())))
    else:
        x = tensor(draw, draft)
        axes = list(range(x.rank))
        (total,) = draft.add("ReduceMax", [x], keepdims=0) if axes else (x,)
        (condition,) = draft.add("Cast", draft.add("Relu", [total]), to=TensorProto.BOOL)
    output = draft.root.name("v")
    draft.add_node(
        helper.make_node(
            "If",
            [condition.name],
            [output],
            then_branch=one.as_graph([first], draw),
            else_branch=other.as_graph([second], draw),
        )
    )


def _next_state(draw: st.DrawFn, body: Draft, state: Value) -> Value:
    """Of the state's type and shape, made in the body."""
    same = [
        it
        for it in body.made
        if it.is_tensor and it.dtype == state.dtype and it.shape == state.shape
    ]
    return body.add("Identity", [draw(st.sampled_from(same))])[0]


def _collected(draw: st.DrawFn, body: Draft) -> list[Value]:
    fitting = [it for it in body.made[2:] if it.is_tensor and it not in body.formal]
    chosen = draw(st.lists(st.sampled_from(fitting), max_size=2)) if fitting else []
    return [body.add("Identity", [it])[0] for it in chosen]


def loop(draw: st.DrawFn, draft: Draft, grow: Grow) -> None:
    """So many times, or until the body says so."""
    x = tensor(draw, draft, FLOATS, (0, 3))
    body = _child(draft)
    counter = body.formal_input((np.array(0, np.int64),) * 2)
    going = body.formal_input((np.array(True),) * 2)
    state = body.formal_input(x.samples)
    grow(draw, body, _steps(draw))
    if draw(st.booleans()):
        (goes_on,) = body.add("Identity", [going])
    else:
        (goes_on,) = body.add("Less", [counter, body.constant(np.array(1, np.int64))])
    collected = _collected(draw, body)
    outputs = [goes_on, _next_state(draw, body, state), *collected]
    # What is collected in no step has sizes that depend on what is known of the body's.
    trips = draft.constant(np.array(draw(st.integers(1 if collected else 0, 3)), np.int64))
    begins = draft.constant(np.array(True)) if draw(st.booleans()) else None
    draft.add(
        "Loop",
        [trips, begins, x],
        len(outputs) - 1,
        body=body.as_graph(outputs, draw),
    )


def scan(draw: st.DrawFn, draft: Draft, grow: Grow) -> None:
    x = tensor(draw, draft, FLOATS, (1, 3), lambda it: 0 not in it.sizes)
    start = draft.constant(np.zeros((2,), np.float32))
    body = _child(draft)
    state = body.formal_input(start.samples)
    body.formal_input(tuple(np.asarray(x.samples[world][0]) for world in WORLDS))
    grow(draw, body, _steps(draw))
    outputs = [_next_state(draw, body, state), *_collected(draw, body)]
    draft.add(
        "Scan",
        [start, x],
        len(outputs),
        body=body.as_graph(outputs, draw),
        num_scan_inputs=1,
    )


def function(draw: st.DrawFn, draft: Draft, grow: Grow) -> None:
    """A function of the model, called once or twice."""
    x = tensor(draw, draft)
    body = _child(draft, is_isolated=True)
    body.formal_input(x.samples)
    grow(draw, body, _steps(draw))
    made = [it for it in body.made if it not in body.formal]
    if not made:
        raise Refused("an empty function")
    name = draft.root.name("function")
    constants = [constant_node(it.name, it.first) for it in body.constants.values()]
    domains = {node.domain for node in body.nodes} | {""}
    known = {it.domain: it for it in body.as_model(body.as_graph([], draw)).opset_import}
    draft.root.functions.append(
        helper.make_function(
            "local",
            name,
            [it.name for it in body.formal],
            [made[-1].name],
            [*constants, *body.nodes],
            [known[domain] for domain in sorted(domains)],
        )
    )
    try:
        (y,) = draft.add(name, [x], domain="local")
    except Refused:
        draft.root.functions.pop()
        raise
    if draw(st.booleans()) and y.is_tensor and (y.dtype, y.rank) == (x.dtype, x.rank):
        draft.add(name, [y], domain="local")


STEPS = (branches, loop, scan, function)
