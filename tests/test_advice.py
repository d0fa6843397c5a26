"""advise: the right setting from the figures; remembered; on the command line."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import math
import time
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsched import compile_model
from deepsched.advice import Advice, BatchFigures, Figures, Setting, advise, measuring
from deepsched.advice.choosing import Load, choose, compare_default, explain
from deepsched.advice.measuring import _candidates, _compare, _figures, _measurable, _worst_share
from deepsched.advice.planning import plan
from deepsched.benchmark import measure
from deepsched.cli import main
from deepsched.errors import ModelNotFoundError, OptionError
from deepsched.models.cache import Cache
from deepsched.models.locations import default_folder
from tests.support import models

pytestmark = pytest.mark.field  # it measures, for the better part of a minute

SETTINGS = [
    Setting("single_stream", None, None),
    Setting("single_stream", None, 2),
    Setting("multi_stream", 8, None),
    Setting("elastic", None, None),
]
figures = st.lists(
    st.builds(
        Figures,
        st.sampled_from(SETTINGS),
        st.integers(1, 64),
        st.floats(1, 1e4),
        st.floats(0.1, 1e3),
        st.floats(0.1, 1e3),
        st.floats(0.1, 1e4),
        st.sampled_from([1.0, 0.995, 0.6]),
        st.booleans(),
        st.integers(20, 9000),
        st.floats(0, 0.3),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda it: it.setting,
)
loads = st.sampled_from([Load(1, None), Load(16, None), Load(None, 100.0)])


@given(figures=figures, load=loads, limit=st.none() | st.floats(0.1, 1e4))
def test_what_is_chosen_is_near_the_best_that_is_allowed(figures, load, limit):
    chosen, tied = choose(figures, load, limit)
    keeping_up = [it for it in figures if it.keeps_up]
    if not keeping_up:
        assert chosen.items_per_sec == max(it.items_per_sec for it in figures)
        return
    within = [it for it in keeping_up if limit is None or it.p99_ms <= limit]
    allowed = within or keeping_up
    best = min(allowed, key=load.cost)
    for it in (chosen, *tied):
        assert it in allowed
        tolerance = max(0.051, min(0.101, math.hypot(best.margin, it.margin)))
        assert load.cost(it) <= load.cost(best) + tolerance * abs(load.cost(best))


def alike(**changes):
    values = {
        "num_streams": 2,
        "items_per_sec": 100.0,
        "mean_ms": 5.2,
        "p50_ms": 5.0,
        "p99_ms": 6.0,
        "answered": 1.0,
        "keeps_up": True,
        "num_requests": 1000,
        "margin": 0.001,
    } | changes
    return [Figures(setting, **values) for setting in SETTINGS]


def test_of_equals_the_one_that_leaves_cores_free_is_chosen_and_the_others_are_named():
    for load in (Load(1, None), Load(16, None)):
        chosen, tied = choose(alike(), load, None)
        assert chosen.setting == SETTINGS[1]
        assert {it.setting for it in tied} == {*SETTINGS} - {SETTINGS[1]}
        reason = explain(chosen, tied, {1: 10.0, 2: 5.0, 4: 5.0}, load, None)
        assert 'scheduler="elastic"' in reason and "tie with it" in reason
        assert "more cores do not help" in reason


def test_a_rate_that_is_too_high_is_the_first_thing_to_be_said():
    load = Load(None, 5000.0)
    chosen, tied = choose(alike(answered=0.05, keeps_up=False), load, 10.0)
    reason = explain(chosen, tied, {1: 10.0, 2: 6.0}, load, 10.0)
    assert "No setting keeps up with 5000 requests/s" in reason
    assert "latency" not in reason


def test_a_limit_that_nothing_meets_is_told():
    load = Load(None, 50.0)
    chosen, tied = choose(alike(), load, 1.0)
    assert "no setting keeps p99 within 1 ms" in explain(chosen, tied, {1: 5.0}, load, 1.0)


@given(
    st.lists(st.floats(1, 1e4), min_size=1, max_size=5).map(
        lambda rates: tuple(BatchFigures(4**i, rate, 1.0, 99) for i, rate in enumerate(rates))
    )
)
def test_the_best_batch_is_the_smallest_near_the_most(batches):
    best = Advice(SETTINGS[0], 1, None, "", "", (), batches, {}, "", 0).best_batch_size
    (found,) = (it for it in batches if it.batch_size == best)
    most = max(it.items_per_sec for it in batches)
    assert found.items_per_sec >= 0.97 * most
    assert all(it.items_per_sec < 0.97 * most for it in batches if it.batch_size < best)


def test_streams_are_tried_up_to_as_many_as_there_are_requests():
    ideal = {cores: 64.0 / cores for cores in (1, 2, 4, 8, 16, 32, 64)}
    serial = dict.fromkeys(ideal, 64.0)

    def streams(scaling, load, most=64):
        found = _candidates(scaling, most, None, load)
        return [it.num_streams for it in found if it.scheduler == "multi_stream"]

    assert 2 in streams(serial, Load(2, None))
    assert 3 in streams(serial, Load(3, None))
    assert streams(serial, Load(128, None))[0] == 64
    assert streams(ideal, Load(1, None)) == []
    # 15 requests/s of 64 ms each: about two at a time.
    assert min(streams(serial, Load(None, 15.0))) == 2
    # Each of 6 streams has 2 cores, for which there is a measurement.
    assert 6 in streams({1: 12.0, 2: 5.0, 4: 4.9, 8: 4.9, 12: 4.9}, Load(24, None), 12)


def test_a_rate_too_low_to_measure_is_a_caller_or_takes_longer():
    often = Load(None, 500.0)
    assert _measurable(often, {1: 5.0}, 20.0, None) is often
    rare = _measurable(Load(None, 2.0), {1: 5.0, 2: 3.0}, 20.0, None)
    assert (rare.callers, rare.rate) == (1, None)
    assert "at 2 requests/s, requests rarely overlap" in str(rare)
    with pytest.raises(OptionError, match="at 2 requests/s, too few arrive.*seconds=150") as told:
        _measurable(Load(None, 2.0), {1: 400.0, 2: 300.0}, 20.0, None)
    assert _measurable(Load(None, 2.0), {1: 400.0}, 150.0, None).rate == 2.0
    # A p99 takes ten times as many; up to six times as long is taken.
    assert _measurable(Load(None, 50.0), {1: 90.0}, 20.0, 100.0).rate == 50.0
    with pytest.raises(OptionError, match="seconds=300"):
        _measurable(Load(None, 10.0), {1: 90.0}, 20.0, 100.0)
    assert "--seconds 150" in str(told.value)


# --- Slow models --------------------------------------------------------------------------------

VGG_MS = {1: 360.0, 2: 191.0}
VGG_SETTINGS = [SETTINGS[0], SETTINGS[3], Setting("multi_stream", 2, None)]
BUSY = Load(4, None)


def test_settings_tie_within_the_uncertainty_of_their_figures():
    """multi_stream is 6 % better, by figures that are good to 5 % each, or to 1 %; and 40 %."""
    for margin, best in ((0.05, SETTINGS[1]), (0.01, SETTINGS[2])):
        single = alike(margin=margin)[1]
        multi = dataclasses.replace(alike(margin=margin)[2], items_per_sec=106.0)
        chosen, _ = choose([single, multi], Load(16, None), None)
        assert chosen.setting == best
    much_better = dataclasses.replace(multi, items_per_sec=140.0, margin=0.5)
    assert choose([single, much_better], Load(16, None), None) == (much_better, [])


def test_a_slow_model_is_measured_for_longer_than_was_asked():
    planned = plan(VGG_SETTINGS, VGG_MS, 2, BUSY, None, 20.0)
    assert planned.is_extended and planned.enough_seconds is None
    assert planned.rounds * planned.seconds / 0.191 >= 20
    assert planned.total_seconds <= 120


def test_what_would_take_too_long_is_told_with_the_seconds_that_would_do():
    short = plan(VGG_SETTINGS, VGG_MS, 2, BUSY, None, 3.0)
    assert short.total_seconds <= 18
    assert plan(VGG_SETTINGS, VGG_MS, 2, BUSY, None, 5.0).enough_seconds is None
    assert plan(VGG_SETTINGS, VGG_MS, 2, BUSY, None, 5.0, spent=5.0).enough_seconds is not None
    assert plan(VGG_SETTINGS, VGG_MS, 2, BUSY, None, 5.0, opening=1.0).enough_seconds is not None
    enough = plan(VGG_SETTINGS, VGG_MS, 2, BUSY, None, short.enough_seconds)
    assert enough.enough_seconds is None and not enough.is_extended
    assert plan(VGG_SETTINGS[:1], VGG_MS, 2, BUSY, None, 0.1).enough_seconds is None
    limited = plan(VGG_SETTINGS, VGG_MS, 2, BUSY, 900.0, 20.0)
    assert limited.needed == 300 and limited.enough_seconds > 300


@given(
    scaling=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=4).map(
        lambda ms: {2**power: value for power, value in enumerate(ms)}
    ),
    load=loads,
    seconds=st.floats(0.1, 100),
    limit=st.none() | st.just(50.0),
)
def test_a_plan_gives_enough_requests_in_bounded_time_or_says_it_does_not(
    scaling, load, seconds, limit
):
    planned = plan(VGG_SETTINGS[:2], scaling, max(scaling), load, limit, seconds)
    if planned.enough_seconds is None:
        run_ms = scaling[max(scaling)]
        rate = load.rate or 1e3 / run_ms
        assert planned.rounds * planned.seconds * rate >= planned.needed
    assert planned.total_seconds <= 6 * seconds + 6 * (0.1 + 64 * max(scaling.values()) / 1e3)


class FakeClock:
    """Moves in requests only. For one caller."""

    time_ns = 0

    def now_ns(self):
        return self.time_ns


class FakeEngine:
    """Takes the milliseconds that `service` says for each request."""

    batch_size = num_streams = num_cores = 1

    def __init__(self, take, service):
        self._take, self._service = take, service

    def run(self, inputs):
        self._take(next(self._service))

    def generate_random_inputs(self):
        return []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def compared(monkeypatch):
    """Figures of engines with these service times."""
    clock = FakeClock()
    monkeypatch.setattr(
        "deepsched.advice.measuring.measure",
        lambda *args, **options: measure(*args, clock=clock, **options),
    )

    def take(milliseconds):
        clock.time_ns += round(milliseconds * 1e6)

    def compare(services, load, planned):
        services = {setting: iter(service) for setting, service in services.items()}
        results = _compare(
            list(services), lambda it: FakeEngine(take, services[it]), load, planned, print
        )
        return [_figures(setting, load, results[setting]) for setting in services]

    return compare


def test_rates_of_few_requests_are_exact(compared):
    """Of 191 ms each: requests in a window of 2 s, over 2 s, would be off by up to 10 %."""
    planned = plan(VGG_SETTINGS, VGG_MS, 2, Load(1, None), None, 20.0)
    (found,) = compared({SETTINGS[0]: itertools.repeat(191.0)}, Load(1, None), planned)
    assert found.num_requests >= 20
    assert found.items_per_sec == pytest.approx(1e3 / 191)
    assert found.margin == 1 / found.num_requests


def test_a_p99_is_that_of_the_requests_of_all_rounds(compared):
    """One request in 60 takes 10 times as long: most rounds of 10 see none."""
    service = [*[794.0], *[79.4] * 59]
    planned = plan([SETTINGS[0]], {1: 80.0}, 1, Load(1, None), 900.0, 100.0)
    (found,) = compared({SETTINGS[0]: itertools.cycle(service)}, Load(1, None), planned)
    assert found.num_requests >= 300
    assert found.p99_ms == pytest.approx(794.0)


def test_further_rounds_are_taken_if_a_model_is_slower_than_predicted(compared):
    planned = plan(SETTINGS[:2], {1: 10.0}, 1, Load(1, None), None, 1.0)
    (found,) = compared({SETTINGS[0]: itertools.repeat(60.0)}, Load(1, None), planned)
    assert found.num_requests >= 20 > planned.rounds * planned.seconds / 0.06


def test_the_margin_is_wide_if_rounds_differ(compared):
    planned = plan(SETTINGS[:2], {1: 10.0}, 1, Load(1, None), None, 20.0)
    in_a_round = round(planned.seconds * 100)
    service = itertools.chain.from_iterable(
        itertools.repeat(10.0 * (1 + number % 2), in_a_round) for number in itertools.count()
    )
    (found,) = compared({SETTINGS[0]: service}, Load(1, None), planned)
    assert found.margin > 0.1


@pytest.fixture
def slow(mlp, monkeypatch):
    """A model whose requests take 20 ms."""
    monkeypatch.setattr(
        "deepsched.advice.measuring.Engine",
        lambda *args, **options: FakeEngine(time.sleep, itertools.repeat(0.02)),
    )
    monkeypatch.setattr("deepsched.advice.measuring._tried_inputs", lambda *args: [])
    monkeypatch.setattr("deepsched.advice.measuring.most_cores", lambda *args: 2)
    return mlp


def test_too_few_requests_recommend_the_default_and_are_not_remembered(slow, caplog, capsys):
    found = advise(slow, callers=1, seconds=0.1)
    assert found.setting == Setting("single_stream", None, None)
    assert "Too few to tell" in found.reason
    assert f"--seconds {found.enough_seconds:g}" in found.reason
    assert "too little time for 20 requests" in caplog.text
    assert not advise(slow, callers=1, seconds=0.1).was_remembered
    assert main(["advise", slow, "--callers", "1", "--seconds", "0.1", "-q"]) == 0
    assert "This answer is not cached" in capsys.readouterr().out


def test_the_seconds_that_are_told_suffice(slow, caplog):
    seconds = advise(slow, callers=1, seconds=0.1).enough_seconds
    caplog.clear()
    found = advise(slow, callers=1, seconds=seconds)
    assert found.enough_seconds is None
    assert all(it.num_requests >= 20 for it in found.figures)
    assert caplog.messages == []
    assert advise(slow, callers=1, seconds=seconds).was_remembered


def test_a_p99_limit_of_a_slow_model_is_refused(slow):
    with pytest.raises(OptionError, match="p99 takes 300 requests of each setting.*--seconds"):
        advise(slow, callers=1, p99_limit_ms=30, seconds=0.1)


def test_the_default_is_not_called_worse_where_it_is_tied():
    load = Load(16, None)
    chosen, tied = choose(alike(), load, None)
    default = next(it for it in tied if it.setting == SETTINGS[0])
    assert "is as good here" in compare_default(chosen, tied, default, load)
    assert "instead" in compare_default(chosen, [], default, load)


@pytest.fixture(autouse=True)
def _quiet_machine(quiet):
    """What is advised is remembered."""


@pytest.fixture
def mlp(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSCHED_CACHE_DIR", str(tmp_path / "cache"))
    return models.save(models.mlp(), tmp_path)


def test_advice_is_remembered_for_the_same_question_only(mlp):
    first = advise(mlp, seconds=0.5)
    assert not first.was_remembered
    assert {it.setting for it in first.figures} >= {
        Setting("single_stream", None, None),
        Setting("elastic", None, None),
    }
    again = advise(mlp, seconds=0.5)
    assert again.was_remembered
    assert again.to_dict() == {**first.to_dict(), "was_remembered": True}
    assert not advise(mlp, seconds=0.5, callers=1).was_remembered
    assert not advise(mlp, seconds=0.5, remembers=False).was_remembered
    assert str(first.setting) in first.compile_line(mlp)
    kept = [item for item in Cache(default_folder()).list() if item.kind == "advice"]
    assert [(item.model, item.batch_size) for item in kept] == [(mlp, "auto")] * 2
    Cache(default_folder()).clear()
    assert not advise(mlp, seconds=0.5).was_remembered


def test_an_answer_is_good_for_less_time_and_for_fewer_questions_but_not_for_more(mlp):
    advise(mlp, num_cores=1, seconds=0.5, compares_batches=False)
    assert advise(mlp, num_cores=1, seconds=0.4, compares_batches=False).was_remembered
    assert not advise(mlp, num_cores=1, seconds=0.4).was_remembered  # nothing was known of batches
    assert advise(mlp, num_cores=1, seconds=0.4, compares_batches=False).was_remembered
    assert not advise(mlp, num_cores=1, seconds=0.6).was_remembered
    assert advise(mlp, num_cores=1, seconds=0.6, compares_batches=False).was_remembered


def test_ctrl_c_ends_it_and_nothing_is_remembered(mlp, monkeypatch):
    def measure_interrupted(*args, **kwargs):
        return dataclasses.replace(measure(*args, **kwargs), is_interrupted=True)

    with monkeypatch.context() as patch:
        patch.setattr("deepsched.advice.measuring.measure", measure_interrupted)
        assert main(["advise", mlp, "--seconds", "0.2", "-q", "-ncores", "1"]) == 130
        with pytest.raises(KeyboardInterrupt):
            compile_model(mlp, num_cores=1, scheduler="auto")
    assert not advise(mlp, seconds=0.2, num_cores=1).was_remembered


def test_an_answer_from_a_busy_machine_says_so_and_is_not_remembered(mlp, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(
            "deepsched.machine.contention.ContentionMonitor.others_share", lambda self: 0.4
        )
        assert main(["advise", mlp, "--seconds", "0.2", "-q", "-ncores", "1"]) == 0
    assert "Other processes used 40% of one of the CPUs" in capsys.readouterr().out
    assert not advise(mlp, seconds=0.2, num_cores=1).was_remembered


@pytest.mark.parametrize("disturbed", ["_scaling", "_compare", "_batches"])
def test_an_answer_that_a_neighbour_disturbed_in_part_is_not_remembered(
    mlp, monkeypatch, disturbed
):
    share = 0.0

    def beside_a_neighbour(name):
        original = getattr(measuring, name)

        def part(*args, **kwargs):
            nonlocal share
            share = 0.4 if name == disturbed else 0.0
            return original(*args, **kwargs)

        return part

    with monkeypatch.context() as patch:
        patch.setattr(
            "deepsched.machine.contention.ContentionMonitor.others_share", lambda self: share
        )
        for name in ("_scaling", "_compare", "_batches"):
            patch.setattr(measuring, name, beside_a_neighbour(name))
        assert advise(mlp, seconds=0.2, num_cores=1).others_share == 0.4
    assert not advise(mlp, seconds=0.2, num_cores=1).was_remembered


def test_one_core_has_but_one_setting(mlp):
    found = advise(mlp, seconds=0.3, num_cores=1)
    assert found.setting == Setting("single_stream", None, 1)
    assert [it.setting for it in found.figures] == [found.setting]
    assert found.cost_of_ignoring.startswith("It is the default")


def test_a_model_that_fails_with_larger_batches_is_advised_without_them(tmp_path, caplog):
    shape = onnx.numpy_helper.from_array(np.array([1, 64], np.int64), "shape")
    fixed = models.make(
        [onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [models.tensor("x", ["batch", 64])],
        [models.tensor("y", None)],
        [shape],
    )
    found = advise(fixed, seconds=0.2, num_cores=1, cache_dir=tmp_path)
    assert [it.batch_size for it in found.batches] == [1]
    assert caplog.messages == []  # of what was only tried


@pytest.mark.parametrize("name", ["m[b].onnx", "[red]m.onnx", 'a "b".onnx', "o'clock.onnx"])
def test_the_line_to_paste_names_the_file_whatever_it_is_called(
    tmp_path, monkeypatch, capsys, name
):
    monkeypatch.setenv("DEEPSCHED_CACHE_DIR", str(tmp_path / "cache"))
    path = models.save(models.mlp(), tmp_path, name)
    assert main(["advise", path, "--seconds", "0.3", "-q", "-ncores", "1", "-i", "[1,64]"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    call = ast.parse(line).body[0].value
    assert ast.literal_eval(call.args[0]) == path
    keywords = {it.arg: ast.literal_eval(it.value) for it in call.keywords}
    assert keywords["input_shapes"] == [[1, 64]]
    with compile_model(path, **keywords) as engine:
        assert engine.num_cores == 1


def test_the_command_prints_the_line_to_paste_and_json(mlp, capsys):
    assert main(["advise", mlp, "--seconds", "0.5", "-q"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f'compile_model("{mlp}", scheduler="')
    assert "Why: " in out and "items/s" in out
    assert main(["advise", mlp, "--seconds", "0.5", "-q", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["was_remembered"] and answer["compile_line"] in out
    assert main(["advise", mlp, "--rate", "1000", "--seconds", "0.5", "-q"]) == 0
    assert "1000 requests/s" in capsys.readouterr().out


def test_larger_requests_are_tried_where_all_cores_are_to_be_busy(mlp, capsys):
    busy = advise(mlp, seconds=0.2, num_cores=1)
    assert [it.batch_size for it in busy.batches[:2]] == [1, 4]
    assert advise(mlp, seconds=0.2, num_cores=1, callers=2).batches == ()
    assert main(["advise", mlp, "--seconds", "0.2", "-q", "-ncores", "1"]) == 0
    assert "Batches: " in capsys.readouterr().out


def test_a_load_far_beyond_the_machine_takes_no_longer_than_another(mlp):
    found = advise(mlp, rate=1e6, seconds=0.5)
    assert not any(it.keeps_up for it in found.figures)
    assert "No setting keeps up" in found.reason


def test_scheduler_auto_follows_the_advice(mlp, monkeypatch):
    told = advise(mlp, seconds=0.2, num_cores=1)
    chosen = Setting("multi_stream", 1, 1)
    monkeypatch.setattr(
        "deepsched.api.advise",
        lambda *_, **__: told.__class__(**{**vars(told), "setting": chosen}),
    )
    with compile_model(mlp, scheduler="auto") as engine:
        assert (engine.scheduler, engine.num_streams, engine.num_cores) == ("multi_stream", 1, 1)
    with pytest.raises(OptionError, match="leave num_streams"):
        compile_model(mlp, scheduler="auto", num_streams=2)


@pytest.mark.parametrize(
    "options",
    [
        {"callers": 1, "rate": 3.0},
        {"callers": 0},
        {"rate": -1.0},
        {"p99_limit_ms": 0},
        {"seconds": float("inf")},
    ],
)
def test_what_makes_no_sense_is_told(mlp, options):
    with pytest.raises(OptionError):
        advise(mlp, **options)


def test_sizes_that_are_made_up_are_told_once(tmp_path, caplog):
    advise(models.mlp(), None, seconds=0.2, num_cores=1, cache_dir=tmp_path)
    assert caplog.messages == []  # only batches are open
    advise(models.identity((1, "long")), None, seconds=0.2, num_cores=1, cache_dir=tmp_path)
    (message,) = caplog.messages
    assert "(x: 1x1)" in message and "--input-shapes" in message


def test_a_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ModelNotFoundError):
        advise(tmp_path / "none.onnx")
    assert main(["advise", str(tmp_path / "none.onnx"), "-q"]) == 2


def test_a_setting_that_others_disturbed_is_not_diluted_by_quiet_ones():
    def rounds(*shares):
        return 1, [SimpleNamespace(usage=SimpleNamespace(others_share=share)) for share in shares]

    quiet = {number: rounds(0.0, 0.0, 0.0) for number in range(5)}
    assert _worst_share({**quiet, "disturbed": rounds(0.5, 0.5, 0.0)}, "others_share") == 0.5
    assert _worst_share({**quiet, "once": rounds(0.5, 0.0, 0.0)}, "others_share") == 0.0
    assert _worst_share({**quiet, "unknown": rounds(None, 0.0, 0.0)}, "others_share") is None
