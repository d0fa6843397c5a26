"""Weights lie on the NUMA nodes of the cores that read them, wherever the system lets them."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsched import Context, Engine, Topology
from deepsched.errors import OptionError
from deepsched.machine.node_memory import node_memory_left
from deepsched.models import numa_copies as numa_copies_module
from deepsched.models.locations import stage_in
from deepsched.models.numa_copies import nodes_of, numa_copies
from deepsched.runtime.numa import copy_to_nodes
from deepsched.scheduler import Scheduler
from deepsched.scheduling.layout import lay_out
from tests.support.models import gemm
from tests.support.plain_onnxruntime import assert_equals_plain
from tests.support.processes import run_python
from tests.support.strategies import random_topologies

SHM = Path("/dev/shm")
TWO_SOCKETS = Topology.synthetic(packages=2, cores_per_l3=4)


@pytest.fixture
def placed(monkeypatch):
    """The nodes of each copy that is made; those in `placed.errors` are refused. At the test's end
    none may have a name left."""

    class Placed(list):
        errors = {}

    made = Placed()
    files = []

    def copy(source_fd, target_fd, nodes):
        if nodes in made.errors:
            raise OSError(made.errors[nodes], "injected")
        made.append(nodes)
        files.append(Path(os.readlink(f"/proc/self/fd/{target_fd}")))
        return copy_to_nodes(source_fd, target_fd, nodes)

    monkeypatch.setattr(numa_copies_module, "copy_to_nodes", copy)
    monkeypatch.setattr(numa_copies_module, "node_memory_left", lambda root, nodes: None)
    yield made
    assert not any(file.exists() for file in files)


def serve(cache_dir, topology=TWO_SOCKETS, **options):
    """Requests to a model on this machine's cores, as if they were those of `topology`."""
    with Context(topology=topology, pin="none", **options) as context:
        engine = Engine(gemm(), None, context=context, cache_dir=cache_dir)
        for _ in range(4):
            assert_equals_plain(engine, gemm())
        assert engine.memory().weights_shared >= 256 * 1024
        return engine.compiled


@pytest.mark.parametrize(
    ("options", "copies"),
    [
        ({"scheduler": "single_stream"}, [(0, 1)]),
        ({"scheduler": "single_stream", "num_cores": 4}, []),
        ({"scheduler": "multi_stream", "num_streams": 4}, [(0,), (1,)]),
        ({"scheduler": "multi_stream", "num_streams": 3}, [(0,), (1,), (0, 1)]),
        ({"scheduler": "elastic"}, [(0,), (1,), (0, 1)]),
    ],
)
def test_each_set_of_nodes_that_a_group_spans_has_a_copy(tmp_path, placed, options, copies):
    for _ in range(2):  # compiled, and from the cache
        placed.clear()
        compiled = serve(tmp_path / "cache", **options)
        assert placed == copies
        assert compiled.num_copies == max(1, len(copies))


def test_on_one_node_nothing_is_copied(tmp_path, placed):
    serve(tmp_path / "cache", Topology.synthetic(packages=1, cores_per_l3=4), scheduler="elastic")
    assert placed == []


@settings(max_examples=50)
@given(data=st.data())
def test_every_group_reads_from_its_own_nodes(data):
    machine = data.draw(random_topologies())
    scheduler = data.draw(st.sampled_from(["single_stream", "multi_stream", "elastic"]))
    streams = lay_out(None, None, Scheduler.from_str(scheduler), "none", machine).groups
    with stage_in(SHM) as entry, pytest.MonkeyPatch.context() as patch:
        entry.model.write_bytes(b"model")
        entry.weights.write_bytes(b"weights")
        copies = {}

        def copy(source_fd, target_fd, nodes):
            Path(f"/proc/self/fd/{target_fd}").write_text(f"{nodes}")
            copies[nodes] = target_fd
            return True

        patch.setattr(numa_copies_module, "copy_to_nodes", copy)
        patch.setattr(numa_copies_module, "node_memory_left", lambda root, nodes: None)
        with numa_copies(entry, streams) as models:
            read = {nodes_of(stream): models[nodes_of(stream)] for stream in streams}
            for nodes, model in read.items():
                content = model.with_name("weights").read_text()
                assert content == (f"{nodes}" if copies and nodes else "weights")
        num_nodes = len({node for stream in streams for node in nodes_of(stream)})
        assert (len(copies) > 0) is (num_nodes > 1)
        if scheduler == "elastic":
            assert len(copies) < 2 * max(1, num_nodes)


def test_cores_without_a_reported_node_share_the_entry(tmp_path, placed):
    # A node without memory: the kernel's tables have no node for its CPUs.
    cores = tuple(
        core if core.package else replace(core, numa_node=None) for core in TWO_SOCKETS.cores
    )
    serve(tmp_path / "cache", replace(TWO_SOCKETS, cores=cores), num_streams=2)
    assert placed == []


# --- What the kernel is asked -------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "policy"), [((0,), "bind:0"), ((0, 1), "interleave:0")])
def test_the_kernel_keeps_the_policy_with_the_file(tmp_path, nodes, policy):
    (tmp_path / "source").write_bytes(bytes(100_000))
    with (
        open(tmp_path / "source", "rb") as source,
        tempfile.NamedTemporaryFile(dir=SHM) as copy,
    ):
        if not copy_to_nodes(source.fileno(), copy.fileno(), nodes):
            pytest.skip("this system does not let processes choose NUMA nodes")
        with mmap.mmap(copy.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ):  # as ORT maps it
            maps = Path("/proc/self/numa_maps")
            if not maps.exists():
                pytest.skip("this kernel has no /proc/self/numa_maps")
            (line,) = [line for line in maps.read_text().splitlines() if copy.name in line]
    assert line.split()[1].startswith(policy)


