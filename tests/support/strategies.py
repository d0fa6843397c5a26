"""Hypothesis strategies for machines."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import strategies as st

from deepsched.machine.topology import Core, Topology


@st.composite
def random_topologies(draw: st.DrawFn, with_quota: bool = True) -> Topology:
    """Irregular machines of 1 to about 30 cores: each part has a size of its own.

    With or without L3 caches, hyper-threads, a second kind of core, a CPU quota, and packages that
    the machine names.
    """
    has_l3, has_packages, is_hybrid = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    l2, l3, nodes = itertools.count(), itertools.count(), itertools.count()
    few = st.integers(1, 2)
    cores = []
    for package in range(draw(few)):
        for node in itertools.islice(nodes, draw(few)):
            for cache in itertools.islice(l3, draw(few)):
                for l2_id in itertools.islice(l2, draw(st.integers(1, 4))):
                    cores.append(
                        Core(
                            cpus=tuple(range(draw(few))),  # numbered below
                            l2=l2_id,
                            l3=cache if has_l3 else None,
                            numa_node=node,
                            package=package if has_packages else None,
                            kind=draw(st.integers(0, 1)) if is_hybrid else 0,
                        )
                    )
    quota = draw(st.none() | st.integers(1, 4000)) if with_quota else None
    return Topology(
        _number_kinds(_number_cpus(cores)), cpu_quota=None if quota is None else quota / 100
    )


def _number_cpus(cores: list[Core]) -> list[Core]:
    """As Linux usually does: the first threads of all cores, then the second ones."""
    threads = [(thread, index) for index, core in enumerate(cores) for thread in core.cpus]
    number = {place: cpu for cpu, place in enumerate(sorted(threads))}
    return [
        replace(core, cpus=tuple(number[thread, index] for thread in core.cpus))
        for index, core in enumerate(cores)
    ]


def _number_kinds(cores: list[Core]) -> tuple[Core, ...]:
    """The least kind that is there is 0."""
    least = min(core.kind for core in cores)
    return tuple(replace(core, kind=core.kind - least) for core in cores)
