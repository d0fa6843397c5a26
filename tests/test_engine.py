"""Engine, MultiModelEngine, Context: the contract, and results equal to onnxruntime's."""

from __future__ import annotations

import gc
import os
import weakref

import numpy as np
import pytest

from deepsched import Context, Engine, MultiModelEngine, Scheduler, Topology, compile_model
from deepsched.benchmark import bundled_model
from deepsched.errors import ClosedError, ModelNotFoundError, OptionError, StreamConfigError
from tests.support import models
from tests.support.plain_onnxruntime import reference, same_bits
from tests.support.threads import in_threads

LIGHT_MODELS = [
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
]
NUM_CORES = len(Topology.detect().cores)


QUICK_MODELS = {"inception_v1", "shufflenet", "squeezenet"}  # of up to 7 million weights


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK_MODELS else [pytest.mark.field])
        for name in LIGHT_MODELS
    ],
)
@pytest.mark.parametrize("scheduler", ["single_stream", "multi_stream"])
def test_bundled_models_equal_onnxruntime_from_eight_threads(name, scheduler):
    path = bundled_model(name)
    num_streams = None if scheduler == "single_stream" else NUM_CORES
    with compile_model(
        path, scheduler=scheduler, num_streams=num_streams, rewrites="exact"
    ) as engine:
        inputs = engine.generate_random_inputs()
        expected = reference(path, inputs, len(engine.streams[0].cpus))
        in_threads(8, lambda _: same_bits(engine.run(inputs), expected))


def word_model():
    from onnx import TensorProto, helper

    return models.make(
        [helper.make_node("Concat", ["a", "b"], ["y"], axis=0)],
        [models.tensor(name, ["n"], TensorProto.STRING) for name in "ab"],
        [models.tensor("y", ["k"], TensorProto.STRING)],
    )


