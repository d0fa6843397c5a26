"""The recommendation of `advise`, and the figures behind it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from deepsched.models.batch import AUTO, BatchSize
from deepsched.models.batching.option import BatchingOption
from deepsched.models.prepare import Shapes


@dataclass(frozen=True)
class Setting:
    """Arguments for `compile_model`; None stands for its default.

    `deepsched.benchmark.Setting` is what an opened engine runs with, defaults resolved.
    """

    scheduler: str
    num_streams: int | None
    num_cores: int | None

    def __str__(self) -> str:
        parts = [f'scheduler="{self.scheduler}"']
        if self.num_streams is not None:
            parts.append(f"num_streams={self.num_streams}")
        if self.num_cores is not None:
            parts.append(f"num_cores={self.num_cores}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Figures:
    """Performance of a setting under the load."""

    setting: Setting
    num_streams: int
    """Number of streams on this machine; elastic merges them when the load allows."""
    items_per_sec: float
    """Throughput: requests per second times batch size."""
    mean_ms: float
    """Mean latency of answered requests; at a rate, from the request's arrival."""
    p50_ms: float
    """Median latency. Dropped requests count as infinitely late, here and in p99_ms."""
    p99_ms: float
    """99th percentile over the requests of all rounds."""
    answered: float
    """Share of the requests that were answered, not dropped; below 1.0 if the rate is too high."""
    keeps_up: bool
    """Whether throughput keeps up with the arrival rate; see `Measurement.keeps_up`."""
    num_requests: int
    """How many requests the figures are of: the answered and the dropped ones."""
    margin: float
    """Uncertainty of the figure that settings are compared by (throughput; for one caller p50_ms,
    at a rate mean_ms), relative to it: two standard errors between rounds, and at least
    1 / num_requests."""


@dataclass(frozen=True)
class BatchFigures:
    """Performance of the recommended setting with another batch size."""

    batch_size: int
    items_per_sec: float
    p50_ms: float
    """Median latency of a request with the whole batch, in ms."""
    num_requests: int
    """How many requests the figures are of."""


@dataclass(frozen=True)
class StateAnswer:
    """The setting that is best while the machine is in one state."""

    state: str
    """The round trip of a cache line between neighbouring cores; near or far, if there were two."""
    setting: Setting
    num_measurements: int


@dataclass(frozen=True)
class Replicas:
    """Processes that together serve the rate within the p99 limit, as simulated from how long runs
    take here; see docs/scaling.md."""

    balancer: str
    """Who chooses one for a request: Ray Serve (the better of two at random), or a Service of
    Kubernetes (at random)."""
    num_replicas: int
    num_cores: int
    """Of each."""
    num_streams: int
    """Of each."""
    p99_ms: float
    """Of all requests, predicted."""
    load: float
    """Share of what all streams can serve, 0 to 1."""

    @property
    def setting(self) -> Setting:
        """Of each: elastic where streams have a core each, since it merges them at low load."""
        if self.num_streams == self.num_cores:
            return Setting("elastic", None, self.num_cores)
        if self.num_streams == 1:
            return Setting("single_stream", None, self.num_cores)
        return Setting("multi_stream", self.num_streams, self.num_cores)

    def kubernetes_lines(self) -> str:
        """What of deploy/deployment.yaml is another.

        >>> print(Replicas("Kubernetes", 3, 4, 2, 30.0, 0.7).kubernetes_lines())
        spec:
          replicas: 3
          template:
            spec:
              containers:
                - name: deepsched
                  args: [/models, --scheduler, multi_stream, --num-streams, "2"]
                  resources:
                    requests: {cpu: "4"}
                    limits: {cpu: "4"}
        """
        setting = self.setting
        args = ["/models", "--scheduler", setting.scheduler]
        if setting.num_streams is not None:
            args += ["--num-streams", f'"{setting.num_streams}"']
        return f"""\
spec:
  replicas: {self.num_replicas}
  template:
    spec:
      containers:
        - name: deepsched
          args: [{", ".join(args)}]
          resources:
            requests: {{cpu: "{self.num_cores}"}}
            limits: {{cpu: "{self.num_cores}"}}"""


