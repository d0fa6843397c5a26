"""How the kernel and the hypervisor run the machine: frequency, huge pages, stolen time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from deepsched.doctor.diagnosis import Check, ok, unknown, warn
from deepsched.doctor.host import Host
from deepsched.machine.sysfs import format_cpu_list, frequency_folders, read_int, read_text

_OWN_ALGORITHM = ("intel_pstate", "amd-pstate-epp")
"""Drivers that have an algorithm of their own under the name powersave, which follows the load
(Documentation/admin-guide/pm/intel_pstate.rst and amd-pstate.rst, "Active Mode")."""

_SAVING = ("power", "balance_power")

_NEAR_THE_TOP = 0.95
"""Of the highest frequency: what is missing is too little to warn of."""


class _Policy(NamedTuple):
    """Who sets a CPU's frequency."""

    driver: str
    governor: str
    energy_preference: str
    """Empty where there is none."""
    highest_khz: int | None
    """What the CPU can do."""
    cap_khz: int | None
    """What it may do."""
    fixed_khz: int | None
    """What someone set it to; with the governor userspace only."""

    @property
    def is_slowest(self) -> bool:
        return self.governor == "powersave" and self.driver not in _OWN_ALGORITHM

    @property
    def saves_energy(self) -> bool:
        is_hint_heeded = self.governor == "powersave" and self.driver in _OWN_ALGORITHM
        return is_hint_heeded and self.energy_preference in _SAVING

    @property
    def is_fixed_low(self) -> bool:
        return self.governor == "userspace" and self._is_low(self.fixed_khz)

    @property
    def is_capped(self) -> bool:
        return self._is_low(self.cap_khz)

    def _is_low(self, khz: int | None) -> bool:
        return bool(khz and self.highest_khz and khz < _NEAR_THE_TOP * self.highest_khz)

    def __str__(self) -> str:
        text = f"{self.governor} of {self.driver}"
        preference = self.energy_preference
        return f"{text}, energy preference {preference}" if preference else text


def governor(host: Host) -> Check:
    """Whether the frequency follows the load, to the top."""
    name, policies = "governor", _policies(host)
    counts = Counter(policies.values())
    data = {"policies": [{**it._asdict(), "num_cpus": number} for it, number in counts.items()]}
    if not policies:
        found = "a virtual machine shows none" if host.is_virtual else "the kernel shows none"
        return unknown(name, found, **data)
    found = "; ".join(dict.fromkeys(map(str, counts)))
    troubles = list(_troubles(policies))
    if troubles:
        meanings, advice = zip(*troubles, strict=True)
        return warn(name, found, " ".join(meanings), "; ".join(dict.fromkeys(advice)), **data)
    governors = {policy.governor for policy in counts}
    meaning = ""
    if "userspace" in governors:
        meaning = "Under userspace the frequency stays where it was set, whatever the load."
    elif governors != {"performance"}:
        meaning = "The frequency follows the load; requests after a pause begin on slow cores."
    return ok(name, found, meaning, **data)


def _troubles(policies: dict[int, _Policy]) -> Iterator[tuple[str, str]]:
    """What is wrong, and what to do about it."""
    slow = [cpu for cpu, policy in policies.items() if policy.is_slowest]
    if slow:
        yield (
            f"Under this driver powersave keeps CPUs {format_cpu_list(slow)} at their lowest "
            "frequency, whatever the load.",
            _FOLLOW_THE_LOAD,
        )
    saving = [cpu for cpu, policy in policies.items() if policy.saves_energy]
    if saving:
        yield (
            f"CPUs {format_cpu_list(saving)} are asked to save energy: they raise their frequency "
            "late, or not to the top.",
            "echo performance | sudo tee "
            "/sys/devices/system/cpu/cpu*/cpufreq/energy_performance_preference",
        )
    fixed = {cpu: policy for cpu, policy in policies.items() if policy.is_fixed_low}
    for cpus, policy in _alike(fixed):
        yield (
            f"Under userspace CPUs {cpus} stay at {_ghz(policy.fixed_khz)} of "
            f"{_ghz(policy.highest_khz)} GHz, whatever the load.",
            _FOLLOW_THE_LOAD,
        )
    capped = {cpu: policy for cpu, policy in policies.items() if policy.is_capped}
    highest = max((policy.highest_khz or 0 for policy in capped.values()), default=0)
    for cpus, policy in _alike(capped):
        yield (
            f"CPUs {cpus} are kept at or below {_ghz(policy.cap_khz)} of "
            f"{_ghz(policy.highest_khz)} GHz.",
            f"cpupower frequency-set --max {highest / 1000:.0f}MHz, unless the cap is meant; where "
            "it comes back, a power profile, thermald or the firmware sets it",
        )


_FOLLOW_THE_LOAD = "cpupower frequency-set -g performance (or schedutil, which follows the load)"


def _alike(policies: dict[int, _Policy]) -> Iterator[tuple[str, _Policy]]:
    """CPUs of one policy -> that policy."""
    for policy in dict.fromkeys(policies.values()):
        yield format_cpu_list(cpu for cpu, other in policies.items() if other == policy), policy


def _ghz(khz: int | None) -> str:
    return f"{(khz or 0) / 1e6:.3g}"


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
                read_int(folder / "cpuinfo_max_freq"),
                read_int(folder / "scaling_max_freq"),
                read_int(folder / "scaling_setspeed"),
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
            name,
            "off",
            "Cores stay at or below their base frequency: steady, and slower than they could be.",
            f"echo {1 - int(off)} | sudo tee /sys/devices/system/cpu/{path}, unless it is meant; "
            "if that is refused, it is off in the firmware.",
            is_on=False,
        )
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
        name,
        found,
        "The hypervisor ran others when this machine had work to do. All threads of a stream then "
        "wait for the one that was taken off its CPU.",
        "Move to a host that is not overcommitted, or to an instance type with dedicated CPUs.",
        share=share,
    )
