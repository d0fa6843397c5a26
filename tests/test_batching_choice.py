"""Which models' requests may run together, and what an engine tells of it."""

from __future__ import annotations

import itertools
import json
import pickle
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deepsched import Context, Engine, MultiModelEngine, compile_model
from deepsched.cli import main
from deepsched.errors import InputError, OptionError
from deepsched.models.batching import search, trial
from deepsched.models.batching.curve import TimedSizes
from deepsched.models.batching.option import check_batching
from deepsched.models.rewrites.timing import TimedRuns, Timing
from tests.support import models
from tests.support.contexts import unpinned
from tests.support.models import make, mlp, save, tensor
from tests.support.plain_onnxruntime import reference, same_bits
from tests.support.requests import run_until_busy

_GAINING = {1: 8e-6, 2: 9e-6, 4: 11e-6, 8: 15e-6, 16: 29e-6}


@pytest.fixture(autouse=True)
def lengths(monkeypatch):
    """Sets how long runs seem to take, by their number of items; at first, batches of 8 gain."""

    def set_to(seconds, is_quiet=True):
        def timed(run, inputs_of, rows, most, is_thorough):
            found = {1: seconds[1], **{rows * size: of * rows for size, of in seconds.items()}}
            return TimedSizes(found, is_quiet)

        monkeypatch.setattr(trial, "time_sizes", timed)

    set_to(_GAINING)
    monkeypatch.setattr(trial, "shortest_run", lambda *_: (8e-6, True))
    monkeypatch.setattr(TimedRuns, "timing", lambda *_: Timing(None, (1.0, 1.0)))
    return set_to


def open_one(model, batch_size="auto", cache_dir=None, **options):
    return Engine(model, batch_size, num_cores=1, cache_dir=cache_dir, **options)


def found(model, *args, **options):
    with open_one(model, *args, **options) as engine:
        return engine.compiled.batching


