"""One spelling for every option of the command line; older and DeepSparse's spellings hidden."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict

import pytest

from deepsched.cli import main
from deepsched.scheduler import _BY_WORD
from tests.support import models
from tests.support.parsers import PARSERS, parsers_in

ALL = {
    **PARSERS,
    **{f"cache {name}": parser for name, parser in parsers_in(PARSERS["cache"]).items()},
}

# Words that an option takes, where not any would do.
VALUES = {"thread_pinning": "none", "sweep": "callers=1"}

DEEPSPARSES = {
    "benchmark": (
        ["-b", "--batch_size", "-i", "-shapes", "--input_shapes", "-ncores", "--num_cores"]
        + ["-s", "--scenario", "-t", "--time", "-w", "--warmup_time", "-nstreams", "--num_streams"]
        + ["-pin", "--thread_pinning", "-seq_len", "--sequence_length", "-input_ids_len"]
        + ["--input_ids_length", "--no-internal-kv-cache", "--no_internal_kv_cache", "-e"]
        + ["--disable-kv-cache-overrides", "--disable_kv_cache_overrides", "--engine", "-q"]
        + ["--num-kv-cache-tokens", "--num_kv_cache_tokens", "--quiet", "-x", "--export_path"]
    ),
}
OF_EARLIER_VERSIONS = {
    "benchmark": ["--scenario", "--time", "-x", "--export_path", "--input_shape"],
    "advise": ["-ncores", "--num_cores", "--batch_size", "-shapes", "--input_shapes"],
    "analyze": ["-ncores", "--num_cores", "--batch_size", "-shapes", "-x", "--export_path"],
    "trace": ["--time", "-ncores", "-nstreams", "--num_cores", "--num_streams", "--batch_size"],
    "topology": ["-ncores", "--num_cores", "-nstreams", "--num_streams", "--threads_per_core"],
}


def options_of(parser):
    return [action for action in parser._actions if action.option_strings]


def is_shown(action):
    return action.help != argparse.SUPPRESS


@pytest.mark.parametrize("command", ALL)
def test_visible_flags_are_lower_case_with_hyphens(command):
    for action in options_of(ALL[command]):
        for flag in action.option_strings:
            assert re.fullmatch(r"-[a-z]|--[a-z0-9]+(-[a-z0-9]+)*", flag)


def test_an_option_is_spelled_alike_by_all_commands():
    spellings = defaultdict(set)
    for parser in ALL.values():
        for action in filter(is_shown, options_of(parser)):
            spellings[action.dest].add(tuple(action.option_strings))
    assert {dest: found for dest, found in spellings.items() if len(found) > 1} == {}


def test_a_flag_means_one_option_to_all_commands():
    dests = defaultdict(set)
    for parser in ALL.values():
        for flag, action in parser._option_string_actions.items():
            dests[flag].add(action.dest)
    assert {flag: found for flag, found in dests.items() if len(found) > 1} == {}


def hidden_flags():
    for command, parser in ALL.items():
        for flag, action in parser._option_string_actions.items():
            if flag not in action.option_strings:
                yield pytest.param(command, flag, action, id=f"{command} {flag}")


@pytest.mark.parametrize(("command", "flag", "action"), list(hidden_flags()))
def test_a_hidden_spelling_parses_to_the_same(command, flag, action):
    value = [] if action.nargs == 0 else [VALUES.get(action.dest, "3")]
    parser = ALL[command]
    shown = parser.parse_args([action.option_strings[-1], *value])
    assert parser.parse_args([flag, *value]) == shown
    assert getattr(shown, action.dest) != action.default
    if value:
        assert parser.parse_args([f"{flag}={value[0]}"]) == shown


@pytest.mark.parametrize("command", ALL)
def test_the_help_lists_visible_flags_only(command):
    listed = {
        flag
        for line in re.findall(r"^  (-.*?)(?:  |$)", ALL[command].format_help(), re.M)
        for flag in re.findall(r"(?<!\S)-[-\w]+", line)
    }
    shown = filter(is_shown, options_of(ALL[command]))
    assert listed == {flag for action in shown for flag in action.option_strings}


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (command, flag)
        for table in (DEEPSPARSES, OF_EARLIER_VERSIONS)
        for command, flags in table.items()
        for flag in flags
    ],
)
def test_deepsparses_and_earlier_spellings_are_taken(command, flag):
    assert flag in ALL[command]._option_string_actions


def test_errors_name_the_flag_as_the_help_shows_it(capsys):
    with pytest.raises(SystemExit):
        main(["topology", "-ncores", "two"])
    assert "argument --num-cores: invalid int value: 'two'" in capsys.readouterr().err
    assert main(["topology", "--num_cores", "0"]) == 2
    assert capsys.readouterr().err.startswith("deepsched: --num-cores must be ")
    assert main(["advise", "--p99-limit", "-1", "--rate", "3"]) == 2
    assert capsys.readouterr().err == "deepsched: --p99-limit must be a positive number, got -1.0\n"


def test_errors_offer_no_python_values(capsys):
    assert main(["benchmark", "-b", "0"]) == 2
    told = "deepsched: --batch-size must be an integer of at least 1, got 0\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("command", "argument", "told"),
    [
        ("benchmark", "--num-steams", " (did you mean --num-streams?)"),
        ("benchmark", "--num_streems=2", " (did you mean --num-streams?)"),
        ("cache list", "--jsn", " (did you mean --json?)"),
        ("benchmark", "--disable-kv-cache", ""),
        ("doctor", "extra", ""),
    ],
)
def test_an_unknown_flag_shows_the_usage_and_the_nearest_flag(capsys, command, argument, told):
    with pytest.raises(SystemExit, match="2"):
        main([*command.split(), argument])
    err = capsys.readouterr().err
    assert err.startswith(f"usage: deepsched {command} [-h]")
    assert err.endswith(f"\ndeepsched {command}: error: unrecognized arguments: {argument}{told}\n")


@pytest.mark.parametrize("word", [*_BY_WORD, "ASYNC"])
def test_commands_take_every_word_for_a_scheduler(tmp_path, capsys, word):
    model = models.save(models.mlp(), tmp_path)
    for command in ("benchmark", "trace"):
        options = ["-w", "0"] if command == "benchmark" else []
        assert main([command, model, "--scheduler", word, "-t", "0.01", "-q", *options]) == 0


def test_a_sweep_takes_options_spelled_as_flags(tmp_path, capsys):
    model = models.save(models.mlp(), tmp_path)
    options = ["-t", "0.01", "-w", "0", "-q", "--json"]
    assert main(["benchmark", model, "--sweep", "num-streams=1", *options]) == 0
    assert '"num_streams": [\n' in capsys.readouterr().out
