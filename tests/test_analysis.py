"""analyze: what ONNX Runtime's timeline says, operations counted, real models, the command."""

from __future__ import annotations

import csv
import itertools
import json
import tempfile

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from deepsched import Engine, model_debug_analysis
from deepsched.analysis import Analysis, Operator, analyze
from deepsched.analysis.constants import NodeConstants, shapes_by_position
from deepsched.analysis.reading import read_profile
from deepsched.analysis.work import operations
from deepsched.benchmark import bundled_model
from deepsched.cli import main
from deepsched.errors import InferenceError, ModelNotFoundError, OptionError
from tests.support import models

# --- Reading a timeline ---------------------------------------------------------------------------


def plain_mlp():
    """With an activation that no rewrite merges with the product."""
    return models.mlp(activation="Tanh")


@pytest.fixture
def mlp(tmp_path):
    return models.save(plain_mlp(), tmp_path)


class Clock:
    """Writes a timeline as ONNX Runtime does, from times in ns."""

    def __init__(self):
        self.now = 0
        self.events = []
        self.own_ns = {}
        self.calls = {}

    def run(self, graph):
        begin = self.now
        self.now += 700
        self._execute(graph, ())
        self.now += 300
        self._event("Session", "model_run", begin)

    def _execute(self, graph, around):
        begin = self.now
        for number, (own_ns, bodies) in enumerate(graph):
            self.now += 1_500  # what the executor does between two
            path = (*around, f"n{number}")
            node_begin = self.now
            self.now += own_ns
            for body in bodies:
                self._execute(body, path)
            self.calls[path] = self.calls.get(path, 0) + 1
            self.own_ns[path] = self.own_ns.get(path, 0) + own_ns
            args = {"op_name": "Loop" if bodies else "Add", "node_index": str(number)}
            self._event("Node", f"n{number}_kernel_time", node_begin, args)
        self._event("Session", "SequentialExecutor::Execute", begin)

    def _event(self, category, name, begin, args=None):
        took = (self.now - begin) // 1000
        self.events.append(
            {"cat": category, "name": name, "ts": begin // 1000, "dur": took, "args": args or {}}
        )


def graphs(bodies):
    return st.lists(st.tuples(st.integers(0, 50_000), bodies), max_size=4)


nested = st.recursive(
    graphs(st.just([])), lambda body: graphs(st.lists(body, max_size=3)), max_leaves=12
)


@given(nested, st.integers(1, 3), st.integers(0, 3))
def test_every_operator_gets_its_own_time_and_its_calls(graph, num_runs, num_warmups):
    clock = Clock()
    for _ in range(num_warmups):
        clock.run(graph)
    clock.own_ns, clock.calls = {}, {}
    for _ in range(num_runs):
        clock.run(graph)
    found = read_profile(clock.events, num_warmups)
    assert len(found.run_us) == num_runs
    # The same body may run several times in one call: several graphs, one path.
    calls = {}
    own_us = {}
    for key, reading in found.operators.items():
        assert len(reading.num_calls) == len(reading.microseconds) == num_runs
        assert reading.calls.total() == sum(reading.num_calls)
        calls[key.path] = calls.get(key.path, 0) + sum(reading.num_calls)
        own_us[key.path] = own_us.get(key.path, 0) + sum(reading.microseconds)
    assert calls == clock.calls
    for path, ns in clock.own_ns.items():
        # Each call, and each subgraph taken off it, is rounded down.
        assert own_us[path] == pytest.approx(ns / 1000, abs=5 * calls[path])


def test_an_operator_of_a_branch_not_taken_has_zeros_there():
    clock = Clock()
    clock.run([(1000, [])])
    clock.run([(1000, []), (5000, [])])
    readings = read_profile(clock.events).operators
    (second,) = (it for key, it in readings.items() if key.path == ("n1",))
    assert second.num_calls == [0, 1]
    assert second.microseconds == [0, 5]


@given(st.data())
def test_shapes_left_out_of_a_timeline_come_from_the_constants(data):
    count = data.draw(st.integers(1, 5))
    positions = data.draw(st.sets(st.integers(0, 5), min_size=count, max_size=count).map(sorted))
    # All shapes differ, so that none can be taken for another.
    shapes = {position: (position + 1, 7) for position in positions}
    constant = data.draw(st.sets(st.sampled_from(positions)))
    packed = data.draw(st.sets(st.sampled_from(sorted(constant)))) if constant else set()
    listed = [shapes[position] for position in positions if position not in packed]
    known = NodeConstants(
        tuple(positions), {position: shapes[position] for position in constant}, 0
    )
    assert shapes_by_position(listed, known) == shapes


# --- Counting operations: with ones for all numbers, a sum of products is their number ------------


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.integers(1, 3), max_size=2),
    st.booleans(),
)
def test_operations_of_products(rows, depth, columns, batch, is_left_broadcast):
    left = np.ones((*(() if is_left_broadcast else batch), rows, depth))
    right = np.ones((*batch, depth, columns))
    output = left @ right
    assert operations("MatMul", {0: left.shape}, output.shape) == 2 * output.sum()


