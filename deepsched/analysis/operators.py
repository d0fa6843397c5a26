"""What an analysis returns: each operator, each type of operator, and the model as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deepsched.scheduling.scaling import useful_cores

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Timed:
    """What takes time, by the number of cores that it may use."""

    ms: Mapping[int, float]
    """By cores: milliseconds of a request, in the mean of the faster half of the runs, without what
    it takes to time it (`timing_ms`)."""
    timing_ms: Mapping[int, float]
    """By cores: what timing its calls added, as measured with operators that do next to nothing."""
    operations: int | None
    """Additions and multiplications in a request; None where they are not known."""
    bytes_moved: int | None
    """Inputs, weights and outputs of a request, each once: the least that it reads and writes. None
    where they are not known."""

    @property
    def most_cores(self) -> int:
        """The widest core group that was looked at."""
        return max(self.ms)

    @property
    def is_told(self) -> bool:
        """Whether its calls are long enough to be told from the timing of them."""
        return all(self.ms[cores] > self.timing_ms[cores] for cores in self.ms)

    @property
    def useful_cores(self) -> int | None:
        """As many cores as still make it faster; None unless `is_told`."""
        return useful_cores(self.ms) if self.is_told else None

    @property
    def speedup(self) -> float | None:
        """Of the widest core group over the narrowest; None unless `is_told`."""
        return self.ms[min(self.ms)] / self.ms[self.most_cores] if self.is_told else None

    def gflops(self, cores: int) -> float | None:
        """Operations a second, in 1e9, on so many cores; None where they are not known, and unless
        `is_told`."""
        return self._rate(self.operations, cores)

    def gigabytes_per_second(self, cores: int) -> float | None:
        """`bytes_moved` a second, in 1e9, on so many cores; None where they are not known, and
        unless `is_told`."""
        return self._rate(self.bytes_moved, cores)

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
class Operator(Timed):
    """One operator of the model, as ONNX Runtime runs it: after it has fused and replaced some."""

    name: str
    """Its node's name; within a subgraph after the names of the operators around it."""
    op_type: str
    dtype: str
    """Of its first input, as ONNX Runtime writes it: "float", "uint8"."""
    input_shapes: tuple[Shape | None, ...]
    """Of each, constants too; None where it is not known. Of one call."""
    output_shapes: tuple[Shape, ...]
    weight_shape: Shape | None
    """Of its first constant of two dimensions or more; None if it has none, or that is unknown."""
    calls: float
    """How often it runs in a request; not 1 only in loops and branches."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
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
class OperatorType(Timed):
    """All operators of one type together."""

    op_type: str
    count: int
    """How many there are."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"op_type": self.op_type, "count": self.count, **self._figures()}


@dataclass(frozen=True)
class Analysis:
    """Where the time of a lone request goes, on core groups of several widths.

    Operators are timed in runs of their own (`run_ms`), which takes longer. What that adds to each
    call is measured and taken off, so that shares are of the request itself (`plain_ms`). Where
    there are many small operators they are estimates: see `Timed.is_told`.
    """

    batch_size: int | None
    operators: tuple[Operator, ...]
    """In the order in which they run."""
    run_ms: Mapping[int, float]
    """By cores: a run while each operator is timed; in the mean of the faster half."""
    plain_ms: Mapping[int, float]
    """By cores: a request without that, from the call to the answer; in the mean of the faster
    half."""
    others_share: float | None = None
    """What other processes took of the CPUs meanwhile, between 0 and 1; None: unknown. From a tenth
    on the figures are unsure."""

    @property
    def most_cores(self) -> int:
        """The widest core group that was looked at."""
        return max(self.run_ms)

    @cached_property
    def types(self) -> tuple[OperatorType, ...]:
        """By type, what takes longest on the widest core group first."""
        by_type: dict[str, list[Operator]] = {}
        for operator in self.operators:
            by_type.setdefault(operator.op_type, []).append(operator)
        types = [_join(op_type, alike) for op_type, alike in by_type.items()]
        return tuple(sorted(types, key=lambda it: -it.ms[self.most_cores]))

    @property
    def slowest(self) -> list[Operator]:
        """What takes longest on the widest core group first."""
        return sorted(self.operators, key=lambda it: -it.ms[self.most_cores])

    def share(self, timed: Timed, cores: int | None = None) -> float:
        """What of the request goes into it, on so many cores (the most): between 0 and 1."""
        cores = self.most_cores if cores is None else cores
        return timed.ms[cores] / max(self.plain_ms[cores], self._sum_ms(cores))

    def _sum_ms(self, cores: int) -> float:
        return sum(it.ms[cores] for it in self.operators)

    @property
    def between_ms(self) -> dict[int, float]:
        """By cores: what of the request is in no operator: ONNX Runtime's own work, and ours."""
        return {cores: max(0.0, ms - self._sum_ms(cores)) for cores, ms in self.plain_ms.items()}

    @property
    def slowdown(self) -> float:
        """How many times as long a run takes while its operators are timed, on the most cores."""
        return self.run_ms[self.most_cores] / self.plain_ms[self.most_cores]

    @property
    def stuck(self) -> list[OperatorType]:
        """The types that fewer cores than the most serve as well, what takes longest first."""
        return [it for it in self.types if (it.useful_cores or self.most_cores) < self.most_cores]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; lengths in ms, by cores."""
        return {
            "batch_size": self.batch_size,
            "plain_ms": dict(self.plain_ms),
            "run_ms": dict(self.run_ms),
            "slowdown": self.slowdown,
            "others_share": self.others_share,
            "between_ms": self.between_ms,
            "types": [{**it.to_dict(), "share": self.share(it)} for it in self.types],
            "operators": [{**it.to_dict(), "share": self.share(it)} for it in self.operators],
        }


def _join(op_type: str, alike: list[Operator]) -> OperatorType:
    return OperatorType(
        ms={cores: sum(it.ms[cores] for it in alike) for cores in alike[0].ms},
        timing_ms={cores: sum(it.timing_ms[cores] for it in alike) for cores in alike[0].ms},
        operations=_sum(it.operations for it in alike),
        bytes_moved=_sum(it.bytes_moved for it in alike),
        op_type=op_type,
        count=len(alike),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    """None if one of them is."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total
