"""Times requests one at a time: DeepSparse's Engine.benchmark and its results."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from deepsched.checks import check_integer
from deepsched.errors import OptionError
from deepsched.invocation.progress import tracked


@dataclass(frozen=True)
class BatchBenchmarkResult:
    """One request."""

    time_start: float
    """When it was submitted; seconds, by time.perf_counter."""
    time_end: float
    batch_size: int
    """Items in the request."""
    inputs: Any = None
    """Its inputs, if include_inputs was set."""
    outputs: Any = None
    """Its outputs, if include_outputs was set."""

    @property
    def time_elapsed(self) -> float:
        """Latency in seconds."""
        return self.time_end - self.time_start

    @property
    def batches_per_second(self) -> float:
        """Requests per second, one at a time."""
        return 1 / self.time_elapsed

    @property
    def items_per_second(self) -> float:
        """Items per second."""
        return self.batch_size / self.time_elapsed

    @property
    def ms_per_batch(self) -> float:
        """Latency in milliseconds."""
        return 1e3 * self.time_elapsed

    @property
    def ms_per_item(self) -> float:
        """Latency in milliseconds, divided by the items in the request."""
        return self.ms_per_batch / self.batch_size


class BenchmarkResults(Sequence[BatchBenchmarkResult]):
    """Results of requests that ran one at a time; a sequence of BatchBenchmarkResult.

    Example:
        >>> results = BenchmarkResults([BatchBenchmarkResult(0.0, 0.5, 4)])
        >>> results.items_per_second, results.ms_per_item
        (8.0, 125.0)
    """

    def __init__(self, results: Iterable[BatchBenchmarkResult]) -> None:
        self.results = list(results)
        """The results in order."""

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: Any) -> Any:
        return self.results[index]

    @property
    def num_batches(self) -> int:
        """Number of requests."""
        return len(self)

    @property
    def num_items(self) -> int:
        """Number of items in all requests."""
        return sum(self.batch_sizes)

    @property
    def batch_times(self) -> list[float]:
        """Latency of each request in seconds."""
        return [result.time_elapsed for result in self]

    @property
    def batch_sizes(self) -> list[int]:
        """Items in each request."""
        return [result.batch_size for result in self]

    @property
    def batch_times_mean(self) -> float:
        """Mean latency in seconds."""
        return statistics.fmean(self.batch_times)

    @property
    def batch_times_median(self) -> float:
        """Median latency in seconds."""
        return statistics.median(self.batch_times)

    @property
    def batch_times_std(self) -> float:
        """Standard deviation of the latency in seconds; of these requests (the population's)."""
        return statistics.pstdev(self.batch_times)

    @property
    def batches_per_second(self) -> float:
        """Requests per second."""
        return self.num_batches / sum(self.batch_times)

    @property
    def items_per_second(self) -> float:
        """Items per second."""
        return self.num_items / sum(self.batch_times)

    @property
    def ms_per_batch(self) -> float:
        """Mean latency in milliseconds."""
        return 1e3 * sum(self.batch_times) / self.num_batches

    @property
    def ms_per_item(self) -> float:
        """Mean milliseconds per item."""
        return 1e3 * sum(self.batch_times) / self.num_items

    @property
    def inputs(self) -> list[Any]:
        """Inputs of each request; None for each unless include_inputs was set."""
        return [result.inputs for result in self]

    @property
    def outputs(self) -> list[Any]:
        """Outputs of each request; None for each unless include_outputs was set."""
        return [result.outputs for result in self]

    def __repr__(self) -> str:
        return (
            f"<BenchmarkResults of {self.num_batches} batches: {self.items_per_second:.1f} "
            f"items/s, {self.ms_per_batch:.3f} ms a batch, median "
            f"{1e3 * self.batch_times_median:.3f}, std {1e3 * self.batch_times_std:.3f}>"
        )


def timed_requests(
    run: Callable[[Any], Any],
    loader: Iterable[Any],
    batch_size: int | None,
    num_iterations: int,
    num_warmup_iterations: int,
    include_inputs: bool,
    include_outputs: bool,
    show_progress: bool,
) -> BenchmarkResults:
    """See Engine.benchmark_loader. `batch_size`: items per request; None counts its first input."""
    num_iterations, num_warmup_iterations = check_iterations(num_iterations, num_warmup_iterations)
    inputs = _cycle(loader)
    for each in islice(inputs, num_warmup_iterations):
        run(each)
    measured: Iterable[Any] = islice(inputs, num_iterations)
    if show_progress:
        measured = tracked(measured, "iterations", num_iterations)
    results = []
    for each in measured:
        begin = time.perf_counter()
        outputs = run(each)
        end = time.perf_counter()
        results.append(
            BatchBenchmarkResult(
                begin,
                end,
                batch_size or _num_items(each),
                each if include_inputs else None,
                outputs if include_outputs else None,
            )
        )
    return BenchmarkResults(results)


def check_iterations(num_iterations: int, num_warmup_iterations: int) -> tuple[int, int]:
    """Returns both as plain ints.

    Raises:
        OptionError: no integers, or too small.
    """
    return (
        check_integer("num_iterations", num_iterations, 1),
        check_integer("num_warmup_iterations", num_warmup_iterations, 0),
    )


def _num_items(inputs: Any) -> int:
    """First dimension of the first input; 1 if it has none."""
    first = next(iter(inputs.values() if isinstance(inputs, Mapping) else inputs), None)
    shape = getattr(first, "shape", ())
    return int(shape[0]) if shape else 1


def _cycle(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's inputs, iterated again when it is exhausted.

    Not itertools.cycle: that would keep every input.

    Raises:
        OptionError: it has no inputs, or is an iterator and has none left.
    """
    while True:
        is_empty = True
        for inputs in loader:
            is_empty = False
            yield inputs
        if is_empty:
            raise OptionError(
                "the loader ran out of inputs before all iterations were done; give a list, which "
                "can be iterated again, or fewer num_iterations"
            )
