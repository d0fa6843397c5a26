"""Engines whose graphs were rewritten: what they answer, and what they tell of it."""

from __future__ import annotations

import json
import pickle

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from deepsched import Context, Engine, MultiModelEngine, compile_model
from deepsched.cli import main
from deepsched.errors import OptionError
from deepsched.models import compiled
from deepsched.models.rewrites import choosing
from deepsched.models.rewrites.agreement import compare
from deepsched.models.rewrites.timing import TimedRuns, Timing
from tests.support.models import make, mlp, save, tensor
from tests.support.plain_onnxruntime import reference, same_bits


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch):
    """Nothing can be timed, so that outputs alone decide; and a trial has all the time it needs."""
    monkeypatch.setattr(choosing, "_LEAST_BUDGET_S", 60)
    monkeypatch.setattr(choosing, "_MOST_BUDGET_S", 60)
    monkeypatch.setattr(TimedRuns, "timing", lambda *_: Timing(None, (1.0, 1.0)))


def network(batch="n", dims=(3, 8, 8)):
    """LRN, a factor after a convolution, a matrix product and Relu; with large weights."""
    rng = np.random.default_rng(0)
    weights = {
        "filters": rng.standard_normal((256, 3, 3, 3)),
        "factor": np.array([1.5]),
        "matrix": rng.standard_normal((256, 64)),
    }
    nodes = [
        helper.make_node("LRN", ["x"], ["normal"], size=3),
        helper.make_node("Conv", ["normal", "filters"], ["parts"]),
        helper.make_node("Mul", ["parts", "factor"], ["scaled"]),
        helper.make_node("GlobalAveragePool", ["scaled"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
        helper.make_node("MatMul", ["features", "matrix"], ["product"]),
        helper.make_node("Relu", ["product"], ["y"]),
    ]
    return make(
        nodes,
        [tensor("x", [batch, *dims])],
        [tensor("y", [batch, 64])],
        [numpy_helper.from_array(it.astype(np.float32), name) for name, it in weights.items()],
    )


def open_one(model, cache_dir, batch_size=1, **options):
    return Engine(model, batch_size, num_cores=1, cache_dir=cache_dir, **options)


def kept(engine):
    return {it.rule: it.num_places for it in engine.compiled.rewrites if it.is_kept}


def test_outputs_keep_the_accuracy_of_float32_and_the_engine_tells_what_was_done(tmp_path):
    model = network()
    with open_one(model, tmp_path) as engine:
        (x,) = engine.generate_random_inputs()
        assert compare(reference(model, [x]), engine.run([x])).is_allowed
        assert kept(engine) == {"lrn": 1, "affine": 1, "gemm": 1}
        assert all(it.gain is None and it.moved < 1e-5 for it in engine.compiled.rewrites)


def test_exact_rewrites_keep_every_bit_of_plain_onnxruntime(tmp_path):
    model = network()
    with open_one(model, tmp_path, rewrites="exact") as engine:
        inputs = engine.generate_random_inputs()
        same_bits(engine.run(inputs), reference(model, inputs))
        assert kept(engine) == {"gemm": 1}


def test_without_rewrites_nothing_is_changed(tmp_path):
    model = network()
    with open_one(model, tmp_path, rewrites="none") as engine:
        inputs = engine.generate_random_inputs()
        same_bits(engine.run(inputs), reference(model, inputs))
        assert engine.compiled.rewrites == ()


def test_a_form_in_the_cache_is_found_by_its_rewrites_and_tells_of_them_again(tmp_path):
    model, told = network(), {}
    for expected in (False, True):
        for rewrites in ("fast", "exact", "none"):
            with open_one(model, tmp_path, rewrites=rewrites) as engine:
                assert engine.compiled.was_cached == expected
                assert told.setdefault(rewrites, engine.compiled.rewrites) == (
                    engine.compiled.rewrites
                )
    assert len({json.dumps(it) for it in told.values()}) == 3


def test_what_is_found_in_the_cache_is_not_tried_again(tmp_path, monkeypatch):
    with open_one(network(), tmp_path):
        pass
    monkeypatch.setattr(TimedRuns, "run", None)
    with open_one(network(), tmp_path) as engine:
        assert engine.compiled.was_cached


def test_what_was_compiled_without_room_to_try_is_compiled_again_once_there_is(
    tmp_path, monkeypatch
):
    def none_left(prepared, in_memory, is_rewritten=False):
        return "no memory is left" if is_rewritten else ""

    told = []
    for has_room in (False, False, True, True):
        with monkeypatch.context() as patch:
            if not has_room:
                patch.setattr(compiled, "shortage", none_left)
            with open_one(network(), tmp_path) as engine:
                told.append((engine.compiled.was_cached, bool(kept(engine))))
    assert told == [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize("kind", ["path", "bytes", "ModelProto", "external data"])
@pytest.mark.parametrize("is_kept_on_disk", [True, False])
def test_every_kind_of_model_is_rewritten(tmp_path, kind, is_kept_on_disk):
    model = network()
    given = {
        "path": lambda: save(model, tmp_path),
        "bytes": model.SerializeToString,
        "ModelProto": lambda: model,
        "external data": lambda: save_apart(model, tmp_path),
    }[kind]()
    with open_one(given, tmp_path / "cache" if is_kept_on_disk else None) as engine:
        assert kept(engine) == {"lrn": 1, "affine": 1, "gemm": 1}
        (x,) = engine.generate_random_inputs()
        assert compare(reference(network(), [x]), engine.run([x])).is_allowed


def save_apart(model, folder):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    path = folder / "apart.onnx"
    onnx.save_model(copy, path, save_as_external_data=True, location="data", size_threshold=0)
    return str(path)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_any_batch_size_may_be_rewritten(tmp_path, batch_size):
    model = network()
    with open_one(model, tmp_path, batch_size) as engine:
        assert kept(engine) == {"lrn": 1, "affine": 1, "gemm": 1}
        x = np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)
        assert compare(reference(model, [x]), engine.run([x])).is_allowed


def test_a_model_of_ir_version_3_is_rewritten(tmp_path):
    # Its initializers are listed among its inputs.
    model = network()
    model.ir_version = 3
    model.opset_import[0].version = 9
    for it in model.graph.initializer:
        model.graph.input.append(tensor(it.name, list(it.dims)))
    with open_one(model, tmp_path) as engine:
        assert kept(engine) == {"lrn": 1, "affine": 1}


def test_engines_of_several_streams_and_of_all_cores_are_rewritten(tmp_path):
    model = mlp()
    for options in ({"scheduler": "multi_stream"}, {"scheduler": "elastic"}, {}):
        with compile_model(model, cache_dir=None, **options) as engine:
            assert kept(engine) == {"gemm": 3}
            inputs = engine.generate_random_inputs()
            same_bits(engine.run(inputs), reference(model, inputs))


@pytest.mark.parametrize("scheduler", ["single_stream", "elastic"])
def test_what_may_vary_is_told_of_the_operators_that_run(tmp_path, scheduler):
    # Its LRN would give other bits on another number of cores, and is replaced.
    for rewrites, expected in (("none", {"LRN"}), ("fast", set()), ("fast", set())):
        for deterministic in (False, True):
            with compile_model(
                network(),
                scheduler=scheduler,
                cache_dir=tmp_path,
                rewrites=rewrites,
                deterministic=deterministic,
            ) as engine:
                assert set(engine._served.opened.varying.by_width) == expected


def test_an_engine_that_is_pickled_keeps_its_rewrites(tmp_path):
    with (
        open_one(network(), tmp_path, rewrites="none") as engine,
        pickle.loads(pickle.dumps(engine)) as other,
    ):
        assert other.compiled.was_cached and other.compiled.rewrites == ()


def test_engines_of_one_context_may_have_other_rewrites(tmp_path):
    with Context(num_cores=1, num_streams=1) as context:
        for rewrites, expected in (("exact", {"gemm": 1}), ("none", {})):
            engine = MultiModelEngine(network(), 1, context, rewrites=rewrites)
            assert kept(engine) == expected


def test_a_model_with_operators_of_others_is_rewritten(tmp_path):
    extensions = pytest.importorskip(
        "onnxruntime_extensions", reason="needs: pip install onnxruntime-extensions"
    )
    model = mlp()
    model.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    model.graph.node.append(
        helper.make_node("NegPos", ["y"], ["below", "above"], domain="ai.onnx.contrib")
    )
    model.graph.output.append(tensor("above", None))
    library = extensions.get_library_path()
    with open_one(model, tmp_path, custom_ops=[library]) as engine:
        assert kept(engine) == {"gemm": 3}
        y, above = engine.run(engine.generate_random_inputs())
        same_bits([above], [y])


@pytest.mark.parametrize("value", ["int8", "FAST", None, True])
def test_unknown_rewrites_are_an_option_error(tmp_path, value):
    with pytest.raises(OptionError, match=f"'fast', 'exact' or 'none', got {value!r}"):
        open_one(mlp(), tmp_path, rewrites=value)


def test_the_commands_take_rewrites(tmp_path, capsys):
    path = save(mlp(), tmp_path)
    options = [path, "-q", "-t", "0.05", "--json", "--rewrites"]
    for rewrites, expected in (("exact", ["gemm"]), ("none", [])):
        assert main(["analyze", *options, rewrites]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [it["rule"] for it in found["rewrites"]] == expected
    assert main(["advise", *options, "exact", "--num-cores", "1"]) == 0
    assert 'rewrites="exact"' in json.loads(capsys.readouterr().out)["compile_line"]
    options += ["exact", "-s", "single_stream"]
    assert main(["trace", *options]) == 0
    assert main(["benchmark", *options, "-w", "0"]) == 0
