"""The result of an analysis: each operator, each type of operator, and the whole model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deepsched.analysis.reading import Shape
from deepsched.lazy import cached_property
from deepsched.models.rewrites.tried import Tried
from deepsched.scheduling.scaling import useful_cores

_MATTERS = 0.03
_LAGS = 2.0


@dataclass(frozen=True)
class Timings:
    """Time and work of an operator, or of all operators of one type, by number of cores."""

    ms: Mapping[int, float]
    """By cores: ms per request, mean of the faster half of the runs, without the profiler's
    overhead (`timing_ms`)."""
    timing_ms: Mapping[int, float]
    """By cores: the profiler's overhead on its calls in ms, measured with near-empty operators."""
    operations: int | None
    """Additions and multiplications per request; None if unknown."""
    bytes_moved: int | None
    """Minimum memory traffic per request: inputs, weights and outputs, each once; None if
    unknown."""

    @property
    def most_cores(self) -> int:
        """Number of cores of the widest core group that was measured."""
        return max(self.ms)

    @property
    def is_told(self) -> bool:
        """Whether its time exceeds the profiler's overhead: below that it is not measurable."""
        return all(self.ms[cores] > self.timing_ms[cores] for cores in self.ms)

    @property
    def useful_cores(self) -> int | None:
        """Number of cores up to which it gets faster; None unless `is_told`."""
        return useful_cores(self.ms) if self.is_told else None

    @property
    def speedup(self) -> float | None:
        """Speed-up of the widest core group over the narrowest; None unless `is_told`."""
        return self.ms[min(self.ms)] / self.ms[self.most_cores] if self.is_told else None

    def gflops(self, cores: int) -> float | None:
        """Operations per second in 1e9, on this many cores; None if unknown, and unless
        `is_told`."""
        return self._rate(self.operations, cores)

    def gigabytes_per_second(self, cores: int) -> float | None:
        """`bytes_moved` per second in 1e9, on this many cores; None if unknown, and unless
        `is_told`."""
        return self._rate(self.bytes_moved, cores)

    def least_ms(self, gflops: float, gigabytes_per_second: float) -> float:
        """What its work takes at these rates, whichever is the longer; 0 if none is known."""
        times = (
            (self.operations, gflops),
            (self.bytes_moved, gigabytes_per_second),
        )
        return max((count / rate / 1e6 for count, rate in times if count and rate), default=0.0)

    def _rate(self, count: int | None, cores: int) -> float | None:
        return None if count is None or not self.is_told else count / self.ms[cores] / 1e6

    def _figures(self) -> dict[str, Any]:
        return {
            "ms": dict(self.ms),
            "timing_ms": dict(self.timing_ms),
            "is_told": self.is_told,
            "speedup": self.speedup,
            "useful_cores": self.useful_cores,
            "operations": self.operations,
            "gflops": {cores: self.gflops(cores) for cores in self.ms},
            "bytes_moved": self.bytes_moved,
            "gigabytes_per_second": {cores: self.gigabytes_per_second(cores) for cores in self.ms},
        }


@dataclass(frozen=True)
class Operator(Timings):
    """An operator that ONNX Runtime runs: of the optimised graph, in which some are fused."""

    name: str
    """Its node's name; in a subgraph, preceded by the names of the enclosing operators."""
    op_type: str
    dtype: str
    """ONNX Runtime's name of the type of its first input: "float", "uint8"."""
    input_shapes: tuple[Shape | None, ...]
    """Shapes of the inputs of one call, constants included; None if unknown."""
    output_shapes: tuple[Shape, ...]
    weight_shape: Shape | None
    """Shape of its first constant of two or more dimensions; None if there is none or unknown."""
    calls: float
    """Calls per request; other than 1 in loops and branches only."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "name": self.name,
            "op_type": self.op_type,
            "dtype": self.dtype,
            "input_shapes": self.input_shapes,
            "output_shapes": self.output_shapes,
            "weight_shape": self.weight_shape,
            "calls": self.calls,
            **self._figures(),
        }


@dataclass(frozen=True)
class OperatorType(Timings):
    """The sum over all operators of one type."""

    op_type: str
    count: int
    """Number of operators of this type."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"op_type": self.op_type, "count": self.count, **self._figures()}