@pytest.mark.parametrize(("left", "right"), [((5,), (5, 3)), ((2, 4, 5), (5,)), ((1, 1), (1, 1))])
def test_operations_of_products_with_vectors(left, right):
    output = np.ones(left) @ np.ones(right)
    assert operations("MatMul", {0: left}, output.shape) == 2 * output.sum()


def one_node(op_type, shapes, num_inputs, output_type=TensorProto.FLOAT, **attributes):
    """The first `num_inputs` are inputs of the graph, the others constants of ones."""
    dtypes = {TensorProto.FLOAT: np.float32, TensorProto.INT32: np.uint8}
    names = [f"i{number}" for number in range(len(shapes))]
    dtype = dtypes[output_type]
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    constants = [
        onnx.numpy_helper.from_array(np.ones(shape, dtype), name)
        for name, shape in zip(names[num_inputs:], shapes[num_inputs:], strict=True)
    ]
    inputs = [
        models.tensor(name, shape, kind)
        for name, shape in zip(names[:num_inputs], shapes[:num_inputs], strict=True)
    ]
    node = helper.make_node(op_type, names, ["y"], **attributes)
    outputs = [helper.make_tensor_value_info("y", output_type, None)]
    return models.make([node], inputs, outputs, constants), dtype


@pytest.mark.parametrize(
    "case",
    [
        one_node("Conv", [(2, 32, 9, 9), (16, 32, 3, 3)], 1),
        one_node("Conv", [(1, 32, 9, 9), (32, 2, 3, 3)], 1, group=16),
        one_node("Conv", [(1, 4, 30), (8, 4, 5)], 1),
        one_node("ConvTranspose", [(1, 8, 6, 6), (8, 4, 3, 3)], 1),
        one_node("MatMul", [(3, 70), (70, 90)], 1),
        one_node("MatMul", [(2, 3, 20), (2, 20, 5)], 2),
        one_node("Gemm", [(70, 3), (90, 70)], 1, transA=1, transB=1),
        one_node("MatMulInteger", [(3, 70), (70, 90)], 1, TensorProto.INT32),
        one_node("ConvInteger", [(1, 4, 9, 9), (8, 4, 3, 3)], 1, TensorProto.INT32),
    ],
    ids=lambda case: f"{case[0].graph.node[0].op_type}-{len(case[0].graph.input)}",
)
def test_operations_of_what_onnx_runtime_makes_of_an_operator(case):
    model, dtype = case
    with Engine(model, None) as engine:
        inputs = [np.ones(shape, dtype) for shape in engine.input_shapes]
        products = float(np.sum(engine.run(inputs)[0], dtype=np.float64))
    analysis = analyze(model, None, inputs=inputs, num_cores=1, seconds=0.02)
    assert sum(it.operations for it in analysis.operators if it.operations) == 2 * products


def test_operations_of_an_lstm_whose_weights_the_kernel_has_packed():
    width, state = 16, 32
    model, _ = one_node(
        "LSTM", [(7, 1, width), (1, 4 * state, width), (1, 4 * state, state)], 1, hidden_size=state
    )
    (operator,) = analyze(model, None, num_cores=1, seconds=0.02).operators
    assert operator.operations == 2 * 7 * 4 * state * (width + state)
    assert operator.bytes_moved > 4 * 4 * state * (width + state)


