"""Advice where a host moves the virtual CPUs: settings are compared in one state at a time."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from deepsched.advice import Setting, advise
from deepsched.advice.states import comparable, count, split
from deepsched.benchmark.measurement import Measurement
from deepsched.benchmark.usage import Usage
from deepsched.cli import main
from deepsched.machine.state import Conditions
from tests.support import models

WIDE, NARROW = Setting("single_stream", None, None), Setting("multi_stream", 2, None)
TRIPS = {"near": (110.0, 112.0), "far": (470.0, 474.0), "moved": (110.0, 470.0)}


def measured(state, ms=10.0, others=0.0):
    before, after = TRIPS[state]
    return Measurement(
        1,
        1,
        1.0,
        np.full(100, ms),
        usage=Usage(1.0, 1.0, 0.0, 10**8, others, 0.0),
        conditions=Conditions((before,), (after,), others),
    )


def results(wide, narrow):
    return {
        setting: (1, [measured(state) for state in states])
        for setting, states in ((WIDE, wide), (NARROW, narrow))
    }


def test_settings_are_compared_in_states_that_all_of_them_saw():
    found = split(results(["near", "near", "far"], ["near", "moved", "near"]))
    assert list(found) == ["near (111 ns)"]
    assert count(found["near (111 ns)"]) == 4


def test_the_commonest_state_comes_first():
    mixed = results(["near", "far", "near", "far", "far"], ["far", "near", "far", "far", "near"])
    assert list(split(mixed)) == ["far (472 ns)", "near (111 ns)"]
    assert count(comparable(mixed)) == 6


def test_without_a_state_that_all_saw_there_is_no_answer_by_state():
    torn = results(["near", "near", "near"], ["far", "far", "far"])
    assert split(torn) == {}
    assert comparable(torn) is torn


def test_contention_tears_no_rounds_apart():
    quiet_and_busy = {WIDE: (1, [measured("near", others=share) for share in (0.0, 0.2, 0.3)])}
    (only,) = split(quiet_and_busy).values()
    assert count(only) == 3


# --- The whole of advise, on a made-up machine with two cores ----------------------------------


class Quiet:
    """A monitor on a machine without others."""

    def __init__(self, cpus):
        pass

    def sample(self):
        pass

    def others_share(self):
        return 0.0


@pytest.fixture
def on_machine(monkeypatch, tmp_path):
    """Advises on a machine whose rounds are in these states, in turn: near, a request gains by all
    cores; far, it does not."""
    path = tmp_path / "mlp.onnx"
    path.write_bytes(models.mlp().SerializeToString())
    monkeypatch.setattr("deepsched.advice.measuring.most_cores", lambda *args: 2)
    monkeypatch.setattr(
        "deepsched.advice.measuring._lone_ms",
        lambda opener, cores, *args, **options: opener(WIDE).close() or 20.0 / cores,
    )
    monkeypatch.setattr("deepsched.advice.measuring.ContentionMonitor", Quiet)

    def on(states):
        num_rounds = Counter()

        def measure(engine, **options):
            now = states[num_rounds[engine.scheduler] % len(states)]
            num_rounds[engine.scheduler] += 1
            streams = {"near": 12.0, "far": 20.0, "moved": 16.0}[now]
            ms = streams if engine.scheduler == "single_stream" else 16.0
            return measured(now, ms)

        monkeypatch.setattr("deepsched.advice.measuring.measure", measure)
        return str(path)

    return on


def run(model, **options):
    return advise(model, callers=1, seconds=5.0, **options)


def test_answers_that_differ_by_state_are_all_told_and_not_remembered(on_machine, tmp_path):
    model = on_machine(["near", "far", "near"])
    found = run(model, cache_dir=tmp_path)
    assert [it.state for it in found.states] == ["near (111 ns)", "far (472 ns)"]
    assert found.differs_by_state
    assert found.setting == found.states[0].setting == WIDE
    assert found.states[1].setting != WIDE
    again = run(on_machine(["near"]), cache_dir=tmp_path)
    assert not again.was_remembered


def test_an_answer_of_one_state_is_remembered_with_it(on_machine, tmp_path):
    first = run(on_machine(["far"]), cache_dir=tmp_path)
    again = run(on_machine([]), cache_dir=tmp_path)
    assert again.was_remembered
    assert again.states == first.states
    assert first.num_incomparable == 0


def test_the_command_says_that_answers_differ(on_machine, capsys):
    command = ["advise", on_machine(["near", "far"]), "--callers", "1", "--fresh", "-q"]
    assert main(command) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "the best differs" in text
    assert "far (472 ns)" in text
    assert "This answer is not cached" in text


def test_the_command_says_that_no_state_lasted(on_machine, capsys):
    model = on_machine(["moved"])
    assert main(["advise", model, "--callers", "1", "--fresh", "-q"]) == 0
    assert "these figures mix states" in " ".join(capsys.readouterr().out.split())
    assert main(["advise", on_machine(["moved"]), "--callers", "1", "--fresh", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["states"] == []
