"""How much memory the first start of a model takes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deepsched import Engine
from deepsched.errors import InvalidModelError, ModelError
from deepsched.models import room
from deepsched.models.large_weights import SMALLEST, split
from deepsched.models.prepare import prepare_model
from deepsched.models.rewrites.catalog import RULES, rewrite
from tests.support import models
from tests.support.cgroups import limits
from tests.support.contexts import two_sessions
from tests.support.plain_onnxruntime import assert_equals_plain

PLAIN = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
session.run(None, {"x": np.zeros((1, 1024), np.float32)})
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""

OURS = """
import sys
from deepsched import compile_model
with compile_model(sys.argv[1], cache_dir=sys.argv[2] or None) as engine:
    engine.run(engine.generate_random_inputs())
    print(engine.compiled.was_cached)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder of models with 48 MB of weights and an open batch, by where the weights are."""
    folder = tmp_path_factory.mktemp("large")
    model = models.mlp(width=1024, layers=12)
    onnx.save(model, folder / "inside.onnx")
    onnx.save(in_constants(model), folder / "in constants.onnx")
    onnx.save(as_floats(model), folder / "as floats.onnx")
    onnx.save(in_a_branch(model), folder / "in a branch.onnx")
    onnx.save(model, folder / "outside.onnx", save_as_external_data=True, location="weights")
    return folder


def in_constants(model):
    """The same, with its initializers in Constant nodes, as some exporters write them."""
    constants = [
        helper.make_node("Constant", [], [it.name], value=it) for it in model.graph.initializer
    ]
    return models.make(
        [*constants, *model.graph.node], list(model.graph.input), list(model.graph.output)
    )


def as_floats(model):
    """The same, with its weights as lists of numbers, as helper.make_tensor writes them."""
    weights = [
        TensorProto(
            name=it.name, dims=it.dims, data_type=it.data_type, float_data=numbers(it).ravel()
        )
        for it in model.graph.initializer
    ]
    return models.make(
        list(model.graph.node), list(model.graph.input), list(model.graph.output), weights
    )


def in_a_branch(model):
    """The same, as what is done where a constant is true."""
    graph = model.graph
    branch = helper.make_graph(graph.node, "then", [], graph.output, graph.initializer)
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])], "else", [], [models.tensor("z", None)]
    )
    node = helper.make_node("If", ["true"], ["out"], then_branch=branch, else_branch=other)
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    return models.make([node], list(graph.input), [models.tensor("out", None)], [true])


def numbers(tensor):
    return numpy_helper.to_array(tensor)


@pytest.fixture(scope="module")
def plain_peak(large):
    """Peak memory of plain onnxruntime, in bytes, by the model's path."""

    @functools.cache
    def peak(model):
        ran = subprocess.run([sys.executable, "-c", PLAIN, model], capture_output=True, check=True)
        return int(ran.stdout) * 1024

    return peak