def node(op_type, inputs, outputs, **attributes):
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def weights(**shapes):
    rng = np.random.default_rng(0)
    return [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


def lstm(layout=("seq", 1, 8)):
    return make(
        [node("LSTM", "x w r", "all y", hidden_size=4), node("Squeeze", "all axes", "z")],
        [tensor("x", layout)],
        [tensor("z", [layout[0], layout[1], 4])],
        [*weights(w=(1, 16, 8), r=(1, 16, 4)), numpy_helper.from_array(np.array([1]), "axes")],
    )


def one_layer(*nodes, outputs=("y",), inputs=None, extra=(), shape=("n", 8), opset=17):
    return make(
        list(nodes),
        inputs or [tensor("x", shape)],
        [tensor(name, None) for name in outputs],
        [*weights(w=(8, 8), s=(8,)), *extra],
        opset=opset,
    )


FITTING = {
    "by symbol": mlp(),
    "no symbol": mlp(batch=None),
    "opset 7": one_layer(node("MatMul", "x w", "y"), opset=7),
    "opset 23": one_layer(node("MatMul", "x w", "y"), opset=23),
    "two inputs": one_layer(
        node("Add", "x b", "y"), inputs=[tensor("x", ["n", 8]), tensor("b", ["n", 8])]
    ),
    "ids": one_layer(
        node("Gather", "w x", "e"),
        node("ReduceMean", "e", "y", axes=[1]),
        inputs=[tensor("x", ["n", 5], TensorProto.INT64)],
    ),
    "outputs of several ranks": one_layer(
        node("ReduceMean", "x", "m", axes=[1], keepdims=0),
        node("MatMul", "x w", "y"),
        outputs=("y", "m"),
    ),
    "convolutions": models.classifier(),
}

_TRAINING = dict(training_mode=1)

UNFIT = {
    "a fixed size": (mlp(batch=1), "first dimension of 1, which is not open"),
    "a constant input": (
        one_layer(node("Mul", "x f", "y"), inputs=[tensor("x", ["n", 8]), tensor("f", [1])]),
        "input 'f' has a first dimension of 1",
    ),
    "a scalar input": (
        one_layer(node("Mul", "x f", "y"), inputs=[tensor("x", ["n", 8]), tensor("f", [])]),
        "input 'f' has no first dimension",
    ),
    "two symbols": (models.add_two_inputs(), "different ones: k, n"),
    "a length": (lstm(), "'seq', is no batch"),
    "a length without a name": (lstm((None, 1, 8)), "depend on the requests"),
    "the same size twice": (models.identity(("n", "n")), "is another one as well"),
    "many open dimensions": (models.identity(("n", *"abcdef")), "too many open dimensions"),
    "strings": (models.identity(("n", 2), TensorProto.STRING), "no tensor of numbers"),
    "a sequence": (models.sequence_insert(), "no tensor of numbers"),
    "a sum over the batch": (
        one_layer(
            node("ReduceSum", "x zero", "y"), extra=[numpy_helper.from_array(np.array([0]), "zero")]
        ),
        "is not known to have an open first",
    ),
    "a mean of the batch": (
        one_layer(node("ReduceMean", "x", "m", axes=[0]), node("Sub", "x m", "y")),
        "depend on the requests",
    ),
    "a scale of the whole": (
        one_layer(node("ReduceMax", "x", "m", keepdims=0), node("Div", "x m", "y")),
        "depend on the requests",
    ),
    "softmax over the batch": (
        one_layer(node("Softmax", "x", "y", axis=0)),
        "depend on the requests",
    ),
    "products of the batch": (models.gram(), "is not the batch|depend on the requests"),
    "training": (
        one_layer(node("BatchNormalization", "x s s s s", "y a b", **_TRAINING)),
        "by BatchNormalization",
    ),
    "a dynamic scale": (
        one_layer(
            node("DynamicQuantizeLinear", "x", "q scale zero"),
            node("DequantizeLinear", "q scale zero", "y"),
        ),
        "by DynamicQuantizeLinear",
    ),
    "random numbers": (
        one_layer(node("RandomNormalLike", "x", "r"), node("Add", "x r", "y")),
        "by RandomNormalLike",
    ),
    "a branch": (
        one_layer(
            node("ReduceMax", "x", "m", keepdims=0),
            node("Greater", "m m", "c"),
            node(
                "If",
                "c",
                "y",
                then_branch=helper.make_graph(
                    [node("Abs", "x", "p")], "p", [], [tensor("p", None)]
                ),
                else_branch=helper.make_graph(
                    [node("Neg", "x", "q")], "q", [], [tensor("q", None)]
                ),
            ),
        ),
        "by If",
    ),
    "as many as there are": (
        one_layer(
            node("ReduceMax", "x", "m", axes=[1]),
            node("Equal", "x m", "is"),
            node("NonZero", "is", "places"),
            node("Gather", "places second", "found"),
            node("Cast", "found", "y", to=TensorProto.FLOAT),
            extra=[numpy_helper.from_array(np.array(1), "second")],
        ),
        "by NonZero",
    ),
    "a scale of the whole of what is looked up": (
        one_layer(
            node("Gather", "table x", "e"),
            node("ReduceMax", "e", "m", keepdims=0),
            node("Div", "e m", "y"),
            inputs=[tensor("x", ["n", 16], TensorProto.INT64)],
            extra=weights(table=(40, 8)),
        ),
        "depend on the requests",
    ),
    "an output that is no batch": (
        one_layer(node("ReduceSum", "x", "y", keepdims=1)),
        "is not known to have an open first",
    ),
    "a reshape to one item": (
        make(
            [
                node("Shape", "x", "dims"),
                node("Reshape", "x one", "f"),
                node("Reshape", "f dims", "y"),
            ],
            [tensor("x", ["n", 8])],
            [tensor("y", ["n", 8])],
            [numpy_helper.from_array(np.array([1, 8]), "one")],
        ),
        "a run of 2 items fails",
    ),
}


@pytest.mark.parametrize("model", FITTING.values(), ids=FITTING)
def test_requests_of_independent_items_may_run_together(model):
    batching = found(model)
    assert (batching.sizes, batching.why_not) == ((1, 2, 4, 8), "")
    assert batching.run_ns == (8000, 9000, 11000, 15000)
    assert batching.gain == pytest.approx(1 - 15 / 8 / 8)
    assert batching.moved < 1e-5


@pytest.mark.parametrize(("model", "why_not"), UNFIT.values(), ids=UNFIT)
def test_requests_of_other_models_run_alone_and_the_engine_says_why(model, why_not):
    batching = found(model)
    assert batching.sizes == ()
    assert re.search(why_not, batching.why_not), batching


@pytest.mark.parametrize("name", ["a dynamic scale", "random numbers", "training"])
def test_a_number_allows_answers_that_depend_on_mates(name):
    assert found(UNFIT[name][0], batching=4).sizes == (1, 2, 4)


@pytest.mark.parametrize("name", ["a fixed size", "a length", "a mean of the batch", "strings"])
def test_a_number_does_not_join_what_is_no_batch(name):
    model, why_not = UNFIT[name]
    with pytest.raises(OptionError, match=f'batching=4.*({why_not}).*leave it at "auto"'):
        open_one(model, batching=4)


def test_batches_that_save_too_little_are_not_used(lengths):
    lengths({1: 8e-3, 2: 15e-3, 4: 29e-3})
    batching = found(mlp())
    assert batching.sizes == () and batching.gain == pytest.approx(1 - 15 / 16)
    assert batching.why_not == "runs of several items save 6% an item"
    with open_one(mlp()) as engine:
        same_bits(
            engine.run([np.ones((1, 64), np.float32)]),
            reference(mlp(), [np.ones((1, 64), np.float32)]),
        )
    assert found(mlp(), batching=3).sizes == (1, 2, 3)


def test_a_request_that_takes_much_memory_is_not_joined_with_others():
    grows = make(
        [
            node("Expand", "x shape", "large"),
            node("ReduceMean", "large", "y", axes=[1, 2], keepdims=0),
        ],
        [tensor("x", ["n", 1, 1])],
        [tensor("y", ["n"])],
        [numpy_helper.from_array(np.array([1, 5000, 8000]), "shape")],  # 160 MB an item
    )
    assert re.search(r"a request alone takes \d+ MB of memory", found(grows).why_not)


def test_off_tries_nothing(monkeypatch):
    monkeypatch.setattr(search, "Search", None)
    batching = found(mlp(), batching="off")
    assert (batching.sizes, batching.why_not) == ((), "")


def test_a_request_still_has_the_size_that_the_engine_was_made_for():
    for batch_size, rows in (("auto", 1), (4, 4)):
        with open_one(mlp(), batch_size) as engine:
            assert engine.compiled.batching.sizes[-1] == 8 * rows
            assert engine.input_shapes == engine.output_shapes == [(rows, 64)]
            (x,) = engine.generate_random_inputs()
            same_bits(engine.run([x]), reference(mlp(), [x]))
            with pytest.raises(InputError):
                engine.run([np.concatenate([x, x])])
    with open_one(mlp(), None) as engine:
        assert engine.input_shapes == [("batch", 64)]
        assert engine.run([np.ones((3, 64), np.float32)])[0].shape == (3, 64)


def test_sizes_that_were_asked_for_stay_though_the_batch_may_be_any():
    with open_one(mlp(), None, input_shapes=[[2, 64]]) as engine:
        assert engine.compiled.batching.sizes[-1] == 16
        assert engine.batch_size is None
        assert engine.input_shapes == engine.output_shapes == [(2, 64)]
        (x,) = engine.generate_random_inputs()
        same_bits(engine.run([x]), reference(mlp(), [x]))
        with pytest.raises(InputError):
            engine.run([x[:1]])


def test_inputs_that_are_to_have_different_first_sizes_run_alone():
    shapes = [tensor("a", [None, 8]), tensor("b", [None, 8])]
    model = one_layer(
        node("MatMul", "a w", "y"), node("MatMul", "b w", "z"), outputs=("y", "z"), inputs=shapes
    )
    inputs = [np.ones((2, 8), np.float32), np.ones((3, 8), np.float32)]
    with open_one(model, input_shapes=[[2, 8], [3, 8]]) as engine:
        assert "different sizes" in engine.compiled.batching.why_not
        same_bits(engine.run(inputs), reference(model, inputs))


def test_other_sizes_of_the_input_stay_as_they_were_asked_for():
    model = models.classifier()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    shapes = [[1, 3, 64, 224]]
    with Engine(model, input_shapes=shapes, num_cores=1, cache_dir=None) as engine:
        assert engine.input_shapes == [(1, 3, 64, 224)] and engine.compiled.batching.sizes
        inputs = engine.generate_random_inputs()
        np.testing.assert_allclose(engine.run(inputs)[0], reference(model, inputs)[0], rtol=1e-5)


def test_what_was_found_is_kept_in_the_cache_and_not_tried_again(tmp_path, monkeypatch):
    first = found(mlp(), cache_dir=tmp_path)
    assert first.sizes
    monkeypatch.setattr(search, "Search", None)
    with open_one(mlp(), cache_dir=tmp_path) as engine:
        assert engine.compiled.was_cached
        assert engine.compiled.batching == first


def test_what_could_not_be_measured_is_tried_at_the_next_start(tmp_path, lengths):
    lengths(_GAINING, is_quiet=False)
    batching = found(mlp(), cache_dir=tmp_path)
    assert (batching.sizes, batching.is_settled) == ((), False)
    assert "others had the CPU" in batching.why_not
    lengths(_GAINING)
    assert found(mlp(), cache_dir=tmp_path).sizes == (1, 2, 4, 8)
    with open_one(mlp(), cache_dir=tmp_path) as engine:
        assert engine.compiled.was_cached and engine.compiled.batching.is_settled


@pytest.mark.parametrize("is_quiet", [False, True])
def test_a_lone_request_that_seems_slower_is_tried_again_if_others_had_the_cpu(
    tmp_path, monkeypatch, is_quiet
):
    lengths = itertools.cycle([8e-6, 9e-6])  # of the plain form, and of the open one
    monkeypatch.setattr(trial, "shortest_run", lambda *_: (next(lengths), is_quiet))
    batching = found(mlp(), cache_dir=tmp_path)
    assert "requests alone take 12% longer" in batching.why_not
    assert batching.is_settled == is_quiet
    monkeypatch.setattr(trial, "shortest_run", lambda *_: (8e-6, True))
    assert bool(found(mlp(), cache_dir=tmp_path).sizes) != is_quiet


def test_what_gains_nothing_even_beside_others_is_not_tried_again(tmp_path, lengths):
    lengths({1: 8e-3, 2: 16e-3}, is_quiet=False)
    assert found(mlp(), cache_dir=tmp_path).is_settled
    with open_one(mlp(), cache_dir=tmp_path) as engine:
        assert engine.compiled.was_cached


def test_forms_for_each_option_have_entries_of_their_own(tmp_path):
    for expected in (False, True):
        for option, sizes in (("auto", 8), ("off", 0), (4, 4)):
            with open_one(mlp(), cache_dir=tmp_path, batching=option) as engine:
                assert engine.compiled.was_cached == expected
                assert max(engine.compiled.batching.sizes, default=0) == sizes
    assert found(mlp(), cache_dir=tmp_path, batching=256).sizes == (1, 2, 4, 8, 16, 256)


def test_batches_have_no_weights_of_their_own(tmp_path):
    """Weights are as many, in as many files, as without."""
    model = save(mlp(width=512), tmp_path)
    sizes = []
    for option in ("off", "auto"):
        with open_one(model, cache_dir=tmp_path / option, batching=option) as engine:
            engine.run(engine.generate_random_inputs())
            (entry,) = (tmp_path / option).rglob("weights")
            with open("/proc/self/maps") as maps:
                mapped = {line.split()[4] for line in maps if str(entry) in line}
            sizes.append(
                (engine.compiled.weights_bytes, len(mapped), engine.memory().weights_private)
            )
    assert sizes[0] == sizes[1]
    assert sizes[0][0] >= 3 * 512 * 512 * 4 and sizes[0][1] == 1


@pytest.mark.parametrize("kind", ["path", "bytes", "ModelProto", "external data"])
def test_every_kind_of_model_may_have_batches(tmp_path, kind):
    model = mlp(width=128)
    path = save(model, tmp_path)
    if kind == "external data":
        onnx.save_model(model, path, save_as_external_data=True, location="data", size_threshold=0)
    given = {"bytes": mlp(width=128).SerializeToString(), "ModelProto": mlp(width=128)}.get(
        kind, path
    )
    for options in ({"cache_dir": None}, {"cache_dir": tmp_path / "cache"}):
        with compile_model(given, scheduler="multi_stream", **options) as engine:
            assert engine.compiled.batching.sizes == (1, 2, 4, 8)
            inputs = engine.generate_random_inputs()
            same_bits(engine.run(inputs), reference(mlp(width=128), inputs))


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_number_that_no_two_requests_fit_into_is_an_option_error(tmp_path, is_cached):
    cache_dir = tmp_path if is_cached else None
    if is_cached:
        assert found(mlp(), 8, cache_dir=tmp_path, batching=16).sizes == (1, 8, 16)
    with pytest.raises(OptionError, match="batching=15, but a request has 8 items.*16 or more"):
        open_one(mlp(), 8, cache_dir=cache_dir, batching=15)


def test_what_a_larger_item_counts_for_is_told_by_the_size_that_was_tried():
    model = models.identity(("n", "k"))
    assert found(model).item_size == 64
    assert found(model, batching=4).item_size == 0  # in any case
    assert found(mlp(), None).item_size == found(mlp(), 4).item_size == 64


def shifts_with_the_batch():
    """Another last bit in a batch than alone: an exact sum of a part that is cancelled."""
    return one_layer(
        node("Shape", "x", "dims"),
        node("Gather", "dims first", "n"),
        node("Cast", "n", "f", to=TensorProto.FLOAT),
        node("Mul", "f tiny", "t"),
        node("Exp", "t", "u"),
        node("Mul", "x u", "y"),
        extra=[
            numpy_helper.from_array(np.array(0), "first"),
            numpy_helper.from_array(np.float32(1e-7), "tiny"),
        ],
    )


def test_where_every_bit_is_to_stay_batches_that_move_one_are_not_used():
    model = shifts_with_the_batch()
    assert 0 < found(model).moved < 1e-5 and found(model).sizes
    for options in ({"rewrites": "exact"}, {"rewrites": "none"}, {"deterministic": True}):
        batching = found(model, **options)
        assert batching.sizes == () and "every bit is to stay" in batching.why_not
        assert found(mlp(), **options).sizes
    assert found(model, batching=4, deterministic=True).sizes == (1, 2, 4)


def test_every_size_of_batch_keeps_its_bits_where_every_bit_is_to_stay():
    """Four items of this model, and no other number, have another last bit."""
    model = one_layer(
        node("Shape", "x", "dims"),
        node("Gather", "dims first", "n"),
        node("Equal", "n four", "is_four"),
        node("Where", "is_four more one", "factor"),
        node("Mul", "x factor", "y"),
        extra=[
            numpy_helper.from_array(np.array(0), "first"),
            numpy_helper.from_array(np.array(4), "four"),
            numpy_helper.from_array(np.float32(1 + 2**-23), "more"),
            numpy_helper.from_array(np.float32(1), "one"),
        ],
    )
    assert found(model).sizes
    for options in ({"rewrites": "exact"}, {"deterministic": True}):
        assert "every bit is to stay" in found(model, **options).why_not


def test_an_engine_that_is_pickled_keeps_its_batching(tmp_path):
    with (
        open_one(mlp(), cache_dir=tmp_path, batching=4) as engine,
        pickle.loads(pickle.dumps(engine)) as other,
    ):
        assert other.compiled.was_cached and other.compiled.batching.sizes == (1, 2, 4)


def test_what_turns_batches_off_in_service_is_told_and_stays_so_on_other_cores():
    """Items below -1e5 are left out, so outputs are not as many as inputs; none that are made up
    is so small."""
    model = one_layer(
        node("ReduceMin", "x", "least", axes=[1], keepdims=0),
        node("Greater", "least bound", "is_kept"),
        node("Compress", "x is_kept", "y", axis=0),
        extra=[numpy_helper.from_array(np.float32(-1e5), "bound")],
    )
    with Context(num_cores=1, num_streams=1) as context:
        blocker = Engine(models.spin(), None, context=context, batching="off")
        engine = Engine(model, None, context=context, batching=4, cache_dir=None)
        assert engine.compiled.batching.sizes == (1, 2, 4)
        for move in (False, True):
            if move:
                context.resize(num_cores=1)
            long = run_until_busy(blocker)
            inputs = [np.full((1, 8), 1e6 * (i == 2) * -1 + i, np.float32) for i in range(4)]
            futures = [engine.submit([x]) for x in inputs]
            long.cancel()
            for i, future in enumerate(futures):
                assert future.result()[0].tolist() == inputs[i][: i != 2].tolist()
            assert "did not have an item for each" in engine.compiled.batching.why_not
            assert engine.compiled.batching.sizes == ()
            assert max(engine.stats().by_batch) == 1


def test_engines_of_one_context_may_have_other_batching():
    with Context(num_cores=1, num_streams=1) as context:
        assert MultiModelEngine(mlp(), 1, context).compiled.batching.sizes
        assert not MultiModelEngine(mlp(), 1, context, batching="off").compiled.batching.sizes


@pytest.mark.parametrize("value", [1, 0, -4, 100_000, True, None, "on", "8", 2.5])
def test_unknown_batching_is_an_option_error(value):
    expected = r"an integer between 2 and \d+ \(items in a run\), or 'auto' or 'off'"
    with pytest.raises(OptionError, match=f"batching must be {expected}, got {value!r}"):
        open_one(mlp(), batching=value)
    assert check_batching(np.int64(8)) == 8


def test_the_commands_take_batching(tmp_path, capsys):
    path = save(mlp(), tmp_path)
    for option, line in (("off", 'batching="off"'), ("4", "batching=4")):
        args = [path, "-q", "-t", "0.05", "--json", "--batching", option]
        assert main(["advise", *args, "--num-cores", "1"]) == 0
        assert line in json.loads(capsys.readouterr().out)["compile_line"]
        assert main(["benchmark", *args, "-s", "single_stream", "-w", "0"]) == 0
        shown = json.loads(capsys.readouterr().out)["batching"]
        assert shown.startswith({"off": "each request alone", "4": "up to 4 items"}[option])
        assert main(["trace", path, "-q", "-t", "0.05", "--batching", option]) == 0
        capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["benchmark", path, "--batching", "on"])
    assert "expected auto, off or an integer, got 'on'" in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", ["auto", 2, None])
def test_requests_that_wait_run_together_and_get_the_answers_that_they_get_alone(batch_size):
    rng = np.random.default_rng(0)
    rows = [2 if batch_size == 2 else 1 + number % 2 * (batch_size is None) for number in range(6)]
    inputs = [rng.standard_normal((num, 64)).astype(np.float32) for num in rows]
    with unpinned(1) as context:
        blocker = Engine(models.spin(), None, context=context)
        engine = Engine(mlp(), batch_size, context=context)
        busy = blocker.submit([np.array(20_000), np.ones((64, 64), np.float32)])
        futures = [engine.submit([x]) for x in inputs]
        answers = [future.result() for future in futures]
        busy.result()
        for x, answer in zip(inputs, answers, strict=True):
            same_bits(answer, reference(mlp(), [x]))
        assert sum(count for size, count in engine.stats().by_batch.items() if size > 1) >= 1
        assert engine.stats().done == 6
