"""On which NUMA nodes weights and activations lie, as the kernel counts their pages.

    python -m bench.numa                          # on a machine with several nodes
    python -m tests.support.guest -m bench.numa   # on an emulated one

Each scheduler serves a model whose weights are 8 MB and whose activations are 4 MB. Pages are those
that /proc/self/numa_maps counts: of each copy of the weights, and of what the first runs touch.
Exits with status 1 unless there is one copy for each set of nodes that a core group spans, in equal
parts on these nodes, activations are on nodes of the cores that ran, and weights that cannot be
shared are interleaved too.
"""

from __future__ import annotations

import re
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from deepsched import Engine
from deepsched.models.compiled import open_model
from deepsched.models.locations import DEFAULT_CACHE
from deepsched.models.numa_copies import nodes_of
from deepsched.runtime.model import Model
from deepsched.runtime.session import trim_heap
from deepsched.scheduler import Scheduler
from deepsched.scheduling.layout import Layout, lay_out
from deepsched.scheduling.placement import Manner, Placement

Pages = Counter[int]
"""Resident pages by NUMA node."""

_TOLERANCE = 0.1
"""Of all pages: the kernel's own caches and other threads' memory are counted as well."""

_RUN_PAGES = 3 * 1024
"""Of the arrays that a run writes. A group whose memory was used before touches hardly any anew."""


def placed_model(rows: int = 2048) -> bytes:
    """Weights of 4 KiB a row that a run reads once; then arrays of 4 MB, and a small result."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((rows, 1024), np.float32),
        "column": rng.standard_normal((1024, 1), np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["row"]),
        helper.make_node("Add", ["row", "column"], ["sums"]),
        helper.make_node("Exp", ["sums"], ["powers"]),
        helper.make_node("Mul", ["powers", "sums"], ["products"]),
        helper.make_node("ReduceSum", ["products"], ["y"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "placed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


# --- What the kernel counts ---------------------------------------------------------------------


def _lines() -> Iterator[tuple[str, Pages]]:
    """The mappings of this process, each with its pages of 4 KiB."""
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        kb = re.search(r" kernelpagesize_kB=(\d+)", line)
        if kb is not None:
            found = re.findall(r" N(\d+)=(\d+)", line)
            yield line, Counter({int(node): int(pages) * int(kb[1]) // 4 for node, pages in found})


def weight_copies() -> dict[str, Pages]:
    """By policy and path of each copy."""
    copies: dict[str, Pages] = {}
    for line, pages in _lines():
        if found := re.match(r"\S+ (\S+) file=(\S+/weights)(\\040\(deleted\))? ", line):
            copies.setdefault(f"{found[1]} {found[2]}", Counter()).update(pages)
    return copies


def anonymous_pages() -> Pages:
    """ONNX Runtime's arenas are among them."""
    return sum((pages for line, pages in _lines() if "file=" not in line), Counter[int]())


# --- What is right ------------------------------------------------------------------------------


class Report:
    """Prints what it is told, and remembers whether all was right."""

    def __init__(self) -> None:
        self.all_right = True

    def tell(self, what: str, pages: object, is_right: bool) -> None:
        print(f"{'ok   ' if is_right else 'WRONG'} {what}: {pages}", flush=True)
        self.all_right &= is_right

    def copies(self, name: str, layout: Layout) -> None:
        """One for each set of nodes, in equal parts on them."""
        wanted = {nodes_of(group) for group in layout.groups}
        found = weight_copies()
        places = {what: _places(pages) for what, pages in found.items()}
        for what, pages in found.items():
            even = 1 / len(places[what])
            shares = [pages[node] / pages.total() for node in places[what]]
            is_right = all(abs(share - even) < _TOLERANCE for share in shares)
            is_wanted = places[what] in wanted
            self.tell(f"{name}, weights, {what}", dict(pages), is_right and is_wanted)
        self.tell(
            f"{name}, copies for the nodes",
            sorted(wanted),
            sorted(places.values()) == sorted(wanted),
        )

    @contextmanager
    def activations(self, name: str, nodes: Iterable[int]) -> Iterator[None]:
        """What the block's runs touch first lies on these nodes."""
        before = anonymous_pages()
        yield
        pages = anonymous_pages() - before
        elsewhere = sum(count for node, count in pages.items() if node not in nodes)
        self.tell(
            f"{name}, activations of nodes {tuple(nodes)}",
            dict(pages),
            elsewhere <= _TOLERANCE * max(pages.total(), _RUN_PAGES),
        )


def _places(pages: Pages) -> tuple[int, ...]:
    return tuple(sorted(node for node in pages if pages[node] > _TOLERANCE * pages.total()))


# --- The schedulers -----------------------------------------------------------------------------


def fixed(
    report: Report, model: bytes, scheduler: str, num_streams: int | None, cache: str
) -> None:
    layout = lay_out(None, num_streams, Scheduler.from_str(scheduler), "core", None)
    with Engine(model, 1, num_streams=num_streams, scheduler=scheduler, cache_dir=cache) as engine:
        inputs = engine.generate_random_inputs()
        with report.activations(scheduler, layout.topology.numa_nodes):
            while any(stream.done == 0 for stream in engine.stats().streams):
                list(engine.map([inputs] * 8))
        report.copies(scheduler, layout)


def elastic(report: Report, model: bytes) -> None:
    """Without an engine, which would run the model on each core group when it is made."""
    layout = lay_out(None, None, Scheduler.elastic, "core", None)
    placement = Placement(layout, None, Manner("ds", 1024, "auto", True, None))
    try:
        opened = open_model(
            model,
            1,
            None,
            (),
            DEFAULT_CACHE,
            placement.compile_options,
            layout.groups,
            placement.open_session,
            "none",
            "off",
            False,
            True,
        )
        served = Model(placement.dispatcher, opened.sessions)
        inputs = [np.ones((1, 2048), np.float32)]
        for group in layout.groups:
            with report.activations(f"elastic, CPUs {group.cpus}", nodes_of(group)):
                served.measure(group.index, inputs, 0.0)
        report.copies("elastic", layout)
        served.close()
    finally:
        placement.close()


def unshared(report: Report, model: bytes) -> None:
    """With weights in each session's own memory, as where no file can be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        trim_heap()
        before = anonymous_pages()
        with Engine(model, 1) as engine:
            pages = anonymous_pages() - before
            nodes = engine.context.topology.numa_nodes
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    # ONNX Runtime and this thread take other memory meanwhile, on any node.
    least = (1 - _TOLERANCE) * len(model) / 4096 / len(nodes)
    is_right = all(pages[node] >= least for node in nodes)
    report.tell("single_stream without shared weights", dict(pages), is_right)


def main() -> int:
    report = Report()
    model = placed_model()
    nodes = lay_out(None, None, Scheduler.single_stream, "core", None).topology.numa_nodes
    # So large that what else is taken and given back meanwhile is below the tolerance.
    unshared(report, placed_model(16384))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as cache:
        fixed(report, model, "single_stream", None, cache)
        fixed(report, model, "multi_stream", len(nodes), cache)
    elastic(report, model)
    return 0 if report.all_right else 1


if __name__ == "__main__":
    sys.exit(main())
