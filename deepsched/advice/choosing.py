"""The best of the figures, and the reason in words: pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deepsched.advice.settings import Figures, Setting
from deepsched.formatting import short
from deepsched.scheduling.scaling import useful_cores

# Settings within this of the best are as good: the simpler one is taken. Latencies at a given rate
# differ by more from one run to the next.
_AS_GOOD = 0.03
_AS_GOOD_AT_RATE = 0.05


@dataclass(frozen=True)
class Load:
    """What the settings are compared under: so many callers, or so many requests a second."""

    callers: int | None
    rate: float | None
    sparse_rate: float | None = None
    """The rate that one caller stands for: its requests hardly ever meet."""

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s at random times"
        if self.sparse_rate is not None:
            return f"1 caller (requests that come {self.sparse_rate:g} a second hardly meet)"
        return "1 caller" if self.callers == 1 else f"{self.callers} callers at once"

    def num_at_once(self, ms: float) -> int:
        """How many requests there are at a time, about, where each takes so long."""
        if self.callers is not None:
            return self.callers
        return 1 + math.ceil((self.rate or 0.0) * ms / 1e3)

    @property
    def aim(self) -> str:
        """What is best under this load."""
        if self.rate is not None:
            return "the least mean latency"
        return "the least median latency" if self.callers == 1 else "the most items a second"

    def key(self, figures: Figures) -> float:
        """Less is better."""
        if self.rate is not None:
            return figures.mean_ms
        return figures.p50_ms if self.callers == 1 else -figures.items_per_sec


def choose(
    figures: Sequence[Figures], load: Load, p99_limit_ms: float | None
) -> tuple[Figures, list[Figures]]:
    """The setting to take, and the others that are as good.

    Those that do not keep up with the rate, or exceed the limit, are out, if any is not; where none
    keeps up, the one that answers most is taken.
    """
    allowed = [it for it in figures if it.keeps_up]
    if not allowed:
        most = max(figures, key=lambda it: it.items_per_sec)
        return most, []
    within = [it for it in allowed if p99_limit_ms is None or it.p99_ms <= p99_limit_ms]
    allowed = within or allowed
    best = min(load.key(it) for it in allowed)
    tolerance = (_AS_GOOD if load.rate is None else _AS_GOOD_AT_RATE) * abs(best)
    # Less is better, whether it is a latency or a negative rate.
    as_good = [it for it in allowed if load.key(it) <= best + tolerance]
    chosen = min(as_good, key=lambda it: _simplicity(it.setting))
    return chosen, [it for it in as_good if it is not chosen]


def _simplicity(setting: Setting) -> tuple[int, int]:
    """Fewer cores leave some for others; elastic stays right when the load changes."""
    order = ("elastic", "single_stream", "multi_stream")
    if setting.scheduler == "single_stream" and setting.num_cores is not None:
        return 0, setting.num_cores
    return 1 + order.index(setting.scheduler), 0


# --- In words -------------------------------------------------------------------------------------


def explain(
    chosen: Figures,
    as_good: Sequence[Figures],
    scaling_ms: dict[int, float],
    load: Load,
    p99_limit_ms: float | None,
) -> str:
    """Why that setting."""
    sentences = [_scaling(scaling_ms)]
    if not chosen.keeps_up:
        sentences.append(
            f"No setting keeps up: {load.rate:g} requests/s are due, and "
            f"{chosen.items_per_sec:.0f} items/s is the most that was answered, by this one."
        )
    else:
        what = f"With {load} {chosen.setting} gives {load.aim}"
        if p99_limit_ms is not None:
            is_within = chosen.p99_ms <= p99_limit_ms
            what += (
                f" within a p99 of {p99_limit_ms:g} ms"
                if is_within
                else f"; no setting stays within a p99 of {p99_limit_ms:g} ms"
            )
        if as_good:
            others = " and ".join(str(it.setting) for it in as_good)
            what += f"; {others} {'is' if len(as_good) == 1 else 'are'} as good, within the noise"
        sentences.append(what + ".")
    if chosen.setting.scheduler == "elastic":
        sentences.append(
            f"elastic makes {chosen.num_streams} streams here and joins them for a request as long "
            "as few wait; it needs no num_streams."
        )
    return " ".join(sentences)


def _scaling(scaling_ms: dict[int, float]) -> str:
    if len(scaling_ms) == 1:
        return "There is one core to use."
    enough = useful_cores(scaling_ms)
    one = scaling_ms[min(scaling_ms)]
    if enough == max(scaling_ms):
        return (
            f"A lone request gets faster with every core: {short(one)} ms on one, "
            f"{short(scaling_ms[enough])} ms on {enough}."
        )
    if enough == min(scaling_ms):
        return f"A lone request takes {short(one)} ms on one core, and more cores do not help."
    return (
        f"A lone request takes {short(one)} ms on one core, {short(scaling_ms[enough])} ms on "
        f"{enough}, and more cores do not help."
    )


def cost(chosen: Figures, as_good: Sequence[Figures], default: Figures, load: Load) -> str:
    """What the default setting would give instead."""
    if chosen.setting == default.setting:
        return "It is the default: single_stream on all cores."
    if default in as_good:
        instead, against = "The default, single_stream on all cores, is as good here:", "against"
    else:
        instead, against = "With the default, single_stream on all cores, instead:", "not"
    if not default.keeps_up:
        return f"{instead} {default.answered:.0%} of the requests answered."
    if load.rate is not None or load.callers == 1:
        return (
            f"{instead} p50 {short(default.p50_ms)} ms, {against} {short(chosen.p50_ms)}; "
            f"p99 {short(default.p99_ms)} ms, {against} {short(chosen.p99_ms)}."
        )
    return f"{instead} {default.items_per_sec:.1f} items/s, {against} {chosen.items_per_sec:.1f}."
