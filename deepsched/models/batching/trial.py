"""A model whose first dimension is open, tried out: are requests independent of those that run with
them, and does an item cost less in a batch?

Both are looked at on one core: there a run's length is the CPU time of one thread, which others on
the machine hardly change. More cores divide the same work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import onnx

from deepsched.errors import InferenceError, OptionError
from deepsched.formatting import counted
from deepsched.machine.cgroup import memory_left
from deepsched.machine.partition import Stream
from deepsched.models.batching.curve import gain_at, knee_of, shortest_run, time_sizes
from deepsched.models.batching.option import MOST_ITEMS
from deepsched.models.rewrites.agreement import Moved, all_of, compare
from deepsched.models.rewrites.made_up import VARIANTS, fix_sizes, nudged, sizes_to_try
from deepsched.models.rewrites.running import Trial
from deepsched.models.rewrites.timing import TimedRuns
from deepsched.runtime.session import Session
from deepsched.runtime.values import ValueInfo

_NUM_REQUESTS = 4
"""Different ones, of several magnitudes; larger batches have them again."""

_COUNTS = (2, 3, 5, 8)
"""Requests in the batches whose outputs are looked at, beside the largest."""

_MOST_BYTES = 256 * 2**20
"""That results of operators may take in one session: its arena keeps what the largest run took."""

_LARGEST_INTEGERS = (30, 5)
"""Identifiers, lengths and the like, as most models take them: tried in this order."""

_SLOW_RUN_S, _TOO_LONG_RUN_S = 0.02, 0.5
"""Of longer runs there are two requests, and one batch is looked at; or none."""

OpenForm = Callable[[Stream], Session]


class Unfit(Exception):
    """Requests cannot run together; says why."""


class Lengths(NamedTuple):
    """How long runs are."""

    seconds: dict[int, float]
    """CPU seconds on one core, by number of items."""
    is_quiet: bool
    """Whether others left it the CPU; else the figures are no more than a guess."""
    knee: int
    """Items beyond which larger runs save no more."""
    gain: float
    """Share of an item's time that runs of so many save."""
    item_size: int
    """Elements of all inputs of one."""