@dataclass(frozen=True)
class Analysis:
    """Where the time of a lone request goes, on core groups of several widths.

    Operators are timed in separate runs under the profiler (`run_ms`), which are slower. Its
    overhead per call is measured and subtracted, so that shares refer to a plain request
    (`plain_ms`). With many small operators they are estimates: see `Timings.is_told`.
    """

    batch_size: int | None
    operators: tuple[Operator, ...]
    """In order of execution."""
    run_ms: Mapping[int, float]
    """By cores: ms of a run under the profiler, mean of the faster half."""
    plain_ms: Mapping[int, float]
    """By cores: latency of a request without the profiler in ms, mean of the faster half."""
    others_share: float | None = None
    """CPU contention: the share of the worst CPU's time that other processes used during the
    measurement, between 0 and 1; None if unknown. From 0.1 on the figures are unreliable."""
    steal_share: float | None = None
    """The part of it that the hypervisor stole; None if this machine counts none."""
    state: str | None = None
    """The state of the machine that all figures are of: the round trip of a cache line between
    neighbouring cores; near or far, if there were two. None: in no state was every number of cores
    measured, so the figures mix states."""
    rewrites: tuple[Tried, ...] = ()
    """The rules that fit the model, as in `Engine.compiled`."""

    @property
    def most_cores(self) -> int:
        """Number of cores of the widest core group that was measured."""
        return max(self.run_ms)

    @cached_property
    def types(self) -> tuple[OperatorType, ...]:
        """Sums by type, the slowest on the widest core group first."""
        by_type: dict[str, list[Operator]] = {}
        for operator in self.operators:
            by_type.setdefault(operator.op_type, []).append(operator)
        types = [_sum_of_type(op_type, alike) for op_type, alike in by_type.items()]
        return tuple(sorted(types, key=lambda it: -it.ms[self.most_cores]))

    @property
    def slowest(self) -> list[Operator]:
        """The operators, the slowest on the widest core group first."""
        return sorted(self.operators, key=lambda it: -it.ms[self.most_cores])

    def share(self, timed: Timings, cores: int | None = None) -> float:
        """Its share of a request's time on this many cores (None: `most_cores`), from 0 to 1."""
        cores = self.most_cores if cores is None else cores
        # Estimated times may add up to more than the request took.
        return timed.ms[cores] / max(self.plain_ms[cores], self._sum_ms(cores))

    def _sum_ms(self, cores: int) -> float:
        return sum(it.ms[cores] for it in self.operators)

    @property
    def between_ms(self) -> dict[int, float]:
        """By cores: ms of a request outside of operators, in ONNX Runtime and in deepsched."""
        return {cores: max(0.0, ms - self._sum_ms(cores)) for cores, ms in self.plain_ms.items()}

    @property
    def slowdown(self) -> float:
        """Run time under the profiler over that without, on the most cores."""
        return self.run_ms[self.most_cores] / self.plain_ms[self.most_cores]

    @property
    def stuck(self) -> list[OperatorType]:
        """Types that stop scaling below `most_cores`, the slowest first."""
        return [it for it in self.types if (it.useful_cores or self.most_cores) < self.most_cores]

    @property
    def lagging(self) -> list[OperatorType]:
        """Types that no rewrite helped and that take more than their share, the slowest first: at
        least 3 % of a request, and twice as long as their work would take at the best rates of
        arithmetic and of memory that were seen in this model."""
        most = self.most_cores
        gflops = max((it.gflops(most) or 0.0 for it in self.types), default=0.0)
        bandwidth = max((it.gigabytes_per_second(most) or 0.0 for it in self.types), default=0.0)
        return [
            it
            for it in self.types
            if self.share(it) >= _MATTERS and it.is_told
            if it.ms[most] > _LAGS * it.least_ms(gflops, bandwidth) > 0
        ]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; times in ms, by cores."""
        return {
            "batch_size": self.batch_size,
            "plain_ms": dict(self.plain_ms),
            "run_ms": dict(self.run_ms),
            "slowdown": self.slowdown,
            "state": self.state,
            "others_share": self.others_share,
            "steal_share": self.steal_share,
            "between_ms": self.between_ms,
            "types": [{**it.to_dict(), "share": self.share(it)} for it in self.types],
            "rewrites": [it._asdict() for it in self.rewrites],
            "lagging": [it.op_type for it in self.lagging],
            "operators": [{**it.to_dict(), "share": self.share(it)} for it in self.operators],
        }


def _sum_of_type(op_type: str, alike: list[Operator]) -> OperatorType:
    return OperatorType(
        ms={cores: sum(it.ms[cores] for it in alike) for cores in alike[0].ms},
        timing_ms={cores: sum(it.timing_ms[cores] for it in alike) for cores in alike[0].ms},
        operations=_sum(it.operations for it in alike),
        bytes_moved=_sum(it.bytes_moved for it in alike),
        op_type=op_type,
        count=len(alike),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    """The sum; None if a count is unknown."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total
