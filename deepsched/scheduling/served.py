"""ServedModel: a model on the streams of a context, wherever these are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from deepsched.models.compiled import OpenedModel
from deepsched.models.memory_usage import sizes_at_opening
from deepsched.runtime.model import Model
from deepsched.scheduling.opening import Opener
from deepsched.scheduling.placement import Placement
from deepsched.scheduling.stats import Counts
from deepsched.timeline.records import TracedModel


class Placed(NamedTuple):
    """A model on one placement."""

    placement: Placement
    model: Model
    opened: OpenedModel
    arenas: list[int]
    """What its sessions' arenas held when they were opened, in bytes."""


class _History(NamedTuple):
    """What stats are made of: changed as a whole, so that no request is counted twice or not."""

    counted: Counts | None
    """Of placements that have been left."""
    placed: tuple[Placed, ...]
    """Those that are being left, and the present one."""


class ServedModel:
    """The native form, its sessions, and what goes when it is closed.

    Args:
        retire: is called when it has been closed, and its counts are final.
    """

    def __init__(
        self, placement: Placement, opener: Opener, retire: Callable[[ServedModel], None]
    ) -> None:
        self.is_closed = False
        self._opener: Opener | None = opener
        self._retire = retire
        self._is_retired = False
        self._most_together: int | None = None
        self._run_ns: dict[int, int] = {}
        """By cores, what an elastic context has learned of its runs before it moved."""
        placed = _open(opener, placement, None, {})
        self._history = _History(None, (placed,))
        self.model = placed.model
        """Its native form where it is."""
        path, batch_size = placed.opened.path, placed.opened.batch_size
        self.name = TracedModel(Path(path).stem if path else "model", batch_size)
        """What traces call it."""

    @property
    def placed(self) -> Placed:
        """Where it is."""
        return self._history.placed[-1]

    @property
    def opened(self) -> OpenedModel:
        """Its sessions, and what is known of it."""
        return self.placed.opened

    def limit_together(self, most: int) -> None:
        """Has runs of several requests take `most` items at most, wherever it moves. To be called
        before anybody uses it."""
        self._most_together = most  # then what there is; take_over does it the other way round
        for placed in self._history.placed:
            placed.model.limit_together(most)

    # --- Moving: runtime/README.md, "Moving" ----------------------------------------------------

    def open_beside(self, placement: Placement) -> Placed | None:
        """Opens it there, from its compiled form; nobody uses that yet. None: it is closed."""
        opener = self._opener
        self._run_ns.update(_learned_ns(self.placed))
        try:
            return None if opener is None else _open(opener, placement, self.placed, self._run_ns)
        except Exception:
            if self.is_closed:  # meanwhile, and what it is opened from with it
                return None
            raise

    def take_over(self, target: Placed) -> None:
        """From here on requests go there."""
        self._history = _History(self._history.counted, (*self._history.placed, target))
        if self._most_together is not None:
            target.model.limit_together(self._most_together)
        self._hand_over()

    def settle(self) -> None:
        """Waits for what it has accepted where it has been, and ends it there. To be called again
        if it was interrupted, as `take_over` may have been."""
        self._hand_over()
        for left in self._history.placed[:-1]:
            left.model.drain()
            left.model.close()
            self._forget(left)

    def _hand_over(self) -> None:
        *before, current = self._history.placed
        self.model = current.model
        for left in before:
            left.model.move_to(current.model)
        if self.is_closed:  # close() sets the flag, then closes what there is: one sees the other
            self.close()

    def _forget(self, left: Placed) -> None:
        """Its counts are final."""
        if not any(it is left for it in self._history.placed):
            return  # a signal's handler has moved the context meanwhile, and has seen to it
        counted = left.placement.new_counts()
        if self._history.counted is not None:
            counted.add_all(self._history.counted)
        counted.add(left.model.counts())
        placed = tuple(it for it in self._history.placed if it is not left)
        self._history = _History(counted, placed)

    # --- Numbers and end ------------------------------------------------------------------------

    def counts(self) -> Counts:
        """What happened to its requests so far."""
        counted, placed = self._history
        total = placed[-1].placement.new_counts()
        if counted is not None:
            total.add_all(counted)
        for it in placed:
            counts = it.placement.new_counts()
            counts.add(it.model.counts())
            total.add_all(counts)
        return total

    def close(self) -> None:
        """Ends queued requests as closed, waits for the running ones, frees the sessions. May be
        called again; by the garbage collector too, at any moment and in any thread."""
        self.is_closed = True
        for placed in self._history.placed:  # again, too: Ctrl-C may have ended the first early
            placed.model.close()
        self._opener = None  # and the model's bytes
        # Each of these may be done twice, and none is left out if Ctrl-C comes in between.
        if not self._is_retired:
            self._retire(self)
            self._is_retired = True
        if self.opened.entry is not None:
            self.opened.entry.close()


def _learned_ns(placed: Placed) -> dict[int, int]:
    tree = placed.placement.layout.tree
    if tree is None:
        return {}
    return {tree.num_cores(group): ns for group, ns in enumerate(placed.model.run_ns()) if ns}


def _open(
    opener: Opener, placement: Placement, elsewhere: Placed | None, known_ns: Mapping[int, int]
) -> Placed:
    opened = opener.open(placement, None if elsewhere is None else elsewhere.opened)
    number = None if elsewhere is None else elsewhere.model.number
    batching = opened.compiled.batching
    # With batches, the sessions take any number of items; a request still has its own.
    model = Model(
        placement.dispatcher, opened.sessions, number, batching.rows if batching.sizes else None
    )
    if batching.sizes:
        model.set_batching(
            list(batching.sizes),
            list(batching.run_ns),
            batching.item_size,
            None if elsewhere is None else elsewhere.model,
        )
    placed = Placed(placement, model, opened, sizes_at_opening(opened.sessions))
    try:
        opener.prepare(placement, model, opened, known_ns)
        if elsewhere is not None:
            opener.warm(placement, model, opened, elsewhere.placement)
    except BaseException:
        model.close()
        raise
    return placed