class BatchTrial:
    """Forms of a model, opened one after another: memory holds one copy of the weights."""

    def __init__(
        self, trial: Trial, skeleton: onnx.ModelProto, rows: int, tolerates_mates: bool
    ) -> None:
        """
        Args:
            skeleton: the model, see copy_without_weights.
            rows: items in a request.
            tolerates_mates: whether answers may depend on the others of a batch.
        """
        self._trial = trial
        self._skeleton = skeleton
        self._rows = rows
        self._tolerates_mates = tolerates_mates
        self._requests: list[list[Any]] = []
        self._counts: Sequence[int] = _COUNTS
        self._alone: list[Any] = []
        """The first form's outputs of each request."""

    def try_batches(
        self, open_form: OpenForm, stream: Stream, is_thorough: bool
    ) -> tuple[Moved, Lengths]:
        """How far outputs of requests in batches are from those of each alone, and what is gained.

        Raises:
            Unfit: they cannot run together.
        """
        session = open_form(stream)
        _check_outputs(session)
        with self._trial.running(session, stream) as (infos, runs):
            self._make_requests(infos, runs)
            most = self._most_items(session)
            self._counts = [count for count in self._counts if count * self._rows <= most]
            moved = all_of([self._look(runs, self._counts), self._look_at_integers(infos, runs)])
            seconds, is_quiet = time_sizes(runs.run, self._inputs_of, self._rows, most, is_thorough)
            knee = knee_of(seconds, self._rows)
            largest = self._look(runs, [knee // self._rows])
        gain = gain_at(knee, seconds, self._rows)
        item_size = sum(array.size for array in self._requests[0]) // self._rows
        return all_of([moved, largest]), Lengths(seconds, is_quiet, knee, gain, item_size)

    def compare_alone(self, open_form: OpenForm, stream: Stream) -> tuple[Moved, float, bool]:
        """How far outputs of requests, each alone, in another form are from those of the first;
        CPU seconds of such a run, and whether others left it the CPU."""
        with self._trial.running(open_form(stream), stream) as (_, runs):
            outputs = [runs.run(request) for request in self._requests]
            seconds, is_quiet = shortest_run(runs.run, self._requests[0])
        return all_of(map(compare, outputs, self._alone)), seconds, is_quiet

    def compare_batches(self, open_form: OpenForm, stream: Stream, most: int) -> Moved:
        """As `try_batches`, on any stream, with batches of every size up to `most` items: which
        bits an item has depends on where a kernel cuts its batch."""
        with self._trial.running(open_form(stream), stream) as (_, runs):
            self._alone = [runs.run(request) for request in self._requests]
            return self._look(runs, range(2, most // self._rows + 1))

    def _make_requests(self, infos: Sequence[ValueInfo], runs: TimedRuns) -> None:
        rng = np.random.default_rng(0)
        why_not = "its inputs cannot be made up"
        for size in sizes_to_try(infos, self._skeleton):
            try:
                fixed = fix_sizes(infos, self._rows, size)
                found = [
                    [VARIANTS[number % len(VARIANTS)](rng, info) for info in fixed]
                    for number in range(_NUM_REQUESTS)
                ]
                first = runs.run(found[0])
            except (InferenceError, OptionError) as error:
                why_not = f"its inputs cannot be made up: {error}"
                continue
            began = perf_counter()
            again = runs.run(found[0])
            run_s = perf_counter() - began
            if run_s > _TOO_LONG_RUN_S:
                raise Unfit(f"a run takes {run_s:.1f} s")
            if not self._tolerates_mates and not compare(first, again).has_same_bits:
                raise Unfit("outputs vary from run to run")
            if run_s > _SLOW_RUN_S:
                found, self._counts = found[:2], _COUNTS[:1]
            self._requests = found
            self._alone = [first, *(runs.run(request) for request in found[1:])]
            return
        raise Unfit(why_not)

    def _look_at_integers(self, infos: Sequence[ValueInfo], runs: TimedRuns) -> Moved:
        """As `_look`, with integers as large as the model takes them: of 0 and 1 alone, the largest
        is the same in nearly all requests. Raises Unfit."""
        narrow, alone = self._requests, self._alone
        rng = np.random.default_rng(2)
        for position, info in enumerate(infos):
            for largest in _LARGEST_INTEGERS if info.dtype.kind in "iu" else ():
                wide = [request.copy() for request in self._requests]
                for request in wide:
                    values = rng.integers(0, largest, request[position].shape, endpoint=True)
                    request[position] = values.astype(info.dtype)
                with contextlib.suppress(InferenceError):
                    self._alone = [runs.run(request) for request in wide]
                    self._requests = wide
                    break
        try:
            return self._look(runs, () if self._requests is narrow else self._counts)
        finally:
            self._requests, self._alone = narrow, alone

    def _most_items(self, session: Session) -> int:
        """That there is memory for. Raises Unfit if it is one request."""
        taken = max((session.arena_bytes() or 0) - session.reserved_bytes, 0)
        left = memory_left(Path("/"))
        room = _MOST_BYTES if left is None else min(_MOST_BYTES, left // 4)
        most = MOST_ITEMS if not taken else min(MOST_ITEMS, room // taken * self._rows)
        if most < 2 * self._rows:
            raise Unfit(f"a request alone takes {taken / 1e6:.0f} MB of memory while it runs")
        return most

    def _look(self, runs: TimedRuns, counts: Sequence[int]) -> Moved:
        """Runs batches of so many requests, and compares each one's part. Raises Unfit."""
        moved = all_of(self._look_at(runs, count, None) for count in counts)
        if not moved.is_allowed:
            rng = np.random.default_rng(1)
            aside = [runs.run([nudged(rng, it) for it in request]) for request in self._requests]
            moved = all_of(self._look_at(runs, count, aside) for count in counts)
        if not moved.is_allowed and not self._tolerates_mates:
            raise Unfit("outputs depend on the requests that run with one")
        return moved

    def _look_at(self, runs: TimedRuns, count: int, aside: list[Any] | None) -> Moved:
        num_rows = count * self._rows
        try:
            outputs = runs.run(self._inputs_of(num_rows))
        except InferenceError as error:
            raise Unfit(f"a run of {counted(num_rows, 'item')} fails: {error}") from error
        for output in outputs:
            if not isinstance(output, np.ndarray) or output.shape[:1] != (num_rows,):
                raise Unfit("an output's first dimension is not the batch")
        parts = [
            [output[at : at + self._rows] for output in outputs]
            for at in range(0, num_rows, self._rows)
        ]
        which = [number % len(self._requests) for number in range(count)]
        return all_of(
            compare(self._alone[index], part, None if aside is None else aside[index])
            for index, part in zip(which, parts, strict=True)
        )

    def _inputs_of(self, num_rows: int) -> list[Any]:
        """A batch of so many items: the requests one after another, from the first again."""
        count = -(-num_rows // self._rows)
        chosen = [self._requests[number % len(self._requests)] for number in range(count)]
        joined = [np.concatenate(arrays) for arrays in zip(*chosen, strict=True)]
        return [np.ascontiguousarray(array[:num_rows]) for array in joined]


def _check_outputs(session: Session) -> None:
    """Raises Unfit where ONNX Runtime knows that one has no batch, or cannot tell."""
    for info in session.describe_outputs():
        if not info.shape or isinstance(info.shape[0], int):
            raise Unfit(f"output {info.name!r} is not known to have an open first dimension")
