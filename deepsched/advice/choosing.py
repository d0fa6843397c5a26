"""Picks the best setting from the figures, and explains the choice: pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deepsched.advice.settings import Figures, Setting
from deepsched.formatting import rounded
from deepsched.scheduling.scaling import useful_cores

# Settings within this relative distance of the best, or within the uncertainty of both figures if
# that is more, tie with it; the simplest of them is chosen. Latencies at a given rate vary more
# from one run to the next.
_TIE_TOLERANCE = 0.03
_TIE_TOLERANCE_AT_RATE = 0.05
# A disturbed round makes a figure uncertain, but does not make a much worse setting as good.
_MAX_TOLERANCE = 0.1


@dataclass(frozen=True)
class Load:
    """The load that settings are compared under: a closed loop of callers, or an arrival rate."""

    callers: int | None
    rate: float | None
    sparse_rate: float | None = None
    """The arrival rate that a single caller stands in for: its requests rarely overlap."""

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s (Poisson arrivals)"
        if self.sparse_rate is not None:
            return f"1 caller (at {self.sparse_rate:g} requests/s, requests rarely overlap)"
        return "1 caller" if self.callers == 1 else f"{self.callers} callers"

    def concurrency(self, run_ms: float) -> int:
        """Approximate number of requests in the system, if each runs for `run_ms`."""
        if self.callers is not None:
            return self.callers
        # By Little's law a Poisson arrival finds rate * run_ms others in the mean; plus itself.
        return 1 + math.ceil((self.rate or 0.0) * run_ms / 1e3)

    @property
    def objective(self) -> str:
        """The objective under this load, in words."""
        if self.rate is not None:
            return "lowest mean latency"
        return "lowest median latency" if self.callers == 1 else "highest throughput"

    def cost(self, figures: Figures) -> float:
        """The value to minimise under this load."""
        if self.rate is not None:
            return figures.mean_ms
        return figures.p50_ms if self.callers == 1 else -figures.items_per_sec


def choose(
    figures: Sequence[Figures], load: Load, p99_limit_ms: float | None
) -> tuple[Figures, list[Figures]]:
    """The setting to recommend, and the others that tie with it.

    Settings that do not keep up with the rate are excluded, then those above the p99 limit unless
    all are. If none keeps up, the one with the highest throughput is recommended.
    """
    allowed = [it for it in figures if it.keeps_up]
    if not allowed:
        return max(figures, key=lambda it: it.items_per_sec), []
    within = [it for it in allowed if p99_limit_ms is None or it.p99_ms <= p99_limit_ms]
    allowed = within or allowed
    best = min(allowed, key=load.cost)
    tied = [it for it in allowed if load.cost(it) <= load.cost(best) + _tolerance(it, best, load)]
    chosen = min(tied, key=lambda it: _complexity(it.setting))
    return chosen, [it for it in tied if it is not chosen]


def _tolerance(figures: Figures, best: Figures, load: Load) -> float:
    relative = _TIE_TOLERANCE if load.rate is None else _TIE_TOLERANCE_AT_RATE
    # The cost is a latency or a negative throughput, hence abs.
    uncertainty = min(_MAX_TOLERANCE, math.hypot(figures.margin, best.margin))
    return max(relative, uncertainty) * abs(load.cost(best))


def _complexity(setting: Setting) -> tuple[int, int]:
    """Sorts the simplest first: fewer cores, which leaves some to other work; then elastic, which
    still fits if the load changes."""
    order = ("elastic", "single_stream", "multi_stream")
    if setting.scheduler == "single_stream" and setting.num_cores is not None:
        return 0, setting.num_cores
    return 1 + order.index(setting.scheduler), 0


# --- Explanations ---------------------------------------------------------------------------------


def explain(
    chosen: Figures,
    tied: Sequence[Figures],
    scaling_ms: dict[int, float],
    load: Load,
    p99_limit_ms: float | None,
) -> str:
    """Explains the choice."""
    sentences = [_scaling(scaling_ms)]
    if not chosen.keeps_up:
        sentences.append(
            f"No setting keeps up with {load.rate:g} requests/s; this one has the highest "
            f"throughput, {chosen.items_per_sec:.0f} items/s."
        )
    else:
        sentence = f"With {load}, {chosen.setting} has the {load.objective}"
        if p99_limit_ms is not None:
            is_within = chosen.p99_ms <= p99_limit_ms
            sentence += (
                f" with p99 within {p99_limit_ms:g} ms"
                if is_within
                else f"; no setting keeps p99 within {p99_limit_ms:g} ms"
            )
        if tied:
            others = " and ".join(str(it.setting) for it in tied)
            sentence += f"; {others} {'ties' if len(tied) == 1 else 'tie'} with it, within noise"
        sentences.append(sentence + ".")
    if chosen.setting.scheduler == "elastic":
        sentences.append(
            f"elastic has {chosen.num_streams} streams here and merges them for a request while "
            "few wait; it needs no num_streams."
        )
    return " ".join(sentences)


def explain_too_few(
    needed: int, scaling_ms: dict[int, float], load: Load, enough_seconds: float
) -> str:
    """Explains why the default is recommended."""
    return (
        f"{_scaling(scaling_ms)} Too few to tell which setting is best with {load}: that takes "
        f"{needed} requests of each setting. Give seconds={enough_seconds:g} or more (on the "
        f"command line --seconds {enough_seconds:g})."
    )


def _scaling(scaling_ms: dict[int, float]) -> str:
    if len(scaling_ms) == 1:
        return "There is only one core to use."
    enough = useful_cores(scaling_ms)
    one = scaling_ms[min(scaling_ms)]
    if enough == max(scaling_ms):
        return (
            f"A lone request gets faster with every core: {rounded(one)} ms on one, "
            f"{rounded(scaling_ms[enough])} ms on {enough}."
        )
    if enough == min(scaling_ms):
        return f"A lone request takes {rounded(one)} ms on one core; more cores do not help."
    return (
        f"A lone request takes {rounded(one)} ms on one core, {rounded(scaling_ms[enough])} ms on "
        f"{enough}; more cores do not help."
    )


def compare_default(chosen: Figures, tied: Sequence[Figures], default: Figures, load: Load) -> str:
    """Compares the default setting with the recommended one."""
    if chosen.setting == default.setting:
        return "It is the default: single_stream on all cores."
    if default in tied:
        subject = "The default, single_stream on all cores, is as good here:"
    else:
        subject = "The default, single_stream on all cores, instead:"
    if not default.keeps_up:
        return f"{subject} it answers {default.answered:.0%} of the requests."
    if load.rate is not None or load.callers == 1:
        return (
            f"{subject} p50 {rounded(default.p50_ms)} ms (recommended: {rounded(chosen.p50_ms)}), "
            f"p99 {rounded(default.p99_ms)} ms ({rounded(chosen.p99_ms)})."
        )
    return (
        f"{subject} {default.items_per_sec:.1f} items/s (recommended: {chosen.items_per_sec:.1f})."
    )
