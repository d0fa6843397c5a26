"""The emulated machines, and what is to be found on each."""

from __future__ import annotations

from typing import NamedTuple

from tests.support.guest import Machine


class Case(NamedTuple):
    """A machine, and what we are to say of it; lists of CPUs as the kernel writes them."""

    machine: Machine
    cores: int
    packages: tuple[str, ...]
    nodes: tuple[str, ...]
    """Those with CPUs."""
    caches: tuple[str, ...]
    """The L3 caches."""
    streams: tuple[str, ...]
    """The default ones."""
    warnings: dict[int, dict[str, str]]
    """By num_streams: the streams by kind of warning."""
    checks: tuple[str, ...]
    """Names of functions in checks.py."""
    doctor: dict[str, str] = {}
    """What `deepsched doctor` finds, by check, in part."""


# QEMU's own is AMD's. That tells of hardware threads, and of several L3 caches in one NUMA node, in
# leaves of CPUID that the emulation lacks.
_INTEL = "max,vendor=GenuineIntel"

_EIGHT = tuple(f"{first}-{first + 3}" for first in range(0, 32, 4))
_STRUCTURE = ("topology", "lstopo", "partition", "doctor")
_SERVING = ("threads", "near_streams", "elastic")

CASES = {
    "two-sockets": Case(
        Machine("16,sockets=2,cores=8", ("0-7", "8-15")),
        cores=16,
        packages=("0-7", "8-15"),
        nodes=("0-7", "8-15"),
        caches=("0-7", "8-15"),
        streams=("0-7", "8-15"),
        warnings={
            1: {"straddles_packages": "0"},
            2: {},
            3: {"straddles_packages": "1", "shares_l3": "0-2", "uneven_sizes": "1-2"},
            4: {"shares_l3": "0-3"},
        },
        checks=(*_STRUCTURE, *_SERVING, "weights", "offline"),
        doctor={"numa": "span 2 nodes (0-1)", "smt": "off or not present"},
    ),
    "four-nodes": Case(
        Machine("16,sockets=2,dies=2,cores=4", ("0-3", "4-7", "8-11", "12-15"), 768),
        cores=16,
        packages=("0-7", "8-15"),
        nodes=("0-3", "4-7", "8-11", "12-15"),
        caches=("0-3", "4-7", "8-11", "12-15"),
        streams=("0-3", "4-7", "8-11", "12-15"),
        warnings={
            1: {"straddles_packages": "0"},
            2: {"straddles_nodes": "0-1"},
            4: {},
            8: {"shares_l3": "0-7"},
        },
        checks=(*_STRUCTURE, *_SERVING, "weights"),
        doctor={"numa": "span 4 nodes (0-3)", "memory_nodes": "memory may be allocated on every"},
    ),
    "eight-caches": Case(
        Machine("32,sockets=1,dies=8,cores=4", ("0-31",), 3072, _INTEL),
        cores=32,
        packages=("0-31",),
        nodes=("0-31",),
        caches=_EIGHT,
        streams=_EIGHT,
        warnings={
            1: {},
            4: {},
            8: {},
            5: {"shares_l3": "0-4", "uneven_sizes": "2-4"},
            32: {"shares_l3": "0-31"},
        },
        checks=(*_STRUCTURE, "threads"),
        doctor={"numa": "are in node 0"},
    ),
    "smt": Case(
        Machine("8,sockets=1,cores=4,threads=2", ("0-7",), 2048, _INTEL),
        cores=4,
        packages=("0-7",),
        nodes=("0-7",),
        caches=("0-7",),
        streams=("0,2,4,6",),  # a hardware thread of each core
        warnings={1: {}, 2: {"shares_l3": "0-1"}},
        checks=(*_STRUCTURE, *_SERVING),
        doctor={"smt": "on; the 8 usable CPUs make 4 cores"},
    ),
    "node-without-cpus": Case(
        Machine("4,sockets=2,cores=2", ("0-1", "2-3", "")),
        cores=4,
        packages=("0-1", "2-3"),
        nodes=("0-1", "2-3"),
        caches=("0-1", "2-3"),
        streams=("0-1", "2-3"),
        warnings={1: {"straddles_packages": "0"}, 2: {}},
        checks=(*_STRUCTURE, *_SERVING, "weights"),
        doctor={"numa": "span 2 nodes (0-1)"},
    ),
    "offline-cpus": Case(
        Machine("8,sockets=2,cores=4", ("0-3", "4-7"), boot="maxcpus=6"),
        cores=6,
        packages=("0-3", "4-5"),
        nodes=("0-3", "4-5"),
        caches=("0-3", "4-5"),
        streams=("0-2", "3-5"),
        warnings={2: {"straddles_packages": "1", "shares_l3": "0-1"}, 6: {"shares_l3": "0-5"}},
        checks=(*_STRUCTURE, *_SERVING, "weights"),
        doctor={"affinity": "all 6 usable CPUs (0-5)"},
    ),
    "cgroup": Case(
        Machine("4,sockets=2,cores=2", ("0-1", "2-3")),
        cores=4,
        packages=("0-1", "2-3"),
        nodes=("0-1", "2-3"),
        caches=("0-1", "2-3"),
        streams=("0-1", "2-3"),
        warnings={},
        checks=("topology", "cpuset", "quota", "changing_cpuset"),
    ),
}
