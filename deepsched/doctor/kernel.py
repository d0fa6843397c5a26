"""Settings of kernel and hypervisor: CPU frequency, huge pages, steal time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from deepsched.doctor.diagnosis import Check, ok, unknown, warn
from deepsched.doctor.host import Host
from deepsched.machine.sysfs import format_cpu_list, frequency_folders, read_int, read_text

_OWN_ALGORITHM = ("intel_pstate", "amd-pstate-epp")
"""Drivers whose own algorithm is named powersave but follows the load
(Documentation/admin-guide/pm/intel_pstate.rst and amd-pstate.rst, "Active Mode")."""

_SAVING = ("power", "balance_power")

_NEAR_THE_TOP = 0.95
"""A cap above this share of the highest frequency is not worth a warning."""


class _Policy(NamedTuple):
    """The cpufreq policy of a CPU."""

    driver: str
    governor: str
    energy_preference: str
    """Empty if there is none."""
    highest_khz: int | None
    """The hardware's maximum."""
    cap_khz: int | None
    """The configured maximum."""
    fixed_khz: int | None
    """The set frequency; with the governor userspace only."""

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
    """Whether the frequency follows the load up to the maximum."""
    name, policies = "governor", _policies(host)
    counts = Counter(policies.values())
    data = {"policies": [{**it._asdict(), "num_cpus": number} for it, number in counts.items()]}
    if not policies:
        found = "not visible in a virtual machine" if host.is_virtual else "the kernel reports none"
        return unknown(name, found, **data)
    found = "; ".join(dict.fromkeys(map(str, counts)))
    troubles = list(_troubles(policies))
    if troubles:
        meanings, advice = zip(*troubles, strict=True)
        return warn(name, found, " ".join(meanings), "; ".join(dict.fromkeys(advice)), **data)
    governors = {policy.governor for policy in counts}
    meaning = ""
    if "userspace" in governors:
        meaning = "Under userspace the frequency is fixed, whatever the load."
    elif governors != {"performance"}:
        meaning = "The frequency follows the load; requests after an idle period start slow."
    return ok(name, found, meaning, **data)


def _troubles(policies: dict[int, _Policy]) -> Iterator[tuple[str, str]]:
    """Pairs of a problem and its remedy."""
    slow = [cpu for cpu, policy in policies.items() if policy.is_slowest]
    if slow:
        yield (
            f"With this driver, powersave keeps CPUs {format_cpu_list(slow)} at their lowest "
            "frequency, whatever the load.",
            _FOLLOW_THE_LOAD,
        )
    saving = [cpu for cpu, policy in policies.items() if policy.saves_energy]
    if saving:
        yield (
            f"CPUs {format_cpu_list(saving)} are set to save energy: their frequency rises late, "
            "or not to the maximum.",
            "echo performance | sudo tee "
            "/sys/devices/system/cpu/cpu*/cpufreq/energy_performance_preference",
        )
    fixed = {cpu: policy for cpu, policy in policies.items() if policy.is_fixed_low}
    for cpus, policy in _alike(fixed):
        yield (
            f"Under userspace, CPUs {cpus} are fixed at {_ghz(policy.fixed_khz)} of "
            f"{_ghz(policy.highest_khz)} GHz, whatever the load.",
            _FOLLOW_THE_LOAD,
        )
    capped = {cpu: policy for cpu, policy in policies.items() if policy.is_capped}
    highest = max((policy.highest_khz or 0 for policy in capped.values()), default=0)
    for cpus, policy in _alike(capped):
        yield (
            f"CPUs {cpus} are capped at {_ghz(policy.cap_khz)} of {_ghz(policy.highest_khz)} GHz.",
            f"cpupower frequency-set --max {highest / 1000:.0f}MHz, unless the cap is intended; if "
            "it returns, a power profile, thermald or the firmware sets it",
        )


_FOLLOW_THE_LOAD = "cpupower frequency-set -g performance (or schedutil, which follows the load)"


def _alike(policies: dict[int, _Policy]) -> Iterator[tuple[str, _Policy]]:
    """Pairs of a CPU list and the policy that these CPUs share."""
    for policy in dict.fromkeys(policies.values()):
        yield format_cpu_list(cpu for cpu, other in policies.items() if other == policy), policy


def _ghz(khz: int | None) -> str:
    return f"{(khz or 0) / 1e6:.3g}"


def _policies(host: Host) -> dict[int, _Policy]:
    """The policy of each usable CPU, as far as the kernel reports it."""
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
            # Others, such as cppc_cpufreq, show the switch as off for CPUs without boost too.
            return unknown(name, "off; it is unknown whether these CPUs have it", is_on=False)
        return warn(
            name,
            "off",
            "Cores stay at or below their base frequency: steady, but slower than they could be.",
            f"echo {1 - int(off)} | sudo tee /sys/devices/system/cpu/{path}, unless intended; if "
            "that fails, it is disabled in the firmware.",
            is_on=False,
        )
    return unknown(name, "the kernel has no switch for it", is_on=None)


_BOOSTING = ("intel_", "amd-pstate", "acpi-cpufreq")


def huge_pages(host: Host) -> Check:
    """Whether memory gets huge pages without asking for them."""
    name = "huge_pages"
    text = host.read_text("sys/kernel/mm/transparent_hugepage/enabled")
    match = re.search(r"\[(\w+)\]", text or "")
    mode = match[1] if match else None
    if mode not in _HUGE_PAGES:
        return unknown(name, "the kernel does not report it", mode=None)
    return ok(name, f"transparent huge pages: {mode}", _HUGE_PAGES[mode], mode=mode)


_HUGE_PAGES = {
    "always": "Large activations may use huge pages: fewer TLB misses.",
    "madvise": "Activations use small pages, since ONNX Runtime does not ask for huge ones. With "
    "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 (glibc 2.35) malloc does; ResNet-50 got no faster.",
    "never": "Activations use small pages.",
}

_MUCH_STEAL = 0.05


def steal(host: Host) -> Check:
    """The share of busy time that the hypervisor took from this machine."""
    name = "steal"
    text = host.read_text("proc/stat") or ""
    match = re.match(r"cpu((?: +[0-9]+){8})", text)
    if not match:
        return unknown(name, "proc/stat does not report it")
    user, nice, system, _idle, _iowait, irq, softirq, stolen = map(int, match[1].split())
    share = stolen / max(1, user + nice + system + irq + softirq + stolen)
    found = f"{share:.1%} of the busy time since boot"
    if share <= _MUCH_STEAL:
        return ok(name, found, share=share)
    return warn(
        name,
        found,
        "The hypervisor ran other guests while this one had work to do. All threads of a stream "
        "then wait for the one that lost its CPU.",
        "Move to a host that is not overcommitted, or to an instance type with dedicated CPUs.",
        share=share,
    )
