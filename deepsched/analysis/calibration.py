"""What timing an operator adds to it: measured with operators that do next to nothing.

ONNX Runtime counts the sizes of inputs and outputs, and what its threads did, within the time that
it gives for a kernel (KernelScope in onnxruntime/core/framework/sequential_executor.cc): 1 to 4 us,
more with more threads, where a small kernel takes a tenth of that.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from deepsched.analysis.profiling import Runs, Subject, profile, time_plain

_LENGTH = 100
_RUNS = Runs(num_warmups=3, least=20, most=50, seconds=0.05)


def timing_us(num_cores: int, cache_dir: str) -> float:
    """Microseconds that timing adds to a call of an operator, on so many cores."""
    subject = Subject(_chain(), None, None, [np.zeros(1, np.float32)], cache_dir, optimizes=True)
    plain_us = 1e3 * float(np.min(time_plain(subject, num_cores, _RUNS)))
    found = profile(subject, num_cores, _RUNS).profile
    timed_us = np.sum([it.microseconds for it in found.operators.values()], axis=0)
    # ONNX Runtime rounds each time down, by half a microsecond on average. It does so as well with
    # the times that this is taken off, so that nothing is to be added here.
    per_call_us = float(np.median(timed_us)) / _LENGTH
    return max(0.0, per_call_us - plain_us / _LENGTH)


def _chain() -> onnx.ModelProto:
    """Operators that no optimizer takes away, of one number each."""
    nodes = [helper.make_node("Tanh", [f"t{i}"], [f"t{i + 1}"]) for i in range(_LENGTH)]
    names = ("t0", f"t{_LENGTH}")
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in names]
    graph = helper.make_graph(nodes, "calibration", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
