"""Which measurements of settings compare: those of one state of the machine."""

from __future__ import annotations

from dataclasses import replace

from deepsched.advice.settings import Setting
from deepsched.benchmark.measurement import Measurement
from deepsched.machine.state import by_complete_state

Results = dict[Setting, tuple[int, list[Measurement]]]
"""By setting: its number of streams, and its rounds."""

_MIN_ROUNDS = 2
"""Of each setting in a state: one alone says nothing of how figures vary."""


def split(results: Results) -> dict[str, Results]:
    """By distance of the cores, in words: the results of it, if every setting was measured twice;
    the commonest first.

    Contention is no state here: `others_share` tells it for the whole of the advice, and a few per
    cent of it more or less would tear rounds apart that compare well.
    """
    rounds = [(setting, it) for setting, (_, measured) in results.items() for it in measured]
    seen = [replace(it.conditions, others_share=None) for _, it in rounds if it.conditions]
    if len(seen) < len(rounds):
        return {}
    return {
        str(state): {setting: (results[setting][0], of) for setting, of in figures.items()}
        for state, figures in by_complete_state(seen, rounds, _MIN_ROUNDS).items()
    }


def comparable(results: Results) -> Results:
    """Those of the commonest state; all, if there is none in which every setting was measured."""
    return next(iter(split(results).values()), results)


def count(results: Results) -> int:
    """How many measurements these are."""
    return sum(len(measured) for _, measured in results.values())
