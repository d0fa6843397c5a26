"""What is told of a rule that was tried."""

from __future__ import annotations

from typing import NamedTuple


class Tried(NamedTuple):
    """What became of a rule that fits a model; see `Engine.compiled`."""

    rule: str
    num_places: int
    """Where it replaced its pattern."""
    is_exact: bool
    """Whether it is to keep every bit of the outputs."""
    is_kept: bool
    gain: float | None
    """Share of the run time that it saves; None if that could not be measured, since others had the
    CPUs or the machine changed. An unmeasured rule is kept if outputs agree: no figure decides
    then, but that rules are written for what gains."""
    moved: float | None
    """How far outputs moved, in units of the largest value of each; 0.0: not a bit."""
    together_with: tuple[str, ...]
    """Rules that were tried in one step with it; gain and moved are of all of them."""
    why_not: str
    """Why it is not kept."""

    @classmethod
    def from_json(cls, fields: list[object]) -> Tried:
        """From what JSON makes of one."""
        tried = cls(*fields)  # type: ignore[arg-type]
        return tried._replace(together_with=tuple(tried.together_with))
