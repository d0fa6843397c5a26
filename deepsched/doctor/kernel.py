"""How the kernel and the hypervisor run the machine: frequency, huge pages, stolen time."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from deepsched.doctor.diagnosis import Check, ok, unknown, warn
from deepsched.doctor.host import Host
from deepsched.sysfs import format_cpu_list, frequency_folders, read_text

_OWN_ALGORITHM = ("intel_pstate", "amd-pstate-epp")
"""Drivers that have an algorithm of their own under the name powersave, which follows the load
(Documentation/admin-guide/pm/intel_pstate.rst and amd-pstate.rst, "Active Mode")."""

_SAVING = ("power", "balance_power")


class _Policy(NamedTuple):
    """Who sets a CPU's frequency."""

    driver: str
    governor: str
    energy_preference: str
    """Empty where there is none."""

    @property
    def is_slowest(self) -> bool:
        return self.governor == "powersave" and self.driver not in _OWN_ALGORITHM

    @property
    def saves_energy(self) -> bool:
        is_hint_heeded = self.governor == "powersave" and self.driver in _OWN_ALGORITHM
        return is_hint_heeded and self.energy_preference in _SAVING

    def __str__(self) -> str:
        text = f"{self.governor} of {self.driver}"
        preference = self.energy_preference
        return f"{text}, energy preference {preference}" if preference else text


def governor(host: Host) -> Check:
    """Whether the frequency follows the load."""
    name, policies = "governor", _policies(host)
    counts = Counter(policies.values())
    data = {"policies": [{**it._asdict(), "num_cpus": number} for it, number in counts.items()]}
    if not policies:
        found = "a virtual machine shows none" if host.is_virtual else "the kernel shows none"
        return unknown(name, found, **data)
    found = "; ".join(map(str, counts))
    slow = [cpu for cpu, policy in policies.items() if policy.is_slowest]
    if slow:
        return warn(
            name, found,
            f"Under this driver powersave keeps CPUs {format_cpu_list(slow)} at their lowest "
            "frequency, whatever the load.",
            "cpupower frequency-set -g performance (or schedutil, which follows the load)",
            **data,
        )  # fmt: skip
    saving = [cpu for cpu, policy in policies.items() if policy.saves_energy]
    if saving:
        return warn(
            name, found,
            f"CPUs {format_cpu_list(saving)} are asked to save energy: they raise their frequency "
            "late, or not to the top.",
            "echo performance | sudo tee "
            "/sys/devices/system/cpu/cpu*/cpufreq/energy_performance_preference",
            **data,
        )  # fmt: skip
    if all(policy.governor == "performance" for policy in counts):
        return ok(name, found, **data)
    meaning = "The frequency follows the load; requests after a pause begin on slow cores."
    return ok(name, found, meaning, **data)


def _policies(host: Host) -> dict[int, _Policy]:
    """Of each CPU that may be used, as far as the kernel tells."""
    policies = {}
    for cpu, folder in frequency_folders(host.root, frozenset(host.topology.cpus)).items():
        governor = read_text(folder / "scaling_governor")
        if governor:
            policies[cpu] = _Policy(
                read_text(folder / "scaling_driver") or "an unknown driver",
                governor,
                read_text(folder / "energy_performance_preference") or "",
            )
    return policies


def boost(host: Host) -> Check:
    """Whether the cores may exceed their base frequency."""
    name = "boost"
    for path, off in (("cpufreq/boost", "0"), ("intel_pstate/no_turbo", "1")):
        text = host.read_text(f"sys/devices/system/cpu/{path}")
        if text not in ("0", "1"):
            continue
        if text != off:
            return ok(name, "on: cores may exceed their base frequency", is_on=True)
        drivers = {policy.driver for policy in _policies(host).values()}
        if not drivers or not all(driver.startswith(_BOOSTING) for driver in drivers):
            # Others show a switch, off, for CPUs without boost as well (cppc_cpufreq does).
            return unknown(name, "off; whether these CPUs have it is not told", is_on=False)
        return warn(
            name, "off", "Cores stay at or below their base frequency: steady, and slower than "
            "they could be.",
            f"echo {1 - int(off)} | sudo tee /sys/devices/system/cpu/{path}, unless it is meant; "
            "if that is refused, it is off in the firmware.",
            is_on=False,
        )  # fmt: skip
    return unknown(name, "the kernel shows no switch for it", is_on=None)


_BOOSTING = ("intel_", "amd-pstate", "acpi-cpufreq")


def huge_pages(host: Host) -> Check:
    """Whether memory may lie in huge pages without having asked for them."""
    name = "huge_pages"
    text = host.read_text("sys/kernel/mm/transparent_hugepage/enabled")
    match = re.search(r"\[(\w+)\]", text or "")
    mode = match[1] if match else None
    if mode not in _HUGE_PAGES:
        return unknown(name, "the kernel does not tell", mode=None)
    return ok(name, f"transparent huge pages: {mode}", _HUGE_PAGES[mode], mode=mode)


_HUGE_PAGES = {
    "always": "Large activations may lie in huge pages: fewer misses of the TLB.",
    "madvise": "Activations lie in small pages: ONNX Runtime asks for no huge ones. With "
    "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 (glibc 2.35) malloc asks; ResNet-50 became no faster.",
    "never": "Activations lie in small pages.",
}

_MUCH_STEAL = 0.05


def steal(host: Host) -> Check:
    """How much of the time that the machine wanted the hypervisor gave to others."""
    name = "steal"
    text = host.read_text("proc/stat") or ""
    match = re.match(r"cpu((?: +[0-9]+){8})", text)
    if not match:
        return unknown(name, "no proc/stat that tells")
    user, nice, system, _idle, _iowait, irq, softirq, stolen = map(int, match[1].split())
    share = stolen / max(1, user + nice + system + irq + softirq + stolen)
    found = f"{share:.1%} of the busy time since the machine started"
    if share <= _MUCH_STEAL:
        return ok(name, found, share=share)
    return warn(
        name, found,
        "The hypervisor ran others when this machine had work to do. All threads of a stream then "
        "wait for the one that was taken off its CPU.",
        "Move to a host that is not overcommitted, or to an instance type with dedicated CPUs.",
        share=share,
    )  # fmt: skip
