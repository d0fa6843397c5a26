"""Whether the batch is to be open: that form is tried, and compared with the plain one."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import onnx

from deepsched.machine.partition import Stream
from deepsched.models.batching.curve import HOPELESS_GAIN, LEAST_GAIN
from deepsched.models.batching.dimension import why_not_shared
from deepsched.models.batching.operators import operators_that_see_the_batch
from deepsched.models.batching.option import MOST_ITEMS
from deepsched.models.batching.record import Batching
from deepsched.models.batching.trial import BatchTrial, Lengths, Unfit
from deepsched.models.prepare import PreparedModel, inputs_with_sizes
from deepsched.models.rewrites.agreement import Moved, all_of
from deepsched.models.rewrites.graph import copy_without_weights
from deepsched.models.rewrites.running import Trial
from deepsched.models.rewritten import OpenPrepared, widest_and_narrowest
from deepsched.runtime.session import Session

logger = logging.getLogger("deepsched")

_MOST_LOST = 0.03
"""Share by which a request alone may take longer where the batch is open."""

_MOST_COMPARISONS = 3
"""What disturbs runs only adds to them, so a form that seems slower is timed again."""


class Search:
    """Tries the form with the open batch, and compares it with the plain one."""

    def __init__(
        self,
        plain: PreparedModel,
        opened: PreparedModel,
        is_forced: bool,
        needs_same_bits: bool,
        open_prepared: OpenPrepared,
        streams: Sequence[Stream],
    ) -> None:
        self._plain = plain
        self._opened = opened
        self._is_forced = is_forced
        self._needs_same_bits = needs_same_bits and not is_forced
        self._open_prepared = open_prepared
        self._rows: int | None = None
        """Items in a request; None: any number."""
        self._streams = widest_and_narrowest(streams)
        narrowest = self._streams[-1]
        self._one_core = replace(narrowest, cores=narrowest.cores[:1], cpus=narrowest.cpus[:1])

    def find(self) -> Batching:
        """Raises Unfit, ModelError, InferenceError, InputError: requests cannot run together."""
        model = onnx.load_from_string(self._opened.graph)
        if why_not := why_not_shared(model):
            raise Unfit(why_not)
        self._rows = _rows_of(self._plain)
        seeing = operators_that_see_the_batch(model)
        if seeing and not self._is_forced:
            raise Unfit(f"answers may depend on the others of a batch, by {', '.join(seeing)}")
        logger.info("trying whether requests may run together")
        # Pinned anew for each run, the thread would wait for its CPU beside others.
        trial = Trial(is_pinned=False)
        rows = self._rows or 1
        if 2 * rows > MOST_ITEMS:
            raise Unfit(f"a request has {rows} items, and a run at most {MOST_ITEMS}")
        batches = BatchTrial(trial, copy_without_weights(model), rows, bool(seeing))
        del model
        return trial.in_thread(lambda: self._try(batches))

    def _try(self, batches: BatchTrial) -> Batching:
        moved, lengths = batches.try_batches(self._open_opened, self._one_core, self._is_forced)
        found = _record(moved, lengths, self._is_forced, self._rows)
        if self._is_forced:
            return found
        if not lengths.is_quiet and lengths.gain >= HOPELESS_GAIN:
            return found.turned_off("others had the CPU while it was measured")._replace(
                is_settled=False
            )
        if lengths.gain < LEAST_GAIN:
            return found.turned_off(
                f"runs of several items save {max(lengths.gain, 0.0):.0%} an item"
            )
        if self._rows is not None:  # else the plain form's batch is open, too
            from_plain, lost, is_quiet = self._compare_with_plain(batches)
            moved = all_of([moved, from_plain])
            found = found._replace(moved=moved.by)
            if not moved.is_allowed:
                return found.turned_off("outputs move if the batch is open")
            if lost > _MOST_LOST:
                why_not = f"requests alone take {lost:.0%} longer if the batch is open"
                return found.turned_off(why_not)._replace(is_settled=is_quiet)
        if self._needs_same_bits and not self._keeps_bits(batches, moved, lengths.knee):
            return found.turned_off("batches give other last bits, and every bit is to stay")
        return found

    def _compare_with_plain(self, batches: BatchTrial) -> tuple[Moved, float, bool]:
        """How far outputs of requests alone move, by which share they take longer, and whether
        others left all of these runs the CPU."""
        plain_s = opened_s = math.inf
        is_quiet = True
        for _ in range(_MOST_COMPARISONS):
            moved, seconds, plain_is_quiet = batches.compare_alone(self._open_plain, self._one_core)
            plain_s = min(plain_s, seconds)
            _, seconds, opened_is_quiet = batches.compare_alone(self._open_opened, self._one_core)
            opened_s = min(opened_s, seconds)
            is_quiet = is_quiet and plain_is_quiet and opened_is_quiet
            lost = opened_s / plain_s - 1
            if lost <= _MOST_LOST:
                break
        return moved, lost, is_quiet

    def _keeps_bits(self, batches: BatchTrial, moved: Moved, most: int) -> bool:
        """On one core, and on as many as streams have."""
        wider = [stream for stream in self._streams if len(stream.cpus) > 1]
        return moved.has_same_bits and all(
            batches.compare_batches(self._open_opened, stream, most).has_same_bits
            and batches.compare_alone(self._open_plain, stream)[0].has_same_bits
            for stream in (self._one_core, *wider)
        )

    def _open_plain(self, stream: Stream) -> Session:
        return self._open_prepared(self._plain, stream)

    def _open_opened(self, stream: Stream) -> Session:
        return self._open_prepared(self._opened, stream)


def _rows_of(plain: PreparedModel) -> int | None:
    """Items in a request; None: any number. Raises Unfit: inputs have different first sizes."""
    proto = onnx.load_from_string(plain.graph)
    firsts = {sizes[0] for _, sizes in inputs_with_sizes(proto) if sizes}
    rows = [size for size in firsts if isinstance(size, int)]
    if rows and len(firsts) > 1:
        raise Unfit("inputs have first dimensions of different sizes, as they were asked for")
    return rows[0] if rows else None


def _record(moved: Moved, lengths: Lengths, is_forced: bool, rows: int | None) -> Batching:
    sizes = [size for size in sorted(lengths.seconds) if is_forced or size <= lengths.knee]
    run_ns = [round(1e9 * lengths.seconds[size]) for size in sizes]
    return Batching(
        tuple(sizes),
        tuple(run_ns),
        lengths.gain,
        moved.by,
        rows=rows,
        item_size=0 if is_forced else lengths.item_size,
    )