CASES = {
    "several inputs, int64, dynamic": (
        models.add_two_inputs,
        [np.ones((4, 3), np.float32), np.full((4, 3), 2, np.float32), np.array([2, 0])],
    ),
    "strings": (word_model, [np.array(["a", "b"], object), np.array(["c"], object)]),
    "sequences": (models.sequence_insert, [[np.ones(2, np.float32)], np.ones(3, np.float32)]),
    "mlp": (models.mlp, [np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scheduler", ["single_stream", "multi_stream"])
def test_other_models_equal_onnxruntime_from_eight_threads(case, scheduler):
    make, inputs = CASES[case]
    num_streams = None if scheduler == "single_stream" else NUM_CORES
    with Engine(make(), None, scheduler=scheduler, num_streams=num_streams) as engine:
        expected = reference(make(), inputs, len(engine.streams[0].cpus))
        in_threads(8, lambda _: [same_bits(engine.run(inputs), expected) for _ in range(20)])


def test_the_contract_of_an_engine(tmp_path):
    path = models.save(models.mlp(), tmp_path)
    with compile_model(path) as engine:
        assert engine.scheduler == "single_stream"
        assert engine.batch_size == 1
        assert engine.num_streams == 1
        assert engine.num_cores == NUM_CORES
        assert engine.model_path == path
        assert engine.input_names == ["x"]
        assert engine.input_shapes == [(1, 64)]
        assert engine.input_dtypes == [np.dtype("float32")]
        assert engine.output_names == ["y"]
        assert engine.output_shapes == [(1, 64)]
        assert len(engine.streams) == 1
        x = np.ones((1, 64), np.float32)
        (y,) = engine.run([x])
        for other in (engine([x]), engine((x,)), engine({"x": x})):
            same_bits(other, [y])
        same_bits(engine.mapped_run([x])["y"], y)
        assert [part.shape for part in engine.generate_random_inputs()] == [(1, 64)]


def test_pathlike_bytes_and_protos_are_models(tmp_path):
    proto = models.mlp()
    path = tmp_path / "model.onnx"
    models.save(proto, tmp_path)
    for model in (path, proto, proto.SerializeToString()):
        with Engine(model, batch_size=2) as engine:
            assert engine.input_shapes == [(2, 64)]
            assert engine.model_path == (str(path) if model is path else None)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_batch_size_none_leaves_the_model_as_it_is():
    with Engine(models.mlp(), None) as engine:
        assert engine.input_shapes == [("batch", 64)]
        for batch in (1, 7):
            assert engine.run([np.ones((batch, 64), np.float32)])[0].shape == (batch, 64)


def test_input_shapes_replace_fixed_sizes():
    path = bundled_model("squeezenet")
    with Engine(path, input_shapes=[[1, 3, 320, 320]]) as engine:
        assert engine.input_shapes == [(1, 3, 320, 320)]
        (x,) = engine.generate_random_inputs()
        assert engine.run([x])[0].shape[:2] == (1, 1000)


def test_the_batch_follows_input_shapes():
    with Engine(models.mlp(), input_shapes=[[5, 64]]) as engine:
        assert engine.batch_size == 5
        assert engine.run(engine.generate_random_inputs())[0].shape == (5, 64)


def test_a_fixed_batch_can_be_replaced():
    with Engine(bundled_model("squeezenet"), batch_size=3) as engine:
        assert engine.run(engine.generate_random_inputs())[0].shape == (3, 1000, 1, 1)


def test_two_models_share_one_set_of_streams():
    with Context(scheduler="multi_stream", num_streams=NUM_CORES) as context:
        a = MultiModelEngine(models.mlp(), 1, context)
        b = Engine(models.identity(["n"]), context=context)
        assert a.streams is b.streams is context.streams
        assert a.run([np.ones((1, 64), np.float32)])[0].shape == (1, 64)
        assert b.run([np.ones(1, np.float32)])[0].tolist() == [1.0]
    with pytest.raises(ClosedError):
        a.run([np.ones((1, 64), np.float32)])
    with pytest.raises(ClosedError):
        Engine(models.mlp(), context=context)


@pytest.mark.parametrize("option", [{"num_cores": 1}, {"num_streams": 1}, {"scheduler": "sync"}])
def test_a_contexts_options_are_not_an_engines(option):
    with Context() as context, pytest.raises(OptionError, match="are the context's"):
        Engine(models.mlp(), context=context, **option)


@pytest.mark.parametrize("word", ["sync", "single", "async", "multi", "elastic", "multi_stream"])
def test_deepsparses_words_are_taken_everywhere(word):
    with Engine(models.mlp(), scheduler=word) as engine, Context(scheduler=word) as context:
        assert engine.scheduler == context.scheduler == Scheduler.from_str(word)


@pytest.mark.parametrize("num_streams", [0, -1, NUM_CORES + 1])
@pytest.mark.parametrize("scheduler", ["single_stream", "multi_stream"])
def test_num_streams_out_of_range_is_refused(num_streams, scheduler):
    with pytest.raises(StreamConfigError, match=f"num_streams must be .*got {num_streams}$"):
        Engine(models.mlp(), scheduler=scheduler, num_streams=num_streams)


@pytest.mark.skipif(NUM_CORES < 2, reason="needs two streams")
def test_streams_are_warned_of_only_when_the_engine_opens(caplog):
    options = {"scheduler": "single_stream", "num_streams": 2}
    with pytest.raises(ModelNotFoundError):
        Engine("nowhere.onnx", **options)
    assert caplog.messages == []
    with Engine(models.mlp(), **options):
        (message,) = caplog.messages
    assert message.startswith("num_streams=2 has no effect with single_stream")
    caplog.clear()
    with Context(**options):
        assert caplog.messages == [message]


@pytest.mark.parametrize("num_streams", [1.5, "2", True])
def test_num_streams_must_be_an_integer(num_streams):
    with pytest.raises(StreamConfigError, match="num_streams"):
        Engine(models.mlp(), scheduler="multi_stream", num_streams=num_streams)


def test_another_machines_topology_needs_pin_none():
    machine = Topology.synthetic(packages=2, cores_per_l3=4)
    with pytest.raises(StreamConfigError, match="pin='none'"):
        Context(topology=machine)
    with Context(topology=machine, num_streams=8, pin="none") as context:
        assert context.num_streams == 8
        engine = Engine(models.mlp(), context=context)
        in_threads(8, lambda _: engine.run([np.ones((1, 64), np.float32)]))


def test_closing_is_final_and_may_be_repeated():
    engine = Engine(models.mlp())
    engine.close()
    engine.close()
    assert engine.is_closed
    with pytest.raises(ClosedError):
        engine.run([np.ones((1, 64), np.float32)])
    with pytest.raises(ClosedError), engine:
        pass


def test_a_dropped_engine_ends_its_threads():
    before = set(os.listdir("/proc/self/task"))
    engine = Engine(models.mlp(), scheduler="multi_stream", num_streams=NUM_CORES)
    assert set(os.listdir("/proc/self/task")) - before
    ref = weakref.ref(engine)
    del engine
    gc.collect()
    assert ref() is None
    assert not set(os.listdir("/proc/self/task")) - before


def test_a_failed_compile_leaves_no_threads():
    before = set(os.listdir("/proc/self/task"))
    with pytest.raises(Exception, match="no graph"):
        Engine(b"")
    with pytest.raises(OptionError):
        Engine(models.mlp(), scheduler="fastest")
    assert not set(os.listdir("/proc/self/task")) - before


def test_engines_can_be_made_in_many_threads_at_once():
    def work(i):
        for _ in range(3):
            with Engine(models.mlp()) as engine:
                assert engine.run([np.ones((1, 64), np.float32)])[0].shape == (1, 64)

    in_threads(4, work)
