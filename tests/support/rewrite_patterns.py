"""Graphs around the patterns of deepsched.models.rewrites, and what may be different about them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.support.models import tensor

HARMLESS = frozenset(
    (
        "none",
        "constant_node",
        "constant_node_of_numbers",
        "constant_used_twice",
        "identity",
        "open_batch",
        "any_batch",
        "empty_optional_input",
    )
)

DISTURBANCES = (
    *sorted(HARMLESS),
    "float16",
    "double",
    "default_of_an_input",
    "from_an_input",
    "inner_is_output",
    "inner_used_twice",
    "inner_used_in_subgraph",
    "inner_used_in_subgraph_of_subgraph",
)


@dataclass
class Pattern:
    """A graph x, ... -> y."""

    nodes: list[onnx.NodeProto]
    inputs: dict[str, list[Any]]
    constants: dict[str, np.ndarray]
    is_sure: bool = True
    """Whether the rule is to fire."""
    opset: int = 17
    dtype: type = np.float32
    outputs: list[str] = field(default_factory=lambda: ["y"])
    default_inputs: list[str] = field(default_factory=list)
    extra_feeds: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def inner(self) -> list[str]:
        """Values between x and y that the pattern makes."""
        made = [name for node in self.nodes for name in node.output]
        return [name for name in made if name not in self.outputs and name not in self.constants]

    def model(self) -> onnx.ModelProto:
        elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        fed = {**self.inputs, **{name: list(it.shape) for name, it in self.extra_feeds.items()}}
        fed |= {name: list(self.constants[name].shape) for name in self.default_inputs}
        graph = helper.make_graph(
            self.nodes,
            "pattern",
            [tensor(name, shape, elem_type) for name, shape in fed.items()],
            [helper.make_tensor_value_info(name, elem_type, None) for name in self.outputs],
            [
                numpy_helper.from_array(np.asarray(it), name)
                for name, it in self.constants.items()
                if name not in self.extra_feeds
            ],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )


def disturb(pattern: Pattern, how: str, inner: str | None = None) -> Pattern:
    """The same computation in another graph, or in another type. `inner`: the value to disturb."""
    if inner is None and pattern.inner:
        inner = pattern.inner[len(pattern.inner) // 2]
    constant = next(
        (name for name, it in pattern.constants.items() if it.dtype == np.float32), None
    )
    if how in ("float16", "double"):
        dtype = {"float16": np.float16, "double": np.float64}[how]
        return replace(
            pattern,
            dtype=dtype,
            constants={
                name: it.astype(dtype) if it.dtype == np.float32 else it
                for name, it in pattern.constants.items()
            },
        )
    if how in ("open_batch", "any_batch"):
        batch = {"open_batch": "batch", "any_batch": -1}[how]  # Paddle writes -1
        inputs = {name: [batch, *shape[1:]] for name, shape in pattern.inputs.items()}
        return replace(pattern, inputs=inputs)
    if how == "constant_node" and constant is not None:
        value = numpy_helper.from_array(np.asarray(pattern.constants[constant]))
        node = helper.make_node("Constant", [], [constant], value=value)
        return _with_node_first(pattern, constant, node)
    if how == "constant_node_of_numbers" and constant is not None and pattern.opset >= 12:
        values = np.asarray(pattern.constants[constant])
        if values.ndim > 1:
            return pattern
        form = {"value_floats": values.tolist()} if values.ndim else {"value_float": float(values)}
        node = helper.make_node("Constant", [], [constant], **form)
        return _with_node_first(pattern, constant, node)
    if how == "constant_used_twice" and constant is not None:
        again = helper.make_node("Neg", [constant], ["again"])
        return replace(pattern, nodes=[*pattern.nodes, again], outputs=["y", "again"])
    if how == "empty_optional_input":
        return replace(pattern, nodes=[_with_all_inputs(node) for node in pattern.nodes])
    if how == "identity" and constant is not None:
        node = helper.make_node("Identity", ["original"], [constant])
        changed = _with_node_first(pattern, constant, node)
        changed.constants["original"] = pattern.constants[constant]
        return changed
    if how == "default_of_an_input" and constant is not None:
        return replace(pattern, default_inputs=[constant])
    if how == "from_an_input" and constant is not None:
        return replace(pattern, extra_feeds={constant: np.asarray(pattern.constants[constant])})
    if how == "inner_is_output" and inner is not None:
        return replace(pattern, outputs=["y", inner])
    if how == "inner_used_twice" and inner is not None:
        again = helper.make_node("Neg", [inner], ["again"])
        return replace(pattern, nodes=[*pattern.nodes, again], outputs=["y", "again"])
    if how.startswith("inner_used_in_subgraph") and inner is not None:
        branch = _branch([helper.make_node("Identity", [inner], ["kept"])])
        if how == "inner_used_in_subgraph_of_subgraph":
            branch = _branch([_if("kept", branch)])
        again = _if("again", branch)
        return replace(
            pattern,
            nodes=[*pattern.nodes, again],
            outputs=["y", "again"],
            constants={**pattern.constants, "true": np.array(True)},
        )
    return pattern


def twice(pattern: Pattern) -> Pattern:
    """The pattern, and again on other inputs with the same constants."""

    def other(name: str) -> str:
        return name if not name or name in pattern.constants else f"{name}_2"

    again = []
    for node in pattern.nodes:
        copy = onnx.NodeProto(op_type=node.op_type, attribute=node.attribute)
        copy.input.extend(map(other, node.input))
        copy.output.extend(map(other, node.output))
        again.append(copy)
    return replace(
        pattern,
        nodes=[*pattern.nodes, *again],
        inputs=pattern.inputs | {other(name): it for name, it in pattern.inputs.items()},
        outputs=[*pattern.outputs, *map(other, pattern.outputs)],
    )


def _branch(nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
    """A subgraph without inputs that gives `kept`."""
    kept = helper.make_tensor_value_info("kept", TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "branch", [], [kept])


def _if(output: str, branch: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["true"], [output], then_branch=branch, else_branch=branch)


_MOST_INPUTS = {"Clip": 3, "Conv": 3, "LayerNormalization": 3}


def _with_all_inputs(node: onnx.NodeProto) -> onnx.NodeProto:
    """Optional inputs that are missing have the empty name."""
    missing = _MOST_INPUTS.get(node.op_type, 0) - len(node.input)
    if len(node.input) == 1:  # Clip of an old opset has attributes
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input.extend([""] * missing)
    return copy


def _with_node_first(pattern: Pattern, constant: str, node: onnx.NodeProto) -> Pattern:
    rest = {name: it for name, it in pattern.constants.items() if name != constant}
    return replace(pattern, nodes=[node, *pattern.nodes], constants=rest)


def _swapped(draw: st.DrawFn, *names: str) -> list[str]:
    """The inputs of a commutative operator in either order."""
    return list(draw(st.permutations(names)))


@st.composite
def lrn(draw: st.DrawFn) -> Pattern:
    channels = draw(st.integers(1, 9))
    rank = draw(st.sampled_from((3, 4, 4, 4, 5)))
    beta = draw(st.sampled_from((0.75, 0.75, 0.5)))
    options = {
        "size": draw(st.sampled_from((1, 3, 5, 7))),  # ONNX Runtime takes no others
        "alpha": draw(st.sampled_from((1e-4, 0.02, 1.0))),
        "bias": draw(st.sampled_from((1.0, 2.0))),
    }
    if beta != 0.75 or draw(st.booleans()):
        options["beta"] = beta
    return Pattern(
        nodes=[helper.make_node("LRN", ["x"], ["y"], **options)],
        inputs={"x": [2, channels, 3, 2, 2][:rank]},
        constants={},
        is_sure=rank == 4 and beta == 0.75,
        opset=draw(st.sampled_from((9, 13, 17))),
    )


@st.composite
def hard_swish(draw: st.DrawFn) -> Pattern:
    opset = draw(st.sampled_from((9, 11, 13, 17)))
    constants = {
        "three": np.float32(draw(st.sampled_from((3, 3, 3, 2)))),
        "six": np.float32(6),
        "zero": np.float32(0),
        "sixth": np.float32(1 / 6),
    }
    if draw(st.booleans()):
        constants["three"] = constants["three"].reshape(1)
    form = draw(st.sampled_from(("sigmoid", "product last", "product first")))
    top = draw(st.sampled_from((6, 6, 6, 5, None)))
    nodes = [helper.make_node("Add", _swapped(draw, "x", "three"), ["sum"])]
    if opset < 11:
        limits = {"min": 0.0} if top is None else {"min": 0.0, "max": float(top)}
        nodes.append(helper.make_node("Clip", ["sum"], ["clipped"], **limits))
    else:
        names = ["zero"] if top is None else ["zero", "top"]
        constants["top"] = np.float32(top or 0)
        nodes.append(helper.make_node("Clip", ["sum", *names], ["clipped"]))

    def scale(value: str, output: str) -> onnx.NodeProto:
        if draw(st.booleans()):
            return helper.make_node("Div", [value, "six"], [output])
        return helper.make_node("Mul", _swapped(draw, value, "sixth"), [output])

    if form == "sigmoid":
        nodes.append(scale("clipped", "y"))
    elif form == "product last":
        nodes.append(scale("clipped", "part"))
        nodes.append(helper.make_node("Mul", _swapped(draw, "x", "part"), ["y"]))
    else:
        nodes.append(helper.make_node("Mul", _swapped(draw, "x", "clipped"), ["part"]))
        nodes.append(scale("part", "y"))
    return Pattern(
        nodes=nodes,
        inputs={"x": [2, 3, 4, 5][: draw(st.integers(1, 4))]},
        constants=constants,
        is_sure=top == 6 and constants["three"].item() == 3,
        opset=opset,
    )


@st.composite
def gelu(draw: st.DrawFn) -> Pattern:
    half = draw(st.sampled_from((0.5, 0.5, 0.25)))
    constants = {
        "half": np.float32(half),
        "one": np.float32(1),
        "root": np.float32(np.sqrt(2)),
        "over": np.float32(np.sqrt(0.5)),
    }
    scaled = (
        helper.make_node("Div", ["x", "root"], ["scaled"])
        if draw(st.booleans())
        else helper.make_node("Mul", _swapped(draw, "x", "over"), ["scaled"])
    )
    return Pattern(
        nodes=[
            scaled,
            helper.make_node("Erf", ["scaled"], ["erf"]),
            helper.make_node("Add", _swapped(draw, "erf", "one"), ["sum"]),
            helper.make_node("Mul", _swapped(draw, "sum", "half"), ["part"]),
            helper.make_node("Mul", _swapped(draw, "x", "part"), ["y"]),
        ],
        inputs={"x": [2, 3, 4][: draw(st.integers(1, 3))]},
        constants=constants,
        is_sure=half == 0.5,
        opset=draw(st.sampled_from((9, 13, 17))),
    )


@st.composite
def gemm(draw: st.DrawFn) -> Pattern:
    sizes = st.integers(1, 70)
    rows, inner, columns = draw(sizes), draw(sizes), draw(sizes)
    rank = draw(st.sampled_from((1, 2, 2, 2, 3)))
    opset = draw(st.sampled_from((9, 11, 13, 17)))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    last = draw(st.sampled_from(("Relu", "Relu", "Tanh")))
    return Pattern(
        nodes=[
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node(last, ["product"], ["y"]),
        ],
        inputs={"x": [2, rows, inner][-rank:]},
        constants={"w": rng.standard_normal((inner, columns)).astype(np.float32)},
        is_sure=rank == 2 and opset >= 11 and last == "Relu",
        opset=opset,
    )


_BEFORE_A_PRODUCT = {
    "Abs": helper.make_node("Abs", ["in"], ["out"]),
    "Add zero": helper.make_node("Add", ["in", "zero"], ["out"]),
    "Cast": helper.make_node("Cast", ["in"], ["out"], to=TensorProto.FLOAT),
    "Div": helper.make_node("Div", ["in", "third"], ["out"]),
    "Dropout": helper.make_node("Dropout", ["in"], ["out"]),
    "Identity": helper.make_node("Identity", ["in"], ["out"]),
    "Mul": helper.make_node("Mul", ["third", "in"], ["out"]),
    "Mul vector": helper.make_node("Mul", ["in", "vector"], ["out"]),
    "Relu": helper.make_node("Relu", ["in"], ["out"]),
    "Transpose": helper.make_node("Transpose", ["in"], ["out"]),
}
_WIDTH = 16


def gemm_after(before: list[str]) -> Pattern:
    """MatMul and Relu of square matrices, after these of _BEFORE_A_PRODUCT; "product" is another
    one."""
    constants = {"third": np.float32(0.3), "zero": np.float32(0)}
    rng = np.random.default_rng(0)
    nodes, value = [], "x"
    for number, name in enumerate([*before, "product"]):
        if name == "product":
            weights = rng.standard_normal((_WIDTH, _WIDTH)).astype(np.float32)
            constants[f"w{number}"] = weights / np.float32(4)
            nodes.append(helper.make_node("MatMul", [value, f"w{number}"], [f"p{number}"]))
            nodes.append(helper.make_node("Relu", [f"p{number}"], [f"v{number}"]))
        else:
            node = onnx.NodeProto()
            node.CopyFrom(_BEFORE_A_PRODUCT[name])
            node.input[:] = [value if it == "in" else it for it in node.input]
            node.output[:] = [f"v{number}"]
            nodes.append(node)
        value = f"v{number}"
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    constants["vector"] = rng.standard_normal(_WIDTH).astype(np.float32)
    return Pattern(nodes=nodes, inputs={"x": [_WIDTH, _WIDTH]}, constants=constants)


def gemm_among_others() -> st.SearchStrategy[Pattern]:
    names = st.sampled_from([*_BEFORE_A_PRODUCT, "product", "product"])
    return st.lists(names, min_size=1, max_size=6).map(gemm_after)


@st.composite
def affine(draw: st.DrawFn) -> Pattern:
    """Steps with constants around convolutions."""
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    channels = draw(st.integers(1, 5))
    constants = {"w": rng.standard_normal((channels, 3, 2, 2)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["v0"])]
    place = draw(st.sampled_from(("after", "before", "between")))
    if place != "after":
        nodes.append(helper.make_node("Softplus", ["v0"], ["v1"]))
    value = nodes[-1].output[0]
    num_steps = draw(st.integers(1, 4))
    has_scalar = False
    for number in range(num_steps):
        kind = draw(st.sampled_from(("Add", "Mul", "Sub", "Div", "BatchNormalization")))
        output = f"step{number}"
        if kind == "BatchNormalization":
            names = [f"{part}{number}" for part in ("scale", "shift", "mean", "variance")]
            for name in names:
                constants[name] = np.abs(rng.standard_normal(channels)).astype(np.float32) + 0.5
            nodes.append(helper.make_node(kind, [value, *names], [output]))
        else:
            shapes = [(), (1,), (1, 1, 1), (channels, 1, 1), (1, channels, 1, 1)]
            shape = draw(st.sampled_from(shapes))
            has_scalar |= len(shape) < 3 or kind in ("Sub", "Div")
            constants[f"c{number}"] = np.asarray(rng.uniform(0.5, 2, shape).astype(np.float32))
            names = [value, f"c{number}"]
            if kind != "Div" and draw(st.booleans()):
                names.reverse()
            nodes.append(helper.make_node(kind, names, [output]))
        value = output
    if place == "after":
        nodes.append(helper.make_node("Softplus", [value], ["y"]))
        is_sure = has_scalar
    else:
        pads = [1] * 4 if place == "between" else [0] * 4
        constants["next"] = rng.standard_normal((2, channels, 1, 1)).astype(np.float32)
        constants["bias"] = rng.standard_normal(2).astype(np.float32)
        names = ["next", "bias"] if draw(st.booleans()) else ["next"]
        nodes.append(helper.make_node("Conv", [value, *names], ["y"], pads=pads))
        is_only_factor = all(node.op_type in ("Mul", "Div") for node in nodes[2:-1])
        is_sure = place == "before" or num_steps > 1 or is_only_factor
    return Pattern(
        nodes=nodes,
        inputs={"x": [2, 3, 5, 4]},
        constants=constants,
        is_sure=is_sure,
        opset=draw(st.sampled_from((9, 13, 17))),
    )


def affine_between() -> Pattern:
    rng = np.random.default_rng(0)
    return Pattern(
        nodes=[
            helper.make_node("Conv", ["x", "w"], ["h"]),
            helper.make_node("Mul", ["h", "c0"], ["m"]),
            helper.make_node("Add", ["m", "c1"], ["s"]),
            helper.make_node("Conv", ["s", "v"], ["y"]),
        ],
        inputs={"x": [2, 3, 5, 4]},
        constants={
            "c0": np.float32([1.5]),
            "c1": np.float32([0.5]),
            "w": rng.standard_normal((4, 3, 2, 2)).astype(np.float32),
            "v": rng.standard_normal((2, 4, 1, 1)).astype(np.float32),
        },
    )


@st.composite
def layer_norm(draw: st.DrawFn) -> Pattern:
    width = draw(st.integers(1, 40))
    form = draw(st.sampled_from(("one operator", "spelt out", "no sum")))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    scale = rng.standard_normal(width).astype(np.float32)
    shape = [2, 3, width]
    nodes = [] if form == "no sum" else [helper.make_node("Add", ["x", "other"], ["sum"])]
    value = "x" if form == "no sum" else "sum"
    constants = {"scale": scale, "shift": scale[::-1].copy()}
    if form == "spelt out":
        constants |= {"two": np.float32(2), "epsilon": np.float32(1e-5)}
        nodes += [
            helper.make_node("ReduceMean", [value], ["mean"], axes=[-1]),
            helper.make_node("Sub", [value, "mean"], ["centred"]),
            helper.make_node("Pow", ["centred", "two"], ["squared"]),
            helper.make_node("ReduceMean", ["squared"], ["variance"], axes=[-1]),
            helper.make_node("Add", ["variance", "epsilon"], ["positive"]),
            helper.make_node("Sqrt", ["positive"], ["deviation"]),
            helper.make_node("Div", ["centred", "deviation"], ["normal"]),
            helper.make_node("Mul", ["normal", "scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "shift"], ["y"]),
        ]
    else:
        nodes.append(helper.make_node("LayerNormalization", [value, "scale", "shift"], ["y"]))
    return Pattern(
        nodes=nodes,
        inputs={"x": shape, "other": shape} if value == "sum" else {"x": shape},
        constants=constants,
        is_sure=form != "no sum",
    )


def mlp_like() -> Pattern:
    return Pattern(
        nodes=[
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Relu", ["product"], ["y"]),
        ],
        inputs={"x": [4, 100]},
        constants={"w": np.random.default_rng(0).standard_normal((100, 30)).astype(np.float32)},
    )


def inside_if(pattern: Pattern) -> onnx.ModelProto:
    """If(true) over the pattern, whose weights are outside of the branch."""
    branch = helper.make_graph(
        pattern.nodes, "branch", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    )
    node = helper.make_node("If", ["true"], ["z"], then_branch=branch, else_branch=branch)
    return Pattern(
        nodes=[node],
        inputs=pattern.inputs,
        constants={**pattern.constants, "true": np.array(True)},
        outputs=["z"],
    ).model()


def _example_lrn() -> tuple[Pattern, str]:
    node = helper.make_node("LRN", ["x"], ["y"], size=5)
    return Pattern([node], {"x": [1, 8, 3, 3]}, {}), "lrn"


def _example_hard_swish() -> tuple[Pattern, str]:
    nodes = [
        helper.make_node("Add", ["x", "three"], ["sum"]),
        helper.make_node("Clip", ["sum", "zero", "six"], ["clipped"]),
        helper.make_node("Mul", ["x", "clipped"], ["part"]),
        helper.make_node("Div", ["part", "six"], ["y"]),
    ]
    constants = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}
    return Pattern(nodes, {"x": [1, 8, 3, 3]}, constants), "hard_swish"


def _example_affine() -> tuple[Pattern, str]:
    return affine_between(), "affine"


def _example_gemm() -> tuple[Pattern, str]:
    return mlp_like(), "gemm"


def _example_gelu() -> tuple[Pattern, str]:
    nodes = [
        helper.make_node("Div", ["x", "root"], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["erf"]),
        helper.make_node("Add", ["erf", "one"], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], ["part"]),
        helper.make_node("Mul", ["x", "part"], ["y"]),
    ]
    constants = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    return Pattern(nodes, {"x": [2, 8]}, constants), "gelu"


def _example_layer_norm() -> tuple[Pattern, str]:
    nodes = [
        helper.make_node("Add", ["x", "x"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale"], ["y"]),
    ]
    return Pattern(nodes, {"x": [1, 2, 8]}, {"scale": np.ones(8, np.float32)}), "skip_layer_norm"


EXAMPLES = (
    _example_lrn,
    _example_hard_swish,
    _example_affine,
    _example_gemm,
    _example_gelu,
    _example_layer_norm,
)
"""Of each rule: a pattern that it replaces, and its name."""
