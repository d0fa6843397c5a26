"""Measures the profiler's overhead for each call, with operators that do next to nothing.

The time that ONNX Runtime reports for a kernel includes its collecting the sizes of inputs and
outputs, and its threads' statistics (KernelScope in
onnxruntime/core/framework/sequential_executor.cc). That adds 1 to 4 us, growing with the number of
threads, where a small kernel takes a tenth of that.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from deepsched.analysis.profiling import ProfilingTarget, RunBudget, profile, time_plain

_LENGTH = 100
_RUNS = RunBudget(num_warmups=3, min_runs=20, max_runs=50, seconds=0.05)


def overhead_us(num_cores: int, cache_dir: str) -> float:
    """Microseconds that profiling adds to each call of an operator, on this many cores."""
    inputs = [np.zeros(1, np.float32)]
    target = ProfilingTarget(_chain(), None, None, inputs, cache_dir, optimizes=True)
    plain_us = 1e3 * float(np.min(time_plain(target, num_cores, _RUNS)))
    found = profile(target, num_cores, _RUNS).profile
    timed_us = np.sum([it.microseconds for it in found.operators.values()], axis=0)
    # ONNX Runtime rounds each time down, by half a microsecond on average. It also rounds the times
    # that this overhead is subtracted from, so the two errors cancel.
    per_call_us = float(np.median(timed_us)) / _LENGTH
    return max(0.0, per_call_us - plain_us / _LENGTH)


def _chain() -> onnx.ModelProto:
    """A chain of operators on single numbers, which no optimizer removes."""
    nodes = [helper.make_node("Tanh", [f"t{i}"], [f"t{i + 1}"]) for i in range(_LENGTH)]
    names = ("t0", f"t{_LENGTH}")
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in names]
    graph = helper.make_graph(nodes, "calibration", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