@dataclass(frozen=True)
class Advice:
    """The setting that `advise` recommends, and why."""

    setting: Setting
    batch_size: BatchSize
    """As given to `advise`."""
    input_shapes: Shapes | None
    """As given to `advise`."""
    reason: str
    cost_of_ignoring: str
    """Performance of the default, single_stream on all cores, in comparison."""
    figures: tuple[Figures, ...]
    """Performance of each measured setting, the best first."""
    batches: tuple[BatchFigures, ...]
    """By batch size, for a load that keeps all cores busy; else empty."""
    scaling_ms: dict[int, float]
    """By cores: median latency of a lone request, in ms."""
    load: str
    seconds: float
    """How long the measurements took."""
    others_share: float | None = None
    """CPU contention: the share of the worst CPU's time that other processes used, between 0 and 1:
    of the setting that it hit worst, the median of its rounds, or while `scaling_ms` or `batches`
    were measured, if it was more. None if unknown. From 0.1 on the answer is unreliable, and not
    remembered."""
    steal_share: float | None = None
    """The same of what the hypervisor stole, which `others_share` includes; None if this machine
    counts none."""
    custom_ops: tuple[str, ...] = ()
    """Paths of the libraries that were given to `advise`."""
    rewrites: str = "fast"
    """As given to `advise`."""
    batching: BatchingOption = "auto"
    """As given to `advise`."""
    was_remembered: bool = False
    enough_seconds: float | None = None
    """If there were too few requests to tell settings apart: seconds for `advise` that suffice.
    `setting` is then the default, and not remembered. Else None."""
    states: tuple[StateAnswer, ...] = ()
    """By state of the machine in which every setting was measured, the commonest first: its answer.
    The first is that of `setting` and `figures`. If answers differ, none is remembered."""
    num_incomparable: int = 0
    """Measurements in none of `states`. Without any state, `figures` are of all of these."""
    replicas: tuple[Replicas, ...] = ()
    """For a rate with a p99 limit, by balancer: the fewest cores that serve it, on one machine like
    this or several. None where no number of them does."""

    @property
    def differs_by_state(self) -> bool:
        """Whether another setting is best in another state of the machine.

        >>> wide, narrow = Setting("single_stream", None, None), Setting("multi_stream", 2, None)
        >>> states = StateAnswer("near (111 ns)", wide, 9), StateAnswer("far (472 ns)", narrow, 6)
        >>> Advice(wide, 1, None, "", "", (), (), {}, "", 0, states=states).differs_by_state
        True
        """
        return len({it.setting for it in self.states}) > 1

    @property
    def best_batch_size(self) -> int | None:
        """The smallest within 3 % of the highest throughput; None if none were compared.

        >>> batches = BatchFigures(1, 100.0, 10.0, 90), BatchFigures(4, 125.0, 32.0, 90)
        >>> elastic = Setting("elastic", None, None)
        >>> advice = Advice(elastic, 1, None, "", "", (), batches, {}, "", 0)
        >>> advice.best_batch_size
        4
        """
        if not self.batches:
            return None
        most = max(it.items_per_sec for it in self.batches)
        return min(it.batch_size for it in self.batches if it.items_per_sec >= 0.97 * most)

    def compile_line(self, model: str, batch_size: int | None = None) -> str:
        """A line of Python that follows the advice, with another batch size if one is given.

        >>> elastic = Setting("elastic", None, None)
        >>> advice = Advice(elastic, 1, None, "", "", (), (), {}, "", 0)
        >>> advice.compile_line("m.onnx", 4)
        'compile_model("m.onnx", batch_size=4, scheduler="elastic")'
        """
        given, options = self._given(model, batch_size)
        return f"compile_model({given}, {self.setting}{options})"

    def ray_line(self, model: str, replicas: Replicas) -> str:
        """A line of Python that has Ray Serve start the replicas; see `deepsched.ray`.

        >>> elastic = Setting("elastic", None, None)
        >>> advice = Advice(elastic, 4, None, "", "", (), (), {}, "", 0)
        >>> advice.ray_line("m.onnx", Replicas("Ray Serve", 3, 2, 2, 30.0, 0.7))
        'serve.run(application("m.onnx", batch_size=4, scheduler="elastic", num_cores=2, \
num_replicas=3))'
        """
        given, options = self._given(model, None)
        return (
            f"serve.run(application({given}, {replicas.setting}, "
            f"num_replicas={replicas.num_replicas}{options}))"
        )

    def _given(self, model: str, batch_size: int | None) -> tuple[str, str]:
        """The model and its batch size, and its other options, as arguments of Python."""
        shapes = "" if self.input_shapes is None else f", input_shapes={self.input_shapes!r}"
        if self.custom_ops:
            shapes += f", custom_ops={list(self.custom_ops)!r}"
        if self.rewrites != "fast":
            shapes += f', rewrites="{self.rewrites}"'
        if self.batching != "auto":
            is_number = isinstance(self.batching, int)
            shapes += f", batching={self.batching}" if is_number else ', batching="off"'
        found = self.batch_size if batch_size is None else batch_size
        batch = "" if found == AUTO else f", batch_size={found}"
        is_plain = model.isprintable() and not set(model) & set('"\\')
        path = f'"{model}"' if is_plain else repr(model)
        return path + batch, shapes

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: an infinite percentile is None."""
        fields = asdict(self)
        for figures in fields["figures"]:
            for name in ("p50_ms", "p99_ms"):
                if figures[name] == math.inf:
                    figures[name] = None
        return {**fields, "best_batch_size": self.best_batch_size}