@pytest.mark.parametrize(
    ("nodes", "is_there"), [((0,), True), ((1000,), False), ((1000, 1001), False)]
)
def test_a_copy_is_made_whether_or_not_its_nodes_can_be_chosen(tmp_path, nodes, is_there):
    content = random.Random(0).randbytes(300_000)
    (tmp_path / "source").write_bytes(content)
    with open(tmp_path / "source", "rb") as source, tempfile.TemporaryFile(dir=SHM) as copy:
        was_placed = copy_to_nodes(source.fileno(), copy.fileno(), nodes)
        assert copy.read() == content
    assert is_there or not was_placed  # a container may forbid mbind for a node that is there, too


def test_a_session_leaves_its_thread_the_policy_that_it_had():
    out = run_python(
        """
        import ctypes
        from deepsched.runtime.session import open_session
        from tests.support.models import gemm
        from tests.support.seccomp import number_of
        call = ctypes.CDLL(None).syscall
        node_0 = (ctypes.c_ulong * 17)(1)
        if call(number_of("set_mempolicy"), 3, node_0, 1025):  # interleave, as numactl -i 0 does
            raise SystemExit(print("refused"))
        options = dict(num_threads=2, cpus=None, thread_prefix="x", config={})
        for wanted in ((0,), (1000,)):  # the second is refused
            open_session(gemm().SerializeToString(), nodes=wanted, **options)
        mode, nodes = ctypes.c_int(), (ctypes.c_ulong * 17)()
        call(number_of("get_mempolicy"), ctypes.byref(mode), nodes, 1025, None, 0)
        print(mode.value, nodes[0])
        """
    )
    if out == "refused\n":  # by a sandbox
        pytest.skip("this system does not let processes choose NUMA nodes")
    assert out == "3 1\n"


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_a_sandbox_that_refuses_the_policy_costs_a_warning(tmp_path, error):
    out = run_python(
        f"""
        import logging, sys
        from tests.support.seccomp import refuse
        try:
            refuse("mbind", "set_mempolicy", "get_mempolicy", code={error})
        except (OSError, KeyError) as error:
            raise SystemExit(print("cannot refuse:", error))
        from tests.support.plain_onnxruntime import assert_equals_plain
        from tests.support.models import gemm
        from deepsched import Context, Engine, Topology
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        machine = Topology.synthetic(packages=2, cores_per_l3=2)
        with Context(topology=machine, pin="none", scheduler="elastic") as context:
            engine = Engine(gemm(), None, context=context, cache_dir={str(tmp_path)!r})
            assert_equals_plain(engine, gemm())
            print(engine.compiled.num_copies, "copies")
        """
    )
    if out.startswith("cannot refuse"):
        pytest.skip(out)
    warning = "the system does not let processes choose NUMA nodes: the weights for {} lie on any"
    *warnings, last = out.splitlines()
    assert warnings == [warning.format(nodes) for nodes in ((0,), (1,), (0, 1))]
    assert last == "3 copies"


@pytest.mark.parametrize(
    ("refused", "num_copies"),
    [((0, 1), 2), ((1,), 3), ((0,), 3)],  # the entry counts, where a group reads it
)
def test_what_does_not_fit_shares_another_copy(tmp_path, placed, caplog, refused, num_copies):
    placed.errors[refused] = errno.ENOSPC
    with caplog.at_level(logging.WARNING, "deepsched"):
        compiled = serve(tmp_path / "cache", scheduler="elastic")
    assert compiled.num_copies == num_copies
    assert f"NUMA nodes {refused} have no copy of the weights" in caplog.text


def test_a_node_without_room_is_not_asked_for_it(tmp_path, placed, monkeypatch, caplog):
    # The kernel would kill this process, not refuse the memory.
    left = {(0,): 1 << 30, (1,): 1000}
    monkeypatch.setattr(numa_copies_module, "node_memory_left", lambda root, nodes: left.get(nodes))
    with caplog.at_level(logging.WARNING, "deepsched"):
        serve(tmp_path / "cache", num_streams=2)
    assert placed == [(0,)]
    assert "1000 are left there" in caplog.text


def test_what_files_keep_in_memory_counts_as_left(tmp_path):
    for node, (free, cached) in enumerate([(500, 250), (300, 0)]):
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "meminfo").write_text(
            f"Node {node} MemTotal:      1600 kB\n"
            f"Node {node} MemFree:        {free} kB\n"
            f"Node {node} Active(file):   {cached} kB\n"
        )
    assert node_memory_left(tmp_path, (0,)) == (500 + 250 - 100) * 1024
    assert node_memory_left(tmp_path, (0, 1)) == (650 + 200) * 1024
    assert node_memory_left(tmp_path, (0, 7)) is None


# --- The option ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "num_copies"), [("0", 1), ("1", 3), ("", 3)])
def test_copies_can_be_forbidden(tmp_path, placed, monkeypatch, value, num_copies):
    monkeypatch.setenv("DEEPSCHED_NUMA_COPIES", value)
    assert serve(tmp_path / "cache", scheduler="elastic").num_copies == num_copies


def test_another_value_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSCHED_NUMA_COPIES", "no")
    with pytest.raises(OptionError, match="DEEPSCHED_NUMA_COPIES must be 0 .* or 1, got 'no'"):
        Engine(gemm(), cache_dir=tmp_path)
