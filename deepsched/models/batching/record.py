"""What is told of an engine's batches."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple


class Batching(NamedTuple):
    """Whether requests that wait may run together; `Engine.compiled.batching`."""

    sizes: tuple[int, ...] = ()
    """Numbers of items that runs were timed with, ascending from 1; the last is the most that one
    run takes. Empty: each request runs alone."""
    run_ns: tuple[int, ...] = ()
    """For each of `sizes`, how long a run is on one core, in ns of CPU time."""
    gain: float | None = None
    """Share of an item's CPU time that the largest batch saves, or the best that was tried; None:
    nothing was timed."""
    moved: float | None = None
    """How far an item's outputs in batches are from those that plain onnxruntime gives it alone, in
    units of the largest value of each; 0.0: the same bits; None: nothing was compared."""
    why_not: str = ""
    """Why each request runs alone, or why "auto" would have it so; empty if batches are used, or
    are off because the engine's `batching` says so."""
    is_settled: bool = True
    """False: it could not be measured, and is tried again at the next start."""
    rows: int | None = None
    """Items that each request has; None: any number."""
    item_size: int = 0
    """Elements of all inputs of an item, as it was timed: a larger one counts for as many items as
    it is larger. 0: whatever its size."""

    def __str__(self) -> str:
        """In a few words.

        >>> print(Batching((1, 2, 4), (10, 12, 16), 0.6))
        up to 4 items in a run, which saves 60% an item
        >>> print(Batching(why_not="the model has no inputs"))
        each request alone: the model has no inputs
        """
        if self.sizes:
            saved = "" if self.gain is None else f", which saves {self.gain:.0%} an item"
            return f"up to {self.sizes[-1]} items in a run{saved}"
        return "each request alone" + (f": {self.why_not}" if self.why_not else "")

    @classmethod
    def from_json(cls, fields: list[object]) -> Batching:
        """From what JSON makes of one."""
        found = cls(*fields)  # type: ignore[arg-type]
        return found._replace(sizes=tuple(found.sizes), run_ns=tuple(found.run_ns))

    def turned_off(self, why_not: str) -> Batching:
        """Without batches, though they were tried."""
        return self._replace(sizes=(), run_ns=(), why_not=why_not)

    def limited_to(self, most: int) -> Batching:
        """Batches of up to `most` items, whatever was measured; lengths between and beyond what was
        timed are in proportion.

        >>> Batching((1, 2, 4), (10, 12, 16), 0.6).limited_to(6)
        Batching(sizes=(1, 2, 4, 6), run_ns=(10, 12, 16, 24), gain=0.6, moved=None, why_not='', \
is_settled=True, rows=None, item_size=0)
        """
        if not self.sizes or self.sizes[-1] == most:
            return self
        kept = bisect_right(self.sizes, most)
        sizes, run_ns = self.sizes[:kept], self.run_ns[:kept]
        if sizes[-1] < most:
            run_ns = (*run_ns, run_ns[-1] * most // sizes[-1])
            sizes = (*sizes, most)
        rows = self.rows or 1
        alone_ns = run_ns[sizes.index(rows)] / rows  # an item
        gain = None if self.gain is None else 1 - run_ns[-1] / sizes[-1] / alone_ns
        return self._replace(sizes=sizes, run_ns=run_ns, gain=gain)
