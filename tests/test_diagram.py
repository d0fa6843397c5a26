"""Diagrams of machines: complete, and each CPU shown as what it is used for."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsched import Topology, partition
from deepsched.cli.palette import fill_of, ink_of
from deepsched.cli.topology_svg import draw_svg
from deepsched.machine.diagram import FORBIDDEN, OFFLINE, UNUSED, Diagram, build_diagram
from deepsched.machine.partition import WarningKind
from deepsched.machine.sysfs import offline_cpus
from deepsched.machine.topology import online_cores
from tests.support.strategies import random_topologies
from tests.support.sysfs_tree import SysfsTree, write_machine

SVG = "{http://www.w3.org/2000/svg}"


def uses(diagram: Diagram) -> dict[int, int | str]:
    return {
        cpu: use
        for cell in diagram.cells
        for cpu, use in zip(cell.core.cpus, cell.uses, strict=True)
    }


@st.composite
def parts_of_machines(draw: st.DrawFn) -> tuple[Topology, Topology]:
    """A machine, and some of its cores."""
    whole = draw(random_topologies())
    usable = draw(st.lists(st.sampled_from(whole.cores), min_size=1, unique=True))
    return whole, replace(whole, cores=tuple(core for core in whole.cores if core in usable))


@given(machines=parts_of_machines(), data=st.data())
@settings(max_examples=50, deadline=None)
def test_each_cpu_is_drawn_once_as_what_it_is(
    machines: tuple[Topology, Topology], data: st.DataObject
) -> None:
    whole, usable = machines
    most = len(partition(usable).streams[0].cores)
    parts = partition(usable, num_streams=data.draw(st.integers(1, most)))
    diagram = build_diagram(usable, parts, whole.cores, offline=[9000])
    assert [cell.core for cell in diagram.cells[:-1]] == list(whole.cores)
    streams = {cpu: stream.index for stream in parts.streams for cpu in stream.cpus}
    expected = {
        cpu: streams.get(cpu, UNUSED if cpu in usable.cpus else FORBIDDEN) for cpu in whole.cpus
    }
    assert uses(diagram) == {**expected, 9000: OFFLINE}
    assert [use for use, _ in diagram.legend[: len(parts.streams)]] == list(
        range(len(parts.streams))
    )
    assert {use for use, _ in diagram.legend} == set(uses(diagram).values())


@given(topology=random_topologies(with_quota=False))
@settings(max_examples=20, deadline=None)
def test_svg_has_a_tooltip_for_each_core(topology: Topology) -> None:
    diagram = build_diagram(topology, partition(topology))
    root = ElementTree.fromstring(draw_svg(diagram))
    tooltips = [title.text or "" for title in root.iter(f"{SVG}title")]
    assert tooltips[0] == diagram.title
    assert len(tooltips) == 1 + len(topology.cores)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    for cpu in topology.cpus:
        assert str(cpu) in texts
    for _, explanation in diagram.warnings:
        assert explanation in " ".join(filter(None, texts))


def test_svg_is_as_large_as_its_content() -> None:
    small, large = (
        ElementTree.fromstring(draw_svg(build_diagram(machine, partition(machine))))
        for machine in (Topology.synthetic(1, cores_per_l3=2), Topology.synthetic(2, 2, 4, 8, 2))
    )
    assert float(small.get("height", 0)) < float(large.get("height", 0)) / 3
    assert large.get("viewBox") == f"0 0 {large.get('width')} {large.get('height')}"


def test_every_line_of_svg_ends_inside_it() -> None:
    machine = Topology.synthetic(packages=2, cores_per_l3=8)
    root = ElementTree.fromstring(
        draw_svg(build_diagram(machine, partition(machine, num_streams=3)))
    )
    bold = [text for text in root.iter(f"{SVG}text") if text.get("font-weight") == "bold"]
    longest = max(len(text.text or "") for text in bold if text.get("font-size") == "12")
    # A bold letter of 12 px is 7.6 px wide in DejaVu Sans, on average.
    assert 7.6 * longest < float(root.get("width", 0))


def test_levels_nest_as_the_machine_has_them() -> None:
    cores = tuple(
        replace(core, numa_node=core.package // 2)  # a node holds two packages
        for core in Topology.synthetic(packages=4, cores_per_l3=2).cores
    )
    machine = Topology(cores)
    boxes = build_diagram(machine, partition(machine)).boxes
    assert [box.title for box in boxes] == ["NUMA node 0", "NUMA node 1"]
    assert [box.title for box in boxes[1].boxes] == ["package 2 · L3 2", "package 3 · L3 3"]


def test_a_machine_without_levels_is_one_untitled_box() -> None:
    core = replace(Topology.synthetic(1, cores_per_l3=1).cores[0], l3=None, numa_node=None)
    machine = Topology((replace(core, package=None),))
    (box,) = build_diagram(machine, partition(machine)).boxes
    assert box.title == ""
    assert len(box.cells) == 1


def test_l3_caches_have_the_numbers_of_the_streams() -> None:
    whole = Topology.synthetic(packages=2, cores_per_l3=2)
    second = tuple(replace(core, l3=0) for core in whole.cores[2:])
    usable = Topology(second)
    boxes = build_diagram(usable, partition(usable), whole.cores).boxes
    assert [box.title for box in boxes] == [
        "package 0 · NUMA node 0 · L3",
        "package 1 · NUMA node 1 · L3 0",
    ]


def test_the_whole_machine_is_read_whatever_the_cpuset_allows(tmp_path) -> None:
    machine = Topology.synthetic(packages=2, cores_per_l3=2, threads_per_core=2)
    tree: SysfsTree = write_machine(tmp_path, machine)
    tree.add_mount("cgroup2", "/sys/fs/cgroup")
    tree.write("proc/self/cgroup", "0::/job")
    tree.write("sys/fs/cgroup/job/cpuset.cpus.effective", "2")
    assert Topology.from_sysfs(tmp_path).cpus == (2,)
    assert online_cores(tmp_path) == machine.cores
    assert offline_cpus(tmp_path) == frozenset()


@pytest.mark.parametrize("has_present", [True, False])
def test_offline_cpus_are_present_and_not_online(tmp_path, has_present) -> None:
    tree = write_machine(tmp_path, Topology.synthetic(packages=2, cores_per_l3=2))
    tree.set_online([0, 2])
    if has_present:
        tree.write("sys/devices/system/cpu/present", "0-3")
    tree.write("sys/devices/system/cpu/offline", "1,3-127")  # with those that could be added
    assert offline_cpus(tmp_path) == {1, 3}


@pytest.mark.parametrize("kind", WarningKind)
def test_every_kind_of_warning_says_what_to_do(kind) -> None:
    assert "num_streams" in kind.explanation


@pytest.mark.parametrize("use", [*range(7), UNUSED, FORBIDDEN, OFFLINE])
def test_text_can_be_read_on_every_colour(use) -> None:
    brighter, darker = sorted((luminance(fill_of(use)), luminance(ink_of(use))), reverse=True)
    assert (brighter + 0.05) / (darker + 0.05) >= 4.5  # WCAG 2, level AA


def luminance(colour: str) -> float:
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
