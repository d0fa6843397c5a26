"""Plans how long to measure each setting, so that the figures tell settings apart: pure functions.

A rate that was taken from n requests of s streams is off by up to s/n, since streams that run in
step answer in bursts; and settings differ by a few percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepsched.advice.choosing import Load
from deepsched.advice.settings import Setting
from deepsched.benchmark.percentiles import requests_for

MIN_REQUESTS = 20
"""Of each setting; fewer do not tell settings apart."""

_MIN_BURSTS = 10  # of answers of all streams: margins of 10 %

MAX_EXTENSION = 6
"""A slow model may take so many times the seconds that were given."""

COMPARISON_SHARE = 0.6
"""Share of the seconds for the comparison of settings; the rest is for scaling and batches."""

_MARGIN = 1.5  # requests planned for each that is needed: models may be slower than predicted
_MIN_SECONDS = 0.1  # of one measurement of one setting

# More rounds average out disturbances better, as long as each has some requests.
_FEW_ROUNDS, _MANY_ROUNDS = 3, 5
_ROUND_SECONDS, _ROUND_REQUESTS = 0.25, 10


@dataclass(frozen=True)
class Plan:
    """How settings are measured: in rounds, each setting once in a round."""

    rounds: int
    max_rounds: int
    """Rounds that the time allows; taken if settings answered fewer requests than predicted."""
    seconds: float
    """Of one measurement."""
    warmup_seconds: float
    """Before each."""
    total_seconds: float
    """Of all rounds."""
    is_extended: bool
    """Whether that is more than the share of the given seconds."""
    needed: int
    """Requests of each setting without which the figures do not tell."""
    enough_seconds: int | None
    """If the requests will be too few: seconds that would suffice. Else None."""


def plan(
    candidates: Sequence[Setting],
    scaling_ms: Mapping[int, float],
    num_cores: int,
    load: Load,
    p99_limit_ms: float | None,
    seconds: float,
    *,
    spent: float = 0.0,
    opening: float = 0.0,
) -> Plan:
    """How to measure these settings, so that each gets enough requests.

    Args:
        scaling_ms: by cores: latency of a lone request.
        num_cores: that the settings share.
        seconds: that were given for all of the advice; a slow model may take MAX_EXTENSION times
            that. If even that is too short, it is planned within `seconds`.
        spent: seconds of that which are over.
        opening: seconds that it takes to open an engine.
    """
    if p99_limit_ms is not None:
        needed = requests_for(99)
    else:
        most = max(it.num_streams or 1 for it in candidates)
        # Else there is nothing to tell apart.
        needed = max(MIN_REQUESTS, _MIN_BURSTS * most) if len(candidates) > 1 else 0
    rate = load.rate or min(throughput(it, scaling_ms, num_cores, load) for it in candidates)
    budget = COMPARISON_SHARE * seconds / len(candidates)
    is_fast = budget / _MANY_ROUNDS >= max(_ROUND_SECONDS, _ROUND_REQUESTS / rate)
    rounds = _MANY_ROUNDS if is_fast else _FEW_ROUNDS
    warmup = max(scaling_ms.values()) / 1e3 if load.rate is None else 0.0
    latency = (load.callers or 1) / rate  # until the last callers have their answers

    def total(each: float, rounds: int) -> float:
        return rounds * len(candidates) * (opening + max(0.1 * each, warmup) + each + latency)

    wanted = max(_MIN_SECONDS, _MARGIN * needed / rate / rounds)
    given = max(_MIN_SECONDS, budget / rounds)
    each = max(wanted, given)
    limit = MAX_EXTENSION * seconds - spent
    enough = None
    if needed and total(wanted, rounds) > max(limit, total(_MIN_SECONDS, rounds)):
        enough = math.ceil(total(wanted, rounds) / COMPARISON_SHARE)
        each = given
    return Plan(
        rounds=rounds,
        max_rounds=max(rounds, math.floor(limit / total(each, 1))),
        seconds=each,
        warmup_seconds=max(0.1 * each, warmup),
        total_seconds=total(each, rounds),
        is_extended=each > given,
        needed=needed,
        enough_seconds=enough,
    )


def throughput(
    setting: Setting, scaling_ms: Mapping[int, float], num_cores: int, load: Load
) -> float:
    """Predicted requests per second of a setting; streams without a request are idle."""
    streams = setting.num_streams or 1
    width = max(1, (setting.num_cores or num_cores) // streams)
    # That of the widest measured group that is no wider than a stream.
    run_ms = scaling_ms[max(cores for cores in scaling_ms if cores <= width)]
    return 1e3 * min(streams, load.concurrency(run_ms)) / run_ms
