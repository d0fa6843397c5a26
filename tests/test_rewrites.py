"""Rules leave every output as it was, on random graphs around their patterns."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deepsched.models.rewrites.agreement import compare
from deepsched.models.rewrites.catalog import RULES, rewrite
from tests.support import rewrite_patterns as patterns
from tests.support.models import make, tensor
from tests.support.rewrite_patterns import HARMLESS, Pattern, disturb

few = settings(max_examples=60, deadline=None)
fewer = settings(few, max_examples=10)


def session(model, config=()):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    for key, value in dict(config).items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def run(model, feeds, config=()):
    return session(model, config).run(None, feeds)


def feeds_of(pattern: Pattern, rng, scale=1.0):
    """Values for the inputs; sizes that are open are 2."""
    sizes = {
        name: [it if isinstance(it, int) and it >= 0 else 2 for it in shape]
        for name, shape in pattern.inputs.items()
    }
    return {
        name: (scale * rng.standard_normal(shape)).astype(pattern.dtype)
        for name, shape in sizes.items()
    }


def assert_unchanged(pattern: Pattern, rule_name, fires, is_exact=False, scales=(0.01, 1, 100)):
    """The rule fires as often as expected (None: either way), and outputs are the plain ones,
    for inputs of these magnitudes."""
    model = pattern.model()
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    rules = [rule for rule in RULES if rule.name == rule_name]
    counts, config = rewrite(rewritten, rules)
    assert fires is None or counts.get(rule_name, 0) == fires
    if not counts:
        assert rewritten == model
        return
    plain, other = session(model), session(rewritten, config)
    rng = np.random.default_rng(0)
    for scale in scales:
        feeds = {**feeds_of(pattern, rng, scale), **pattern.extra_feeds}
        moved = compare(plain.run(None, feeds), other.run(None, feeds))
        assert moved.has_same_bits if is_exact else moved.is_allowed, moved


however_disturbed = pytest.mark.parametrize("disturbance", patterns.DISTURBANCES)
"""How a graph around a pattern may be: constants that come from elsewhere, inner values that others
use, another type."""


@however_disturbed
@fewer
@given(patterns.lrn())
def test_lrn_as_roots_keeps_outputs(disturbance, pattern):
    fires = pattern.is_sure and disturbance not in ("double", "float16")
    # Of large values, ONNX Runtime's LRN loses digits: it takes squares away from a running sum.
    assert_unchanged(disturb(pattern, disturbance), "lrn", fires, scales=(0.01, 1))


@few
@given(patterns.lrn().filter(lambda it: it.is_sure))
def test_lrn_as_roots_is_right_for_large_values(pattern):
    x = feeds_of(pattern, np.random.default_rng(0), 100)["x"].astype(np.float64)
    options = {it.name: helper.get_attribute_value(it) for it in pattern.nodes[0].attribute}
    half = options["size"] // 2
    padded = np.pad(x**2, [(0, 0), (half, half), (0, 0), (0, 0)])
    total = sum(padded[:, start : start + x.shape[1]] for start in range(options["size"]))
    right = x / (options["bias"] + options["alpha"] / options["size"] * total) ** 0.75
    model = pattern.model()
    rewrite(model, RULES)
    (y,) = run(model, {"x": x.astype(np.float32)})
    assert compare(right.astype(np.float32), y).is_allowed


@however_disturbed
@fewer
@given(patterns.hard_swish())
def test_hard_swish_spelt_out_keeps_outputs(disturbance, pattern):
    fires = pattern.is_sure and disturbance in HARMLESS
    assert_unchanged(disturb(pattern, disturbance), "hard_swish", fires)


@however_disturbed
@fewer
@given(patterns.gelu())
def test_gelu_in_another_order_keeps_outputs(disturbance, pattern):
    fires = pattern.is_sure and disturbance in HARMLESS
    assert_unchanged(disturb(pattern, disturbance), "gelu", fires)


@however_disturbed
@fewer
@given(patterns.gemm())
def test_matrix_product_and_relu_keep_every_bit(disturbance, pattern):
    fires = pattern.is_sure and disturbance in HARMLESS
    assert_unchanged(disturb(pattern, disturbance), "gemm", fires, is_exact=True)


@few
@given(patterns.gemm_among_others())
def test_matrix_products_among_other_operators_keep_every_bit(pattern):
    assert_unchanged(pattern, "gemm", None, is_exact=True)


@pytest.mark.parametrize(
    "before",
    [
        ["Mul"],
        ["Div"],
        ["Transpose"],
        ["Mul", "Identity"],
        ["Transpose", "Cast", "Dropout"],
        ["Mul", "Add zero"],
    ],
)
def test_a_matrix_product_that_takes_a_factor_or_a_transposition_stays(before):
    # ONNX Runtime makes one operator of both, which rounds elsewhere.
    assert_unchanged(patterns.gemm_after(before), "gemm", fires=False)


def test_a_matrix_product_after_a_function_stays():
    model = patterns.gemm_after(["Mul"]).model()
    function = helper.make_function(
        "own",
        "Third",
        ["a", "b"],
        ["c"],
        [helper.make_node("Mul", ["a", "b"], ["c"])],
        [helper.make_opsetid("", 17)],
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[0].CopyFrom(helper.make_node("Third", ["third", "x"], ["v0"], domain="own"))
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    assert rewrite(rewritten, RULES).counts == {}
    assert session(model).run(None, {"x": np.ones((16, 16), np.float32)})


@few
@given(patterns.affine())
def test_channel_factors_keep_outputs(pattern):
    fires = pattern.is_sure
    assert_unchanged(pattern, "affine", fires)


@however_disturbed
@fewer
@given(patterns.affine())
def test_channel_factors_keep_outputs_whoever_else_uses_them(disturbance, pattern):
    fires = False if disturbance in ("double", "float16") else None
    assert_unchanged(disturb(pattern, disturbance), "affine", fires)


@pytest.mark.parametrize("name", ["w", "bias"])
def test_a_factor_after_a_convolution_with_computed_weights_stays(name):
    # ONNX Runtime does not fold it into those.
    nodes = [
        helper.make_node("Conv", ["x", "w", "bias"], ["h"]),
        helper.make_node("Mul", ["h", "c"], ["y"]),
    ]
    constants = {
        "w": np.ones((4, 3, 1, 1), np.float32),
        "bias": np.ones(4, np.float32),
        "c": np.float32(2),
    }
    pattern = Pattern(nodes, {"x": [2, 3, 5, 4]}, constants)
    assert_unchanged(pattern, "affine", fires=True)
    pattern = replace(pattern, extra_feeds={name: constants[name]})
    assert_unchanged(pattern, "affine", fires=False)


@however_disturbed
@pytest.mark.parametrize("seen", ["m", "s"])
def test_channel_factors_stay_where_others_use_a_value_between(seen, disturbance):
    pattern = patterns.affine_between()
    if disturbance.startswith("inner_"):
        # After the Mul, each half is folded by itself; after the Add, all into the Conv before.
        assert_unchanged(disturb(pattern, disturbance, seen), "affine", True if seen == "s" else 2)
    else:
        fires = disturbance in HARMLESS or disturbance in ("default_of_an_input", "from_an_input")
        assert_unchanged(disturb(pattern, disturbance), "affine", fires)


@few
@given(patterns.layer_norm())
def test_layer_norm_apart_from_its_sum_keeps_outputs(pattern):
    assert_unchanged(pattern, "skip_layer_norm", pattern.is_sure)


@few
@given(
    st.one_of(
        st.tuples(patterns.hard_swish(), st.just("hard_swish")),
        st.tuples(patterns.gelu(), st.just("gelu")),
        st.tuples(patterns.gemm(), st.just("gemm")),
        st.tuples(patterns.affine(), st.just("affine")),
    )
)
def test_patterns_that_share_their_constants_keep_outputs(found):
    pattern, rule = found
    assert_unchanged(patterns.twice(pattern), rule, 2 * pattern.is_sure, is_exact=rule == "gemm")


@pytest.mark.parametrize("make_pattern", patterns.EXAMPLES)
def test_an_empty_batch_stays_one(make_pattern):
    pattern, rule = make_pattern()
    for shape in pattern.inputs.values():
        shape[0] = 0
    assert_unchanged(pattern, rule, fires=True)


def test_an_image_without_channels_is_left_alone():
    nodes = [
        helper.make_node("Mul", ["x", "c"], ["h"]),
        helper.make_node("Add", ["h", "c"], ["y"]),
    ]
    pattern = Pattern(nodes, {"x": [1, 0, 4, 4]}, {"c": np.float32(2)})
    assert_unchanged(pattern, "affine", fires=False)


@pytest.mark.parametrize("function", ["Erf", "Tanh"])
def test_the_factor_at_the_end_of_a_gelu_stays(function):
    # ONNX Runtime knows the whole, and not what is left.
    nodes = [
        helper.make_node(function, ["x"], ["f"]),
        helper.make_node("Add", ["f", "one"], ["s"]),
        helper.make_node("Mul", ["x", "s"], ["p"]),
        helper.make_node("Mul", ["p", "half"], ["h"]),
        helper.make_node("Conv", ["h", "w"], ["y"]),
    ]
    constants = {"one": np.float32(1), "w": np.ones((4, 3, 1, 1), np.float32)}
    for half, fires in ((0.5, False), (0.25, True)):
        constants["half"] = np.float32(half)
        assert_unchanged(Pattern(nodes, {"x": [2, 3, 4, 4]}, constants), "affine", fires)


@pytest.mark.parametrize("middle", [["MatMul", "Relu"], ["Mul", "Conv"], ["Conv", "Mul"]])
def test_no_operator_with_weights_is_made_between_quantized_values(middle):
    # ONNX Runtime would quantize its weights, too.
    constants = {
        "step": np.float32(0.02),
        "zero": np.uint8(128),
        "factor": np.float32(0.3),
        "weights": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32),
    }
    shape = [4, 8]
    if "Conv" in middle:
        constants["weights"] = constants["weights"].reshape(8, 8, 1, 1)
        shape = [4, 8, 3, 3]
    second = {"MatMul": ["weights"], "Conv": ["weights"], "Mul": ["factor"], "Relu": []}
    how = ["step", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *how], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *how], ["a"]),
        helper.make_node(middle[0], ["a", *second[middle[0]]], ["b"]),
        helper.make_node(middle[1], ["b", *second[middle[1]]], ["c"]),
        helper.make_node("QuantizeLinear", ["c", *how], ["r"]),
        helper.make_node("DequantizeLinear", ["r", *how], ["y"]),
    ]
    pattern = Pattern(nodes, {"x": shape}, constants)
    assert rewrite(pattern.model(), RULES).counts == {}
    floats = [
        helper.make_node("Neg", ["x"], ["a"]),
        *nodes[2:4],
        helper.make_node("Neg", ["c"], ["y"]),
    ]
    assert rewrite(Pattern(floats, {"x": shape}, constants).model(), RULES).counts != {}


def test_a_model_of_an_old_opset_is_left_alone():
    # Before opset 7, Mul broadcast by an attribute, in another way.
    nodes = [helper.make_node("Mul", ["x", "c"], ["y"], broadcast=1)]
    model = make(
        nodes,
        [tensor("x", [1, 3, 2, 2])],
        [tensor("y", [1, 3, 2, 2])],
        [numpy_helper.from_array(np.float32([2]), "c")],
        opset=6,
    )
    assert rewrite(model, RULES).counts == {}


def test_weights_outside_of_the_model_are_read_for_folding(tmp_path):
    pattern = patterns.Pattern(
        nodes=[
            helper.make_node("Mul", ["x", "c"], ["h"]),
            helper.make_node("Conv", ["h", "w"], ["y"]),
        ],
        inputs={"x": [1, 3, 4, 4]},
        constants={"c": np.float32([3]), "w": np.ones((64, 3, 1, 1), np.float32)},
    )
    path = tmp_path / "model.onnx"
    onnx.save_model(
        pattern.model(), path, save_as_external_data=True, location="data", size_threshold=0
    )
    model = onnx.load(path, load_external_data=False)
    assert rewrite(model, RULES, partial(numpy_helper.to_array, base_dir=str(tmp_path))).counts == {
        "affine": 1
    }
    feeds = feeds_of(pattern, np.random.default_rng(0))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(tmp_path)
    )
    other = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)
    assert compare(run(pattern.model(), feeds), other).is_allowed


def test_rules_read_no_weight_that_they_do_not_fold(monkeypatch):
    pattern = patterns.mlp_like()
    read = []
    original = numpy_helper.to_array
    monkeypatch.setattr(
        numpy_helper, "to_array", lambda it, *rest: read.append(it.name) or original(it, *rest)
    )
    assert rewrite(pattern.model(), RULES).counts == {"gemm": 1}
    assert read == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.0])
@pytest.mark.parametrize("make_pattern", patterns.EXAMPLES)
def test_values_that_are_not_finite_stay_where_they_are(make_pattern, value):
    pattern, rule = make_pattern()
    feeds = feeds_of(pattern, np.random.default_rng(0))
    feeds["x"].flat[1] = value
    model = pattern.model()
    plain = run(model, feeds)
    counts, config = rewrite(model, RULES)
    assert rule in counts
    assert compare(plain, run(model, feeds, config)).is_allowed


def test_nodes_inside_of_subgraphs_stay():
    pattern = patterns.mlp_like()
    model = patterns.inside_if(pattern)
    before = onnx.ModelProto()
    before.CopyFrom(model)
    assert rewrite(model, RULES).counts == {}
    assert model == before
    assert model.graph.node[0].op_type == "If"
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


def broken_models():
    """Graphs that ONNX Runtime refuses, and near which rules look."""
    x, y = [tensor("x", [1, 3, 4, 4])], [tensor("y", None)]
    flat = [tensor("x", [2, 3])]
    ones = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    cut = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 3], raw_data=b"short")
    three = numpy_helper.from_array(np.float32([3]), "three")
    node = helper.make_node
    yield make([node("MatMul", ["x"], ["h"]), node("Relu", ["h"], ["y"])], flat, y)
    yield make([node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])], flat, y, [cut])
    yield make([node("Mul", ["x", "w"], ["h"]), node("Conv", ["h", "w"], ["y"])], x, y, [cut])
    yield make(
        [node("Mul", ["x", "three"], ["h"]), node("Conv", ["h", "w"], ["y"])], x, y, [ones, three]
    )
    yield make([node("Mul", ["x"], ["h"]), node("Div", ["h"], ["y"])], x, y)
    names = ["three"] * 4
    yield make(
        [node("BatchNormalization", ["x", *names], ["h"]), node("Mul", ["h", "three"], ["y"])],
        x,
        y,
        [three],
    )
    yield make([node("LRN", [], ["y"])], x, y)
    yield make([node("Relu", ["x"], [])], x, y)


@pytest.mark.parametrize("model", list(broken_models()))
def test_rules_leave_a_broken_model_to_onnxruntime_to_refuse(model):
    rewrite(model, RULES)
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        run(model, {})