# --- Real models ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def analysis():
    return analyze(bundled_model("squeezenet"), seconds=1.0)


def test_times_add_up_to_the_request(analysis):
    for cores, ms in analysis.plain_ms.items():
        in_operators = sum(it.ms[cores] for it in analysis.operators)
        assert in_operators + analysis.between_ms[cores] == pytest.approx(max(ms, in_operators))
        assert sum(analysis.share(it, cores) for it in analysis.operators) <= 1 + 1e-9
    assert sum(map(analysis.share, analysis.types)) == pytest.approx(
        sum(map(analysis.share, analysis.operators))
    )


def test_types_have_all_operators_and_the_slowest_is_first(analysis):
    assert analysis.types[0].op_type == "Conv"
    assert sum(it.count for it in analysis.types) == len(analysis.operators)
    most = analysis.most_cores
    for slow, fast in zip(analysis.slowest, analysis.slowest[1:], strict=False):
        assert slow.ms[most] >= fast.ms[most]


def test_convolutions_tell_what_they_reach(analysis):
    for operator in analysis.operators:
        if operator.op_type == "Conv":
            assert operator.gflops(1) == pytest.approx(operator.operations / operator.ms[1] / 1e6)
            assert operator.gigabytes_per_second(1) > 0
            assert len(operator.weight_shape) == 4
        elif operator.op_type == "Concat":
            assert operator.gflops(1) is None


def test_an_analysis_is_plain_json(analysis):
    kept = json.loads(json.dumps(analysis.to_dict(), allow_nan=False))
    assert len(kept["operators"]) == len(analysis.operators)
    assert kept["run_ms"].keys() == {str(cores) for cores in analysis.run_ms}


def test_the_body_of_a_loop_is_listed_apart_and_not_counted_twice():
    inputs = [np.array(6, np.int64), np.zeros((64, 64), np.float32)]
    found = analyze(models.spin(), None, inputs=inputs, num_cores=1, seconds=0.05)
    by_type = {it.op_type: it for it in found.operators}
    assert by_type["Loop"].calls == 1
    assert by_type["MatMul"].calls == 6
    assert by_type["MatMul"].name.startswith(f"{by_type['Loop'].name}/")
    assert by_type["MatMul"].operations == 6 * 2 * 64**3
    assert sum(it.ms[1] for it in found.operators) <= found.run_ms[1]


def test_an_operator_that_is_hardly_longer_than_its_timing_has_no_rates():
    def operator(*ms):
        timing = dict.fromkeys((1, 2), 0.002)
        return Operator(
            dict(zip((1, 2), ms, strict=True)),
            timing,
            100,
            100,
            "n",
            "Add",
            "float",
            (),
            (),
            None,
            1,
        )

    for short in (operator(0.0, 0.0), operator(0.001, 0.0), operator(0.1, 0.001)):
        assert short.gflops(1) is short.gigabytes_per_second(2) is None
        assert short.speedup is short.useful_cores is None
        assert Analysis(1, (short,), {1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0}).stuck == []
    long = operator(0.1, 0.05)
    assert (long.speedup, long.useful_cores) == (2.0, 2)


def test_types_that_lag_behind_the_best_rates_of_the_model_are_named():
    def operator(op_type, ms, operations, num_bytes):
        return Operator(
            {1: ms}, {1: 0.0}, operations, num_bytes, op_type, op_type, "float", (), (), None, 1
        )

    fast = operator("Gemm", 5.0, 500_000_000, 1_000_000)  # 100 GFLOP/s
    streaming = operator("Add", 1.0, None, 50_000_000)  # 50 GB/s
    slow = operator("LRN", 4.0, None, 10_000_000)
    little = operator("Erf", 0.2, None, 1_000)
    unknown = operator("Custom", 3.0, None, None)
    found = Analysis(1, (fast, streaming, slow, little, unknown), {1: 13.2}, {1: 13.2})
    assert [it.op_type for it in found.lagging] == ["LRN"]
    assert found.to_dict()["lagging"] == ["LRN"]


