"""Stats of engines and contexts, and the counts behind them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deepsched.machine.sysfs import format_cpu_list
from deepsched.runtime.histogram import RELATIVE_WIDTH, bucket_bounds

if TYPE_CHECKING:
    from deepsched.runtime.model import GroupCounts, Snapshot

__all__ = ["RELATIVE_WIDTH", "Latency", "Stats", "StreamStats"]


@dataclass(frozen=True)
class Latency:
    """Distribution of a duration over all requests since the engine or the context was
    created.

    In seconds. Percentiles are accurate to 2 %: they come from a histogram with buckets 3 % wide.
    """

    count: int
    """Number of requests."""
    mean: float
    """s"""
    p50: float
    """s; half of them took no longer."""
    p90: float
    """s"""
    p99: float
    """s"""
    p999: float
    """s; 999 of 1000 took no longer."""
    max: float
    """s"""

    def __str__(self) -> str:
        """In milliseconds.

        >>> print(Latency(3, 0.002, 0.0015, 0.003, 0.003, 0.003, 0.003))
        p50 1.500, p99 3.000, mean 2.000 ms of 3 requests
        """
        return (
            f"p50 {self.p50 * 1e3:.3f}, p99 {self.p99 * 1e3:.3f}, mean {self.mean * 1e3:.3f} ms of "
            f"{self.count} requests"
        )


@dataclass(frozen=True)
class StreamStats:
    """Work of one stream. A run that took several streams counts for the first of them."""

    index: int
    """As in `Engine.streams`."""
    done: int
    """Answered."""
    failed: int
    """Ended by a kernel's error."""
    expired: int
    """Stopped by their timeout while they ran."""
    cancelled: int
    """Cancelled while they ran."""
    inline: int
    """Ran on the thread that called."""
    by_worker: int
    """Ran on the stream's worker."""
    busy_fraction: float
    """Share of the time since the start in which it ran requests, alone or merged with others."""
    waiting: Latency
    """From the call until the run began."""
    running: Latency
    """Inside ONNX Runtime."""


@dataclass(frozen=True)
class Stats:
    """Outcomes and latencies of the requests of an engine, or of all engines of a context.

    Every accepted request ends as exactly one of done, failed, expired and cancelled (closed before
    it ran counts as cancelled). `rejected` ones were never accepted.
    """

    done: int
    """Answered."""
    failed: int
    """Ended by a kernel's error."""
    expired: int
    """Ended by their timeout, in the queue or while they ran."""
    cancelled: int
    """Withdrawn from the queue, or stopped while running."""
    rejected: int
    """Calls that raised QueueFull."""
    queue_depth: int
    """Requests in the context's queue right now."""
    queue_depth_max: int
    """Highest depth of the context's queue so far."""
    queue_capacity: int
    """Bound of the queue."""
    inline: int
    """Ran on the thread that called."""
    by_worker: int
    """Ran on a stream's worker."""
    busy_fraction: float
    """Mean over the streams."""
    by_width: dict[int, int]
    """Number of runs by the number of streams taken: more than one only with the elastic
    scheduler."""
    by_batch: dict[int, int]
    """Number of runs by the number of requests that each served: more than one where requests that
    waited ran together."""
    seconds: float
    """Since the engine or the context was created."""
    waiting: Latency
    """From the call until the run began."""
    running: Latency
    """Inside ONNX Runtime."""
    streams: tuple[StreamStats, ...]
    """By stream. After `Context.resize` those that there are; the figures above have all."""
    lost_cpus: tuple[int, ...] = ()
    """OS numbers of the context's CPUs that this process was found not to be allowed on any more:
    its cpuset or its affinity has changed. Looked at while requests run, ten times a second."""

    @property
    def mean_batch(self) -> float:
        """Mean number of requests that a run served; 0.0 before the first."""
        runs = sum(self.by_batch.values())
        return sum(size * count for size, count in self.by_batch.items()) / runs if runs else 0.0

    def __str__(self) -> str:
        """Outcomes, queue, latencies and streams in a few lines."""
        ends = ", ".join(
            f"{count} {name}"
            for name in ("done", "failed", "expired", "cancelled", "rejected")
            if (count := getattr(self, name)) or name == "done"
        )
        streams = ", ".join(
            f"{stream.index}: {stream.done} done, busy {stream.busy_fraction:.0%}"
            for stream in self.streams
        )
        return "\n".join(
            [
                f"{ends} in {self.seconds:.1f} s",
                f"queue: {self.queue_depth} now, {self.queue_depth_max} at most, room for "
                f"{self.queue_capacity}",
                f"waiting: {self.waiting}",
                f"running: {self.running}",
                *(
                    [f"batches: {self.mean_batch:.3g} requests a run, {max(self.by_batch)} at most"]
                    if max(self.by_batch, default=1) > 1
                    else []
                ),
                f"streams: {streams}",
                *([f"lost CPUs: {format_cpu_list(self.lost_cpus)}"] if self.lost_cpus else []),
            ]
        )


