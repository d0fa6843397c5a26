"""Which rules a compile keeps: those whose outputs agree and whose runs are shorter."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deepsched.machine.partition import partition
from deepsched.machine.topology import Topology
from deepsched.models.rewrites import choosing, timing
from deepsched.models.rewrites.agreement import compare
from deepsched.models.rewrites.choosing import choose
from deepsched.models.rewrites.gemm import GEMM
from deepsched.models.rewrites.graph import copy_without_weights
from deepsched.models.rewrites.made_up import fix_sizes, sizes_to_try
from deepsched.models.rewrites.rule import Rule
from deepsched.models.rewrites.timing import TimedRuns, Timing
from deepsched.runtime.session import open_session
from tests.support.models import make, mlp, tensor
from tests.support.rewrite_patterns import affine_between

STREAMS = partition(Topology.detect(), num_streams=1, num_cores=1).streams


def try_rules(model, rules):
    """choose(), and the number of times that the model was opened."""
    opened = []

    def load():
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy

    def open_form(rewritten, config, stream):
        opened.append(rewritten)
        return open_session(
            (model if rewritten is None else rewritten).SerializeToString(),
            num_threads=len(stream.cpus),
            cpus=None,
            thread_prefix="trial",
            config=dict(config),
        )

    to_array = numpy_helper.to_array
    return choose(load, to_array, rules, open_form, STREAMS, is_pinned=False), len(opened)


@pytest.fixture
def run_seconds(monkeypatch):
    """Sets what runs take at each visit of a form, in the order of visits, the plain one first."""

    def set_to(*figures, yardsticks=(1.0,) * 20):
        visits = iter(figures)
        marks = iter(yardsticks)
        monkeypatch.setattr(
            TimedRuns, "timing", lambda *_: Timing(next(visits), (next(marks),) * 2)
        )

    return set_to


def replaces(op_type, new_type, is_exact=False, name="test"):
    """A rule that puts another operator in place of one."""

    def rewrite(graph):
        found = list(graph.of_type(op_type))
        for node in found:
            graph.replace([node], [helper.make_node(new_type, node.input, node.output)])
        return len(found)

    return Rule(name, is_exact, rewrite)


def test_a_model_that_no_rule_fits_is_not_opened_for_it(run_seconds):
    run_seconds()
    choice, num_opened = try_rules(mlp(), [replaces("LRN", "Relu")])
    assert num_opened == 0
    assert choice == ((), ())


def test_a_faster_form_with_the_same_bits_is_kept(run_seconds):
    run_seconds(1.0, 0.8)
    choice, _ = try_rules(mlp(), [GEMM])
    (tried,) = choice.tried
    assert choice.rules == (GEMM,)
    assert tried.is_kept and tried.is_exact and tried.num_places == 3
    assert (tried.rule, tried.gain, tried.moved) == ("gemm", pytest.approx(0.2), 0.0)


def test_a_form_that_is_not_faster_is_not_kept(run_seconds):
    run_seconds(1.0, 1.0)
    choice, _ = try_rules(mlp(), [GEMM])
    assert choice.rules == ()
    assert choice.tried[0].why_not == "it is not faster here"


def test_a_form_of_long_runs_that_is_not_faster_is_not_kept(run_seconds, monkeypatch):
    monkeypatch.setattr(choosing, "_LONG_RUN_S", 0.0)
    run_seconds(1.0, 1.0)
    choice, _ = try_rules(mlp(), [GEMM])
    assert choice.rules == ()
    assert choice.tried[0].why_not == "it is not faster here"


def test_a_form_with_other_outputs_is_not_kept(run_seconds):
    run_seconds(*[1.0, 0.1] * 4)
    choice, _ = try_rules(mlp(), [replaces("Relu", "Softplus")])
    assert choice.rules == ()
    assert "accuracy" in choice.tried[0].why_not
    assert choice.tried[0].moved > 1e-3


def test_a_rule_that_is_to_keep_bits_and_moves_one_is_not_kept(run_seconds):
    run_seconds(*[1.0, 0.1] * 4)
    model = affine_between().model()

    def last_bit(graph):
        (node,) = graph.of_type("Mul")
        value = np.nextafter(graph.constant("c0"), np.float32(9))
        names = [node.input[0], graph.add_constant(value)]
        graph.replace([node], [helper.make_node("Mul", names, node.output)])
        return 1

    choice, _ = try_rules(model, [Rule("test", True, last_bit)])
    assert choice.rules == ()
    assert choice.tried[0].why_not == "outputs are not the same bits"
    choice, _ = try_rules(model, [Rule("test", False, last_bit)])
    assert [rule.name for rule in choice.rules] == ["test"]


def test_a_form_that_does_not_open_is_not_kept(run_seconds):
    run_seconds(*[1.0, 0.1] * 4)
    choice, _ = try_rules(mlp(), [replaces("Relu", "NoSuchOperator")])
    assert choice.rules == ()
    assert "does not run" in choice.tried[0].why_not


@pytest.mark.parametrize(
    ("figures", "yardsticks"),
    [((None, 1.0), (1.0, 1.0)), ((1.0, None), (1.0, 1.0)), ((1.0, 2.0), (1.0, 1.2))],
    ids=["others had the CPU before", "others had the CPU", "the machine changed meanwhile"],
)
def test_a_form_that_cannot_be_timed_is_kept_by_its_outputs_alone(run_seconds, figures, yardsticks):
    run_seconds(*figures, yardsticks=yardsticks)
    choice, _ = try_rules(mlp(), [GEMM])
    assert choice.rules == (GEMM,)
    assert choice.tried[0].is_kept and choice.tried[0].gain is None


@pytest.fixture
def a_second_a_visit(run_seconds, monkeypatch):
    """As run_seconds, on a clock by which each visit takes a second."""
    now = [0.0]

    def set_to(*figures):
        run_seconds(*figures)
        timing_of = TimedRuns.timing

        def timing(*arguments):
            now[0] += 1.0
            return timing_of(*arguments)

        monkeypatch.setattr(TimedRuns, "timing", timing)

        def clock():
            now[0] += 1e-6  # time passes
            return now[0]

        monkeypatch.setattr(choosing, "perf_counter", clock)

    return set_to


def test_two_rules_are_tried_one_after_the_other(a_second_a_visit):
    a_second_a_visit(1.0, 0.5, 0.6)
    choice, _ = try_rules(mlp(layers=2), [GEMM, replaces("Gemm", "Gemm", name="slower")])
    assert [(it.rule, it.is_kept, it.together_with) for it in choice.tried] == [
        ("gemm", True, ()),
        ("slower", False, ()),
    ]


def test_of_rules_tried_together_the_good_one_stays(a_second_a_visit, monkeypatch):
    monkeypatch.setattr(choosing, "_BUDGET_OF_COMPILE", 2.5)
    plain, together, gemm_alone, bad_too = 1.0, 0.5, 0.5, 0.4
    a_second_a_visit(plain, together, gemm_alone, bad_too)
    bad = replaces("Relu", "Softplus", name="bad")
    third = replaces("Gemm", "Gemm", name="third")
    choice, _ = try_rules(mlp(layers=2), [GEMM, bad, third])
    kept = {it.rule: it.is_kept for it in choice.tried}
    assert kept == {"gemm": True, "bad": False, "third": False}
    assert choice.rules == (GEMM,)
    assert choice.tried[-1].why_not == "the time to try rules was over"


def test_what_is_left_when_the_time_is_over_is_not_tried(run_seconds, monkeypatch):
    monkeypatch.setattr(choosing, "_LEAST_BUDGET_S", 0)
    monkeypatch.setattr(choosing, "_MOST_BUDGET_S", 0)
    run_seconds(*[1.0, 0.5] * 8)
    bad = replaces("Relu", "Softplus", name="bad")
    choice, num_opened = try_rules(mlp(layers=2), [GEMM, bad])
    assert num_opened == 3  # plain, both rules, and plain to see how far outputs may move
    assert choice.rules == ()
    assert {it.together_with for it in choice.tried} == {("gemm",), ("bad",)}


def test_places_are_counted_without_the_rules_that_are_not_kept(run_seconds, monkeypatch):
    monkeypatch.setattr(choosing, "_LEAST_BUDGET_S", 10)  # for one rule after another
    run_seconds(1.0, 2.0, 0.5)

    first = replaces("Relu", "Identity", name="first")
    second = replaces("Identity", "Identity", name="second")
    model = mlp(layers=2)
    model.graph.node.append(helper.make_node("Identity", ["y"], ["z"]))
    choice, _ = try_rules(model, [first, second])
    assert [(it.rule, it.num_places) for it in choice.tried] == [("first", 2), ("second", 1)]


def test_a_model_with_chance_in_it_is_left_alone(run_seconds):
    run_seconds(*[1.0, 0.5] * 4)
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"]),
        helper.make_node("Add", ["x", "noise"], ["noisy"]),
        helper.make_node("Relu", ["noisy"], ["y"]),
    ]
    model = make(nodes, [tensor("x", [2, 8])], [tensor("y", [2, 8])])
    choice, _ = try_rules(model, [replaces("Relu", "Identity")])
    assert choice.rules == ()
    assert choice.tried[0].why_not == "outputs vary from run to run"


def test_a_model_whose_inputs_cannot_be_made_up_is_left_alone(run_seconds):
    run_seconds(*[1.0, 0.5] * 4)
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["square"]),
        helper.make_node("Relu", ["square"], ["y"]),
    ]
    shape = numpy_helper.from_array(np.int64([7, 7]), "shape")
    model = make(nodes, [tensor("x", ["n"])], [tensor("y", [7, 7])], [shape])
    choice, _ = try_rules(model, [replaces("Relu", "Identity")])
    assert choice.rules == ()
    assert "inputs cannot be made up" in choice.tried[0].why_not


def test_a_model_with_inputs_of_gigabytes_is_left_alone(run_seconds):
    run_seconds(*[1.0, 0.5] * 4)
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one"], ["first"]),
        helper.make_node("Relu", ["first"], ["y"]),
    ]
    edges = [numpy_helper.from_array(np.int64([i]), name) for i, name in enumerate(("zero", "one"))]
    model = make(nodes, [tensor("x", [2**31])], [tensor("y", [1])], edges)
    choice, _ = try_rules(model, [replaces("Relu", "Identity")])
    assert choice.rules == ()
    assert "one request's inputs take 8590 MB" in choice.tried[0].why_not


def test_a_model_that_plain_onnxruntime_refuses_raises_its_error():
    model = mlp()
    model.graph.node[-1].op_type = "NoSuchOperator"
    with pytest.raises(Exception, match="NoSuchOperator"):
        try_rules(model, [GEMM])


def test_ctrl_c_ends_a_trial_at_the_next_run(monkeypatch):
    interrupted = []

    def interrupt(self, inputs):
        interrupted.append(inputs)
        raise KeyboardInterrupt

    monkeypatch.setattr(TimedRuns, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        try_rules(mlp(), [GEMM])
    assert len(interrupted) == 1


def test_open_sizes_are_such_that_every_window_has_an_output():
    # ONNX Runtime divides by zero, and the process ends, where a window is larger than its input.
    weights = numpy_helper.from_array(np.zeros((1, 3, 100, 100), np.float32), "w")
    model = make(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        [tensor("x", ["n", 3, "h", "w"])],
        [tensor("y", ["n", 1, "a", "b"])],
        [weights],
    )

    class Info:
        name, kind, shape, content = "x", "tensor", ("n", 3, "h", "w"), None
        dtype = np.dtype(np.float32)

    assert list(sizes_to_try([Info], copy_without_weights(model))) == [224]
    assert fix_sizes([Info], 3, 224)[0].shape == (3, 3, 224, 224)


def test_samples_in_which_others_had_the_cpu_do_not_count(monkeypatch):
    cpu, wall = [0.0], [0.0]
    monkeypatch.setattr(timing.time, "thread_time", lambda: cpu[0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: wall[0])
    lengths = itertools.cycle([(1.0, 1.0), (1.0, 3.0)])  # every second one is interrupted

    def run(inputs):
        used, passed = next(lengths)
        cpu[0] += used
        wall[0] += passed

    monkeypatch.setattr(timing, "yardstick", lambda: 1.0)
    assert TimedRuns(run, (0,)).timing([], 100.0).seconds == 1.0
    lengths = itertools.cycle([(1.0, 3.0)])
    assert TimedRuns(run, (0,)).timing([], 100.0).seconds is None
    lengths = itertools.repeat((1.0, 1.0), 2)  # the first run allocates
    assert TimedRuns(run, (0,)).timing([], 0.05, 1).seconds == 1.0


@pytest.mark.parametrize(
    ("plain", "other", "is_allowed"),
    [
        (np.float32([1, 2]), np.float32([1, 2 + 1e-5]), True),
        (np.float32([1, 2]), np.float32([1, 2 + 1e-4]), False),
        (np.float32([1, np.nan]), np.float32([1, np.nan]), True),
        (np.float32([1, np.nan]), np.float32([np.nan, 1]), False),
        (np.float32([1, np.inf]), np.float32([1, -np.inf]), False),
        (np.int64([1, 2]), np.int64([1, 3]), False),
        (np.float32([1]), np.float64([1]), False),
        (np.float32([1]), np.float32([1, 1]), False),
        (np.array(["a"], object), np.array(["a"], object), True),
        (np.array(["a"], object), np.array(["b"], object), False),
        ([{"a": 1.0}], [{"a": 1.0}], True),
        ([{"a": 1.0}], [{"a": 2.0}], False),
        ([np.float32([1])], [], False),
    ],
)
def test_outputs_agree_to_the_accuracy_of_float32(plain, other, is_allowed):
    assert compare(plain, other).is_allowed == is_allowed


def test_outputs_may_move_as_far_as_rounded_inputs_move_them():
    plain, other = np.float32([1e-6, 0]), np.float32([1.5e-6, 0])
    assert not compare(plain, other).is_allowed
    assert compare(plain, other, nudged=np.float32([1.1e-6, 0])).is_allowed


def test_a_float_is_not_a_matter_of_rounding_bits():
    moved = compare(np.float32([0.0]), np.float32([-0.0]))
    assert moved.is_allowed and moved.by == 0.0 and not moved.has_same_bits
    assert TensorProto.FLOAT == 1
