"""advise: the right setting from the figures; remembered; on the command line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepsched import advice as advice_module
from deepsched import compile_model
from deepsched.advice import Figures, Setting, _choose, _Load, advise, useful_cores
from deepsched.cli import main
from deepsched.errors import ModelNotFoundError, OptionError
from tests import models

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
        st.floats(1, 1e4),
        st.floats(0.1, 1e3),
        st.floats(0.1, 1e4),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda it: it.setting,
)
loads = st.sampled_from([_Load.of(1, None, 1), _Load.of(16, None, 1), _Load.of(None, 100.0, 1)])


@given(figures=figures, load=loads, limit=st.none() | st.floats(0.1, 1e4))
def test_what_is_chosen_is_near_the_best_that_is_allowed(figures, load, limit):
    chosen, _ = _choose(figures, {1: 10.0, 2: 6.0}, load, limit)
    allowed = [it for it in figures if limit is None or it.p99_ms <= limit]
    if allowed:
        assert chosen in allowed
    best = min(load.key(it) for it in allowed or figures)
    assert load.key(chosen) <= best + 0.031 * abs(best)


def test_of_equals_the_one_that_leaves_cores_free_is_chosen():
    equal = [Figures(setting, 100.0, 5.0, 6.0) for setting in SETTINGS]
    for load in (_Load.of(1, None, 1), _Load.of(16, None, 1)):
        assert _choose(equal, {1: 10.0, 2: 5.0, 4: 5.0}, load, None)[0].setting == SETTINGS[1]


@given(st.dictionaries(st.sampled_from([1, 2, 4, 8]), st.floats(0.1, 100), min_size=1))
def test_useful_cores_are_the_fewest_near_the_fastest(scaling):
    enough = useful_cores(scaling)
    assert scaling[enough] <= min(scaling.values()) / 0.95
    assert all(scaling[c] > scaling[enough] for c in scaling if c < enough)


@pytest.fixture
def mlp(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSCHED_CACHE_DIR", str(tmp_path / "cache"))
    return models.save(models.mlp(), tmp_path)


def test_advice_is_remembered_for_the_same_question_only(mlp):
    first = advise(mlp, seconds=0.5)
    assert not first.was_remembered
    assert {it.setting for it in first.figures} >= {
        Setting("single_stream", None, None), Setting("elastic", None, None)
    }  # fmt: skip
    again = advise(mlp, seconds=0.5)
    assert again.was_remembered
    assert again.to_dict() == {**first.to_dict(), "was_remembered": True}
    assert not advise(mlp, seconds=0.5, callers=1).was_remembered
    assert not advise(mlp, seconds=0.5, remembers=False).was_remembered
    assert str(first.setting) in first.compile_line(mlp)


def test_the_command_prints_the_line_to_paste_and_json(mlp, capsys):
    assert main(["advise", mlp, "--seconds", "0.5", "-q"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f'compile_model("{mlp}", batch_size=1, scheduler="')
    assert "Why: " in out and "items/s" in out
    assert main(["advise", mlp, "--seconds", "0.5", "-q", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["was_remembered"] and answer["compile_line"] in out
    assert main(["advise", mlp, "--rate", "50", "--seconds", "0.5", "-q"]) == 0
    assert "50 requests/s" in capsys.readouterr().out


def test_scheduler_auto_follows_the_advice(mlp, monkeypatch):
    told = advise(mlp, seconds=0.5)
    chosen = Setting("multi_stream", 1, 1)
    monkeypatch.setattr(
        advice_module,
        "advise",
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


def test_a_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ModelNotFoundError):
        advise(tmp_path / "none.onnx")
    assert main(["advise", str(tmp_path / "none.onnx"), "-q"]) == 2