class Counts:
    """Counts of one or several models, by stream; and one more sum, of the streams that there were
    before, where the context has moved."""

    def __init__(self, num_streams: int, ranges: Sequence[tuple[int, int]] | None = None) -> None:
        """`ranges`: the streams of each core group; None: each group is one stream."""
        self._ranges = ranges or [(index, index + 1) for index in range(num_streams)]
        self._num_streams = num_streams
        num_streams += 1
        self._by_width: Counter[int] = Counter()
        self._by_batch: Counter[int] = Counter()
        self._busy_ns = np.zeros(num_streams, np.int64)
        self._numbers = np.zeros((num_streams, 5), np.int64)
        num_buckets = len(_bounds())
        self._buckets = np.zeros((num_streams, 2, num_buckets), np.uint64)
        self._totals_ns = np.zeros((num_streams, 2), np.int64)
        self._longest_ns = np.zeros((num_streams, 2), np.int64)
        self._unrun = np.zeros(3, np.int64)

    def add(self, counts: tuple[list[GroupCounts], tuple[int, int, int]]) -> None:
        """Adds what a model has counted."""
        groups, unrun = counts
        for (stream, end), (*numbers, waiting, running, busy_ns, batches) in zip(
            self._ranges, groups, strict=True
        ):
            self._numbers[stream] += numbers
            self._busy_ns[stream:end] += busy_ns
            by_batch = Counter({size: count for size, count in enumerate(batches) if count})
            together = sum(size * count for size, count in by_batch.items())
            # Read one after another while requests end: each may be newer than the one before.
            by_batch[1] = max(0, sum(numbers[:4]) - together)
            self._by_batch += by_batch
            self._by_width += Counter({end - stream: by_batch.total()})
            for which, snapshot in enumerate((waiting, running)):
                self._add_snapshot(stream, which, snapshot)
        self._unrun += unrun

    def _add_snapshot(self, stream: int, which: int, snapshot: Snapshot) -> None:
        buckets, total_ns, longest_ns = snapshot
        self._buckets[stream, which] += np.frombuffer(buckets, np.uint64)
        self._totals_ns[stream, which] += total_ns
        self._longest_ns[stream, which] = max(self._longest_ns[stream, which], longest_ns)

    def add_all(self, other: Counts) -> None:
        """Adds what `other` holds: by stream if its streams are like these, else as a sum."""
        self._by_width += other._by_width
        self._by_batch += other._by_batch
        if self._ranges == other._ranges:
            self._busy_ns += other._busy_ns
            self._numbers += other._numbers
            self._buckets += other._buckets
            self._totals_ns += other._totals_ns
            np.maximum(self._longest_ns, other._longest_ns, out=self._longest_ns)
        else:
            self._busy_ns[-1] += other._busy_ns.sum()
            self._numbers[-1] += other._numbers.sum(axis=0)
            self._buckets[-1] += other._buckets.sum(axis=0)
            self._totals_ns[-1] += other._totals_ns.sum(axis=0)
            longest_ns = other._longest_ns.max(axis=0)
            np.maximum(self._longest_ns[-1], longest_ns, out=self._longest_ns[-1])
        self._unrun += other._unrun

    def flat(self) -> Counts:
        """The same counts as if of one stream."""
        counts = Counts(1)
        counts._busy_ns[0] = self._busy_ns.sum()
        counts._by_width += self._by_width
        counts._by_batch += self._by_batch
        counts._numbers[0] = self._numbers.sum(axis=0)
        counts._buckets[0] = self._buckets.sum(axis=0)
        counts._totals_ns[0] = self._totals_ns.sum(axis=0)
        counts._longest_ns[0] = self._longest_ns.max(axis=0)
        counts._unrun += self._unrun
        return counts

    def outcomes(self) -> dict[str, int]:
        """Number of requests by how they ended: done, failed, expired, cancelled, rejected."""
        done, failed, expired, cancelled, _ = self._numbers.sum(axis=0).tolist()
        unrun_expired, unrun_cancelled, rejected = self._unrun.tolist()
        return {
            "done": done,
            "failed": failed,
            "expired": expired + unrun_expired,
            "cancelled": cancelled + unrun_cancelled,
            "rejected": rejected,
        }

    def batches(self) -> dict[int, int]:
        """Number of runs by the number of requests that ran together."""
        return dict(self._by_batch)

    def busy_seconds(self) -> list[float]:
        """Time in which each stream ran requests."""
        return [ns / 1e9 for ns in self._busy_ns[: self._num_streams].tolist()]

    def cumulative(self, which: str, bounds_s: Sequence[float]) -> tuple[Any, float]:
        """A histogram with other bounds: the number of requests up to each, then of all; and their
        total time in s. A native bucket counts where its middle is.

        Args:
            which: "waiting" or "running".
            bounds_s: upper bounds in seconds, ascending.
        """
        index = ("waiting", "running").index(which)
        buckets = self._buckets[:, index].sum(axis=0).astype(np.int64)
        ranks = np.concatenate([[0], np.cumsum(buckets)])
        middles_ns = (_bounds().sum(axis=1) - 1) / 2
        # Rounded: 1e-05 * 1e9 is not quite 10,000.
        bounds_ns = np.round(np.asarray(bounds_s) * 1e9, 3)
        below = ranks[np.searchsorted(middles_ns, bounds_ns, side="right")]
        return np.append(below, ranks[-1]), float(self._totals_ns[:, index].sum()) / 1e9

    def since(self, earlier: Counts) -> Counts:
        """What was counted after `earlier`, which holds the same models' counts."""
        counts = Counts(self._num_streams, self._ranges)
        if self._ranges != earlier._ranges:
            same = Counts(self._num_streams, self._ranges)
            same.add_all(earlier)
            earlier = same
        counts._busy_ns = self._busy_ns - earlier._busy_ns
        counts._by_width = self._by_width - earlier._by_width
        counts._by_batch = self._by_batch - earlier._by_batch
        counts._numbers = self._numbers - earlier._numbers
        counts._buckets = self._buckets - earlier._buckets
        counts._totals_ns = self._totals_ns - earlier._totals_ns
        counts._unrun = self._unrun - earlier._unrun
        # The longest may have been before: exact to its bucket.
        highest = np.where(counts._buckets > 0, _bounds()[:, 1] - 1, 0).max(axis=-1)
        counts._longest_ns = np.minimum(highest, self._longest_ns).astype(np.int64)
        return counts

    def summary(
        self, seconds: float, queue_depth: int, queue_depth_max: int, queue_capacity: int
    ) -> Stats:
        """Stats of what was counted, after `seconds`."""
        streams = tuple(self._stream(index, seconds) for index in range(self._num_streams))
        every = range(len(self._numbers))
        outcomes = self.outcomes()
        return Stats(
            done=outcomes["done"],
            failed=outcomes["failed"],
            expired=outcomes["expired"],
            cancelled=outcomes["cancelled"],
            rejected=outcomes["rejected"],
            queue_depth=queue_depth,
            queue_depth_max=queue_depth_max,
            queue_capacity=queue_capacity,
            inline=int(self._numbers[:, 4].sum()),
            by_worker=max(0, int(self._numbers[:, :4].sum() - self._numbers[:, 4].sum())),
            busy_fraction=float(np.mean([stream.busy_fraction for stream in streams])),
            by_width=dict(sorted(self._by_width.items())),
            by_batch=dict(sorted(self._by_batch.items())),
            seconds=seconds,
            waiting=self._latency(every, 0),
            running=self._latency(every, 1),
            streams=streams,
        )

    def _stream(self, index: int, seconds: float) -> StreamStats:
        done, failed, expired, cancelled, inline = (int(n) for n in self._numbers[index])
        busy_s = self._busy_ns[index] / 1e9
        return StreamStats(
            index=index,
            done=done,
            failed=failed,
            expired=expired,
            cancelled=cancelled,
            inline=inline,
            by_worker=max(0, done + failed + expired + cancelled - inline),
            busy_fraction=float(min(1.0, busy_s / seconds)) if seconds > 0 else 0.0,
            waiting=self._latency([index], 0),
            running=self._latency([index], 1),
        )

    def _latency(self, streams: Iterable[int], which: int) -> Latency:
        chosen = list(streams)
        buckets = self._buckets[chosen, which].sum(axis=0)
        longest_ns = int(self._longest_ns[chosen, which].max())
        count = int(buckets.sum())
        if not count:
            return Latency(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        mean = float(self._totals_ns[chosen, which].sum()) / count / 1e9
        p50, p90, p99, p999 = (
            min(ns, longest_ns) / 1e9 for ns in _quantiles_ns(buckets, (0.5, 0.9, 0.99, 0.999))
        )
        return Latency(count, mean, p50, p90, p99, p999, longest_ns / 1e9)


@functools.cache
def _bounds() -> Any:
    return np.array(bucket_bounds(), np.float64)


def _quantiles_ns(buckets: Any, quantiles: Sequence[float]) -> list[float]:
    """The middle of the bucket that holds the quantile."""
    ranks = np.cumsum(buckets)
    wanted = [max(1, int(np.ceil(q * float(ranks[-1])))) for q in quantiles]
    found = np.searchsorted(ranks, np.array(wanted, ranks.dtype))
    # The largest value that the bucket counts, as integers: 1 ns buckets are exact.
    return [float((low + high - 1) / 2) for low, high in _bounds()[found]]
