"""What the kernel says beside what was measured: findings, pictures, the command, the doctor."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from deepsched import Topology
from deepsched.cli import main
from deepsched.cli.console import Console
from deepsched.cli.heat_map import draw_lines, draw_piece
from deepsched.cli.measured_text import print_measured
from deepsched.cli.svg import at
from deepsched.doctor import Status
from deepsched.doctor.host import Host
from deepsched.doctor.latency import judge
from deepsched.machine.latency import same_core_groups, sharing_groups
from deepsched.machine.measured import MeasuredMachine, compare
from deepsched.machine.probe import Look
from tests.support.pairs import MEMORY_NS


def look_at(labels, *, near=110.0, far=470.0, refused=""):
    """What a look finds where cores of one label are near."""
    trips = np.where(np.equal.outer(labels, labels), near, far)
    np.fill_diagonal(trips, np.nan)
    return Look(
        tuple(range(len(labels))),
        trips,
        MEMORY_NS,
        tuple(map(tuple, sharing_groups(trips, MEMORY_NS))),
        tuple(tuple(group) for group in same_core_groups(trips, MEMORY_NS) if len(group) > 1),
        refused,
    )


def kernel_says(labels):
    topology = Topology.synthetic(packages=1, cores_per_l3=len(labels))
    cores = tuple(
        type(core)(core.cpus, core.l2, label, 0, 0, 0)
        for core, label in zip(topology.cores, labels, strict=True)
    )
    return Topology(cores)


def findings(kernel, measured):
    return {it.kind: it for it in compare(kernel_says(kernel), look_at(measured))}


# --- Findings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[0], [0, 0], [0, 0, 1, 1], [0, 1]])
def test_nothing_is_found_where_both_say_the_same(labels):
    assert findings(labels, labels) == {}


def test_an_l3_that_is_none_is_told_with_its_parts_and_what_to_prefer():
    found = findings([0, 0, 0, 0], [0, 0, 1, 1])
    assert found.keys() == {"l3_is_split"}
    assert "CPUs 0-3 share an L3" in found["l3_is_split"].message
    assert "0-1" in found["l3_is_split"].message
    assert "470 ns" in found["l3_is_split"].message
    assert "num_streams=2" in found["l3_is_split"].consequence


def test_l3s_that_are_as_near_as_one_are_told():
    found = findings([0, 0, 1, 1], [0, 0, 0, 0])
    assert found.keys() == {"l3_is_shared"}
    assert "2 L3 caches" in found["l3_is_shared"].message


def test_groups_that_the_kernel_does_not_report_are_no_disagreement():
    found = findings([None, None, None, None], [0, 0, 1, 1])
    assert found.keys() == {"l3_is_unreported"}
    assert not found["l3_is_unreported"].is_disagreement


def test_hidden_hardware_threads_are_told_with_the_cores_to_use():
    look = look_at([0, 0, 1, 1], near=20.0, far=100.0)
    (first, second) = compare(kernel_says([0, 0, 0, 0]), look)
    assert {first.kind, second.kind} == {"core_is_shared"}
    assert "CPUs 0-1" in first.message
    assert "num_cores=2" in first.consequence


# --- The heat map -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_groups", "size", "num_lines"),
    [(2, 2, 5), (4, 16, 5), (1, 64, 2), (96, 1, 96)],
    ids=["figures of cores", "figures of groups", "one group", "shades"],
)
def test_the_heat_map_fits_the_terminal(num_groups, size, num_lines):
    look = look_at([label for label in range(num_groups) for _ in range(size)])
    lines = [line.plain for line in draw_lines(look, 80)]
    assert len(lines) == num_lines
    assert max(map(len, lines)) <= 80


def test_the_heat_map_shows_what_was_not_measured_as_such():
    look = look_at([0, 1])
    look.round_trips_ns[:] = np.nan
    assert [line.plain.split() for line in draw_lines(look, 80)][1:] == [["0", "–", "–"]] + [
        ["1", "–", "–"]
    ]


@pytest.mark.parametrize("num_cores", [2, 64])
def test_the_svg_has_a_field_for_each_pair_with_its_figure(num_cores):
    look = look_at([core % 2 for core in range(num_cores)])
    tree = ElementTree.fromstring(at(0, 0, draw_piece(look)))
    titles = [title.text for title in tree.iter("title")]
    assert len(titles) == num_cores * (num_cores - 1)
    assert "CPU 0 to CPU 1: 470 ns" in titles


def test_the_heat_map_of_many_busy_cores_is_blank():
    nothing = Look(tuple(range(64)), np.full((64, 64), np.nan), MEMORY_NS, (), (), "")
    assert {line.plain[2:].strip() for line in draw_lines(nothing, 80)} == {""}


# --- The command ------------------------------------------------------------------------------


def printed(measured):
    console = Console(width=80)
    console.file = StringIO()
    print_measured(console, measured)
    return console.file.getvalue()


def test_a_disagreement_is_printed_with_what_follows():
    look = look_at([0, 1])
    text = printed(MeasuredMachine(kernel_says([0, 0]), look, 9e9, (9e9, 9e9), 0.0))
    assert "Measured, they do not" in text
    assert "multi_stream with num_streams=2" in " ".join(text.split())
    assert "one core reads 9.0 GB/s" in text


def test_agreement_is_printed_as_such():
    text = printed(MeasuredMachine(kernel_says([0, 0]), look_at([0, 0]), 9e9, (18e9,), 0.0))
    assert "CPUs 0-1 share a last-level cache; together they read 18.0 GB/s" in text
    assert "what the kernel says as well" in text


def test_figures_beside_others_are_marked_unreliable():
    measured = MeasuredMachine(kernel_says([0, 0]), look_at([0, 0]), 9e9, (18e9,), 0.5)
    assert not measured.is_reliable
    assert "unreliable" in printed(measured)


def test_a_refusal_is_printed_with_its_reason():
    nothing = Look((0, 1), np.full((2, 2), np.nan), float("nan"), (), (), "not permitted")
    text = printed(MeasuredMachine(kernel_says([0, 0]), nothing, None, (), 0.0))
    assert "nothing was measured: not permitted" in text


def test_the_command_measures_this_machine(capsys, tmp_path):
    file = tmp_path / "machine.svg"
    assert main(["topology", "--measure", "--json", "--svg", str(file)]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    num_cores = len(Topology.detect().cores)
    assert [len(row) for row in measured["round_trips_ns"]] == [num_cores] * num_cores
    assert len(measured["group_bandwidths"]) == len(measured["l3_groups"])
    assert "Round trips of a cache line" in file.read_text()


def test_the_command_refuses_other_machines(capsys):
    assert main(["topology", "--synthetic", "1:1:1:2", "--measure"]) == 2
    assert "only the machine that this process runs on" in capsys.readouterr().err


def test_json_has_no_number_that_is_none():
    """NaN is no JSON."""
    nothing = Look((0, 1), np.full((2, 2), np.nan), float("nan"), (), (), "not permitted")
    measured = MeasuredMachine(kernel_says([0, 0]), nothing, None, (), None)
    json.dumps(measured.to_dict(), allow_nan=False)


# --- The doctor -------------------------------------------------------------------------------


@pytest.fixture
def host():
    topology = kernel_says([0, 0])
    return Host(Path("/"), topology, topology.cores, affinity=None, cpuset=None)


def test_the_doctor_is_content_with_caches_that_are_as_told(host):
    check = judge(host, [look_at([0, 0])] * 2, 0.0)
    assert (check.status, check.advice) == (Status.ok, "")
    assert "110 ns" in check.found


def test_the_doctor_tells_a_disagreement(host):
    check = judge(host, [look_at([0, 1])] * 2, 0.0)
    assert check.status == Status.warn
    assert "Measured, they do not" in check.found
    assert "num_streams=2" in check.meaning


@pytest.mark.parametrize("labels", [([0, 0], [0, 1]), ([0, 1], [0, 0])])
def test_the_doctor_tells_a_change_while_it_looks(host, labels):
    check = judge(host, [look_at(each) for each in labels], 0.0)
    assert check.status == Status.warn
    assert check.found.startswith("changed within")
    assert re.search(r"110 ns.*470 ns|470 ns.*110 ns", check.found)


def test_the_doctor_says_when_others_were_in_the_way(host):
    assert "unreliable" in judge(host, [look_at([0, 0])] * 2, 0.6).found
    busy = Look((0, 1), np.full((2, 2), np.nan), MEMORY_NS, (), (), "")
    assert judge(host, [busy], 0.6).status == Status.unknown
    for looks in ([busy, look_at([0, 0])], [look_at([0, 0]), busy]):
        assert judge(host, looks, 0.0).status == Status.ok