@pytest.mark.field
@pytest.mark.parametrize(
    ("weights", "cache"),
    [
        *itertools.product(("inside", "outside"), ("with a cache", "without")),
        *((weights, "with a cache") for weights in ("in constants", "as floats", "in a branch")),
    ],
)
def test_a_first_start_lives_in_a_quarter_more_than_onnxruntimes_peak(
    large, plain_peak, tmp_path, weights, cache
):
    model = large / f"{weights}.onnx"
    cache_dir = tmp_path / "cache" if cache == "with a cache" else ""
    is_compiled = cache_dir and weights != "in a branch"  # for which there is no room
    with limits(memory=plain_peak(model) * 5 // 4) as group:
        for start in range(2 if is_compiled and weights != "outside" else 1):
            ran = group.run([sys.executable, "-c", OURS, model, cache_dir])
            assert ran.stdout == f"{start == 1}\n", ran.stderr


@pytest.mark.parametrize("weights", ["inside", "outside"])
def test_where_compiling_has_no_room_the_model_is_opened_as_onnxruntime_would(
    large, tmp_path, weights, monkeypatch, caplog
):
    monkeypatch.setattr(room, "memory_left", lambda root: 90_000_000)
    with Engine(large / f"{weights}.onnx", cache_dir=tmp_path) as engine:
        assert_equals_plain(engine, str(large / f"{weights}.onnx"))
        assert engine.compiled.folder is None and "90 MB are left" in engine.compiled.why_not
        assert engine.compiled.rewrites == ()  # to try one takes memory, too
    (message,) = caplog.messages
    assert "is not compiled" in message


def test_too_little_address_space_is_no_fault_of_the_model(tmp_path):
    # One of 96 MB: glibc has reserved 64 MB here and there.
    table = numpy_helper.from_array(np.zeros((6000, 4000), np.float32), "table")
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    x = models.tensor("x", ["n"], TensorProto.INT64)
    path = models.save(models.make(nodes, [x], [models.tensor("y", None)], [table]), tmp_path)
    code = """
    import re, resource, sys
    from pathlib import Path
    from deepsched import Context, Engine
    from deepsched.errors import InvalidModelError, ModelError
    from tests.support import models

    with Context(num_cores=1) as context:
        Engine(models.gemm(), context=context, cache_dir=None)
        taken = re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
        resource.setrlimit(resource.RLIMIT_AS, (int(taken) * 1024 + 20_000_000,) * 2)
        try:
            Engine(sys.argv[1], context=context, cache_dir=None, rewrites="none", batching="off")
        except ModelError as error:
            print(type(error).__name__, error)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), path],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.startswith("ModelError") and "too little memory" in ran.stdout


def factors_before_convolutions(path):
    """50 MB of weights, into all of which a rule folds factors."""
    nodes, weights, value = [], [], "x"
    rng = np.random.default_rng(0)
    for number in range(5):
        matrix = rng.standard_normal((1600, 1600, 1, 1)).astype(np.float32)
        weights += [numpy_helper.from_array(matrix, f"w{number}")]
        weights += [numpy_helper.from_array(np.float32([1.5]), f"c{number}")]
        output = "y" if number == 4 else f"v{number}"
        nodes += [
            helper.make_node("Softplus", [value], [f"s{number}"]),
            helper.make_node("Mul", [f"s{number}", f"c{number}"], [f"m{number}"]),
            helper.make_node("Conv", [f"m{number}", f"w{number}"], [output]),
        ]
        value = output
    inputs, outputs = (models.tensor(name, ["n", 1600, 2, 2]) for name in "xy")
    onnx.save(models.make(nodes, [inputs], [outputs], weights), path)


def test_rules_have_few_of_the_weights_copied(tmp_path):
    """Each of the five convolutions has 10 MB of them."""
    path = tmp_path / "model.onnx"
    factors_before_convolutions(path)
    model = onnx.load(path)
    before = model.ByteSize()
    assert rewrite(model, RULES).counts == {"affine": 1}
    assert model.ByteSize() - before < 16 * 2**20


@pytest.mark.field
@pytest.mark.parametrize(("megabytes", "is_tried"), [(210, False), (240, True)])
def test_rewriting_is_tried_where_it_has_room(tmp_path, megabytes, is_tried):
    """And the process lives in either case."""
    path = tmp_path / "model.onnx"
    factors_before_convolutions(path)
    code = """
    import sys
    from deepsched import Engine
    with Engine(sys.argv[1], num_cores=1, cache_dir=None) as engine:
        print(len(engine.compiled.rewrites))
    """
    with limits(memory=megabytes << 20) as group:
        ran = group.run([sys.executable, "-c", textwrap.dedent(code), path])
    assert ran.stdout == f"{is_tried:d}\n", ran.stderr


def test_memory_that_is_left_is_that_of_the_nearest_limit():
    code = """
    from pathlib import Path
    from deepsched.machine.cgroup import memory_left
    left = [memory_left(Path("/"))]
    kept = bytearray(b"x" * (32 << 20))
    print(*left, memory_left(Path("/")))
    """
    with limits(memory=200 << 20) as group:
        ran = group.run([sys.executable, "-c", textwrap.dedent(code)])
    before, after = map(int, ran.stdout.split())
    assert 150 << 20 < before < 200 << 20
    assert 30 << 20 < before - after < 70 << 20


# --- Weights beside the graph -----------------------------------------------------------------


@st.composite
def any_model(draw):
    """A model with initializers of any size, inputs that are initializers, and all in any order."""
    sizes = draw(st.lists(st.sampled_from([1, 7, SMALLEST // 4, SMALLEST // 4 + 1, 9999])))
    weights, constants = [], []
    for index, size in enumerate(sizes):
        dtype = draw(st.sampled_from([np.float32, np.float64, np.int64, np.complex64]))
        values = np.arange(size).astype(dtype)
        tensor = numpy_helper.from_array(values, f"w{index}")
        if draw(st.booleans()):  # typed data, which is no raw data
            tensor = helper.make_tensor(tensor.name, tensor.data_type, values.shape, values)
        if draw(st.booleans()):
            weights.append(tensor)
        else:
            node = helper.make_node("Constant", [], [tensor.name], value=tensor)
            tensor.name = draw(st.sampled_from(["", "another"]))  # of no meaning there
            node.attribute[0].t.CopyFrom(tensor)
            constants.append(node)
    return models.make(
        [*constants, helper.make_node("Identity", ["x"], ["y"])],
        [models.tensor("x", ["n"])],
        [models.tensor("y", ["n"])],
        weights,
    )


def contents(model):
    """Its initializers and constants by name."""
    found = {it.name: it for it in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = node.attribute[0].t
    return {
        name: (it.data_type, numbers(it).shape, numbers(it).tobytes()) for name, it in found.items()
    }


@settings(deadline=None, max_examples=50)
@given(any_model(), st.booleans())
def test_a_model_is_the_same_when_its_weights_are_put_back(tmp_path_factory, model, in_pieces):
    whole = model.SerializeToString(deterministic=True)
    given_bytes = whole
    if in_pieces:  # which protobuf merges
        rest = onnx.ModelProto()
        rest.graph.initializer.extend(model.graph.initializer)
        graph = onnx.ModelProto()
        graph.CopyFrom(model)
        del graph.graph.initializer[:]
        given_bytes = graph.SerializeToString() + rest.SerializeToString()
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(given_bytes)
    for source in (given_bytes, str(path)):
        graph, weights = split(source)
        expected = contents(model)
        whole_again = onnx.load_from_string(weights.put_back(graph))
        assert contents(whole_again) == expected
        initializers = onnx.load_from_string(graph).graph.initializer
        for it in initializers:
            assert len(it.raw_data) < SMALLEST
            assert it.data_type != TensorProto.FLOAT or 4 * len(it.float_data) < SMALLEST
        file = path.with_name("weights")
        offsets = weights.write(file)
        for place, offset in zip(weights.places, offsets, strict=True):
            content = file.read_bytes()[offset : offset + place.num_bytes]
            assert content == expected[initializers[place.initializer].name][2]
        file.unlink()


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, 2**16), st.integers(0, 2**16))
def test_damaged_models_raise_an_error_that_says_so(junk, cut, at):
    whole = models.gemm().SerializeToString()
    damaged = whole[: at % len(whole)] + junk + whole[at % len(whole) + cut % len(whole) :]
    with contextlib.suppress(ModelError):
        prepare_model(damaged, 1, None)


def test_a_model_replaced_while_it_is_prepared_keeps_its_own_weights(tmp_path):
    path = models.save(models.gemm(0), tmp_path)
    prepared = prepare_model(path, 1, None)
    onnx.save(models.gemm(1), tmp_path / "other")
    os.replace(tmp_path / "other", path)
    found, expected = onnx.load_from_string(prepared.source), models.gemm(0)
    assert found.graph.initializer == expected.graph.initializer


def test_a_model_written_to_while_it_is_prepared_is_not_used(tmp_path):
    path = models.save(models.gemm(0), tmp_path)
    prepared = prepare_model(path, 1, None)
    with open(path, "r+b") as file:
        file.write(file.read())
        file.truncate(1000)
    with pytest.raises(InvalidModelError, match="written to"):
        prepared.source  # noqa: B018


@pytest.mark.parametrize("given", ["path", "bytes", "proto"])
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_outputs_are_onnxruntimes_however_the_weights_reach_it(tmp_path, given, batch_size):
    model = models.gemm()
    source = {
        "path": models.save(model, tmp_path),
        "bytes": model.SerializeToString(),
        "proto": model,
    }[given]
    for cache_dir in (None, tmp_path / "cache"):
        with Engine(source, batch_size, cache_dir=cache_dir) as engine:
            assert_equals_plain(engine, model)
        with two_sessions() as context:
            engine = Engine(source, batch_size, context=context, cache_dir=cache_dir)
            assert engine.compiled.is_shared
            assert_equals_plain(engine, model)