def test_what_timing_adds_to_small_operators_is_taken_off():
    """A thousand operators of one number: timed, they take ten times as long."""
    names = [f"t{number}" for number in range(1001)]
    chain = models.make(
        [
            helper.make_node("Tanh", [before], [after])
            for before, after in zip(names, names[1:], strict=False)
        ],
        [models.tensor("t0", [1])],
        [models.tensor(names[-1], [1])],
    )
    analysis = analyze(chain, None, seconds=0.5)
    for cores, ms in analysis.run_ms.items():
        assert sum(it.ms[cores] for it in analysis.operators) < 0.6 * ms
    assert analysis.slowdown > 2


def test_operations_of_a_loop_whose_state_grows_are_those_of_every_call():
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["rows", "w"], ["product"]),
            helper.make_node("Concat", ["product", "row"], ["more"], axis=0),
            helper.make_node("Identity", ["go_on"], ["again"]),
        ],
        "body",
        [
            models.tensor("i", [], TensorProto.INT64),
            models.tensor("go_on", [], TensorProto.BOOL),
            models.tensor("rows", [None, 8]),
        ],
        [models.tensor("again", [], TensorProto.BOOL), models.tensor("more", [None, 8])],
    )
    always = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    constants = [
        onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "w"),
        onnx.numpy_helper.from_array(np.ones((1, 8), np.float32), "row"),
    ]
    model = models.make(
        [
            helper.make_node("Constant", [], ["true"], value=always),
            helper.make_node("Loop", ["steps", "true", "x"], ["y"], body=body),
        ],
        [models.tensor("steps", [], TensorProto.INT64), models.tensor("x", [1, 8])],
        [models.tensor("y", [None, 8])],
        constants,
    )
    inputs = [np.array(5, np.int64), np.ones((1, 8), np.float32)]
    found = analyze(model, None, inputs=inputs, num_cores=1, seconds=0.05)
    (product,) = (it for it in found.operators if it.op_type == "MatMul")
    assert product.operations == sum(2 * rows * 8 * 8 for rows in range(1, 6))


def test_attention_with_a_past_of_unknown_length_has_no_count():
    shapes = {0: (1, 1, 16), 1: (16, 48)}
    assert operations("Attention", shapes, (1, 1, 16)) > 0
    assert operations("Attention", {**shapes, 4: (2, 1, 4, 100, 4)}, (1, 1, 16)) is None


def test_runs_before_those_asked_for_are_left_out(monkeypatch):
    """A model whose fixed batch is replaced is tried out once when it is opened."""
    asked = []
    monkeypatch.setattr(
        "deepsched.analysis.profiling.read_profile",
        lambda events, num_before: asked.append(num_before) or read_profile(events, num_before),
    )
    inputs = [np.zeros((2, 3, 224, 224), np.float32)]
    model_debug_analysis(
        bundled_model("squeezenet"), inputs, 2, num_iterations=3, num_warmup_iterations=1
    )
    assert set(asked) == {2, 3}  # the warm-up and that trial; of the calibration its warm-ups


def test_a_model_without_operators_is_analysed(tmp_path, capsys):
    constant = onnx.numpy_helper.from_array(np.ones(3, np.float32), "y")
    model = models.make([], [models.tensor("x", [1])], [models.tensor("y", [3])], [constant])
    path = models.save(model, tmp_path)
    assert main(["analyze", path, "--seconds", "0.1", "-q"]) == 0
    assert "No operators remain" in capsys.readouterr().out


def test_names_with_brackets_are_printed_as_they_are(tmp_path, capsys):
    model = plain_mlp()
    for number, name in enumerate(("block[/relu]", "attn[query]")):
        model.graph.node[2 * number].name = name
    assert main(["analyze", models.save(model, tmp_path), "--seconds", "0.1", "-q"]) == 0
    out = capsys.readouterr().out
    assert "block[/relu]" in out and "attn[query]" in out


def test_a_model_that_fails_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InferenceError):
        analyze(
            models.gather(),
            None,
            seconds=0.1,
            inputs=[np.zeros(3, np.float32), np.array([9], np.int64)],
        )
    with pytest.raises(ModelNotFoundError):
        analyze("nowhere.onnx")
    with pytest.raises(OptionError, match="seconds must be"):
        analyze(bundled_model(), seconds=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("trips", "state"),
    [([110.0], "110 ns"), ([110.0, 470.0], None)],
    ids=["stays", "changes during each"],
)
def test_figures_of_one_state_of_the_machine_are_told_from_mixed_ones(
    mlp, monkeypatch, capsys, trips, state
):
    turn = itertools.cycle(trips)
    monkeypatch.setattr(
        "deepsched.analysis.analyzing.neighbour_trips_ns", lambda cpus: (next(turn),)
    )
    assert analyze(mlp, seconds=0.2).state == state
    assert main(["analyze", mlp, "--seconds", "0.2"]) == 0
    assert ("distance between the cores changed" in capsys.readouterr().out) == (state is None)


def test_without_a_cache_weights_are_known_all_the_same():
    analysis = analyze(plain_mlp(), None, cache_dir=None, num_cores=1, seconds=0.02)
    assert {it.weight_shape for it in analysis.operators if it.op_type == "MatMul"} == {(64, 64)}


# --- DeepSparse's function ------------------------------------------------------------------------


def test_debug_analysis_has_deepsparses_keys():
    x = np.zeros((2, 64), np.float32)
    found = model_debug_analysis(plain_mlp(), [x], 2, num_iterations=3, num_warmup_iterations=1)
    assert found["batch_size"] == 2
    assert found["average_total_time"] > 0
    assert found["items_per_second"] > 0
    names = {layer["name"] for layer in found["layer_info"]}
    assert "MatMul" in names
    for layer in found["layer_info"]:
        assert 0 <= layer["average_utilization"] <= 1
        assert layer["output_dims"][0] == [2, 64]
        assert layer["kernel_dims"] == ({0: [64, 64]} if layer["name"] == "MatMul" else {})


def test_optimization_level_0_shows_the_operators_of_the_file():
    model = bundled_model("squeezenet")
    inputs = [np.zeros((1, 3, 224, 224), np.float32)]
    in_file = [node.op_type for node in onnx.load(model).graph.node]
    found = {
        level: model_debug_analysis(
            model, inputs, num_iterations=2, num_warmup_iterations=0, optimization_level=level
        )
        for level in (0, 1)
    }
    listed = [layer["name"] for layer in found[0]["layer_info"]]
    assert sorted(listed) == sorted(in_file)
    assert "Relu" in listed
    assert "Relu" not in [layer["name"] for layer in found[1]["layer_info"]]  # fused


@pytest.mark.parametrize(
    "options",
    [{"num_iterations": 0}, {"num_warmup_iterations": -1}, {"optimization_level": 2}],
)
def test_debug_analysis_refuses_what_makes_no_sense(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        model_debug_analysis(plain_mlp(), [np.zeros((1, 64), np.float32)], **options)


# --- The command ----------------------------------------------------------------------------------


def test_the_command_prints_types_and_operators_and_writes_files(mlp, tmp_path, capsys):
    export, table = tmp_path / "x.json", tmp_path / "x.csv"
    options = ["--seconds", "0.2", "--top", "2", "-q", "-x", str(export), "--csv", str(table)]
    assert main(["analyze", mlp, *options]) == 0
    out = capsys.readouterr().out
    assert "A lone request takes" in out
    assert "The 2 slowest of 6 operators" in out
    assert "1x64 64x64 > 1x64" in out
    assert len(json.loads(export.read_text())["operators"]) == 6
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["op_type"] for row in rows} == {"MatMul", "Tanh"}
    assert {row["weight_shape"] for row in rows if row["op_type"] == "MatMul"} == {"64x64"}


def test_the_command_prints_json(mlp, capsys):
    assert main(["analyze", mlp, "--seconds", "0.1", "-q", "--json", "-ncores", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plain_ms"].keys() == {"1"}
    assert {it["op_type"] for it in found["types"]} == {"MatMul", "Tanh"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.onnx"], "no model file at 'nowhere.onnx'"),
        (["MLP", "--seconds", "0"], "seconds must be a positive number"),
        (["MLP", "-i", "64"], "--input-shapes must look like"),
        (["MLP", "-x", "/nowhere/x.json"], "cannot write --output"),
        (["MLP", "-ncores", "0"], "--num-cores must be"),
        (["MLP", "--top", "-1"], "--top must be"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(mlp, capsys, arguments, message):
    assert main(["analyze", "-q", *(mlp if it == "MLP" else it for it in arguments)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
