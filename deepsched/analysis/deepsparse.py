"""model_debug_analysis: DeepSparse's function, on top of `analyze`."""

from __future__ import annotations

from typing import Any

from deepsched.analysis.analyzing import profile_widths
from deepsched.analysis.operators import Analysis, Operator
from deepsched.analysis.profiling import ProfilingTarget, RunBudget
from deepsched.checks import check_integer
from deepsched.engine import Inputs
from deepsched.invocation.sequential_timing import check_iterations
from deepsched.machine.partition import partition
from deepsched.machine.topology import Topology
from deepsched.models.batch import AUTO, BatchSize
from deepsched.models.locations import DEFAULT_CACHE
from deepsched.models.prepare import ModelLike, Shapes
from deepsched.scheduler import Scheduler


def model_debug_analysis(
    model: ModelLike,
    inp: Inputs,
    batch_size: BatchSize = AUTO,
    num_cores: int | None = None,
    num_iterations: int = 20,
    num_warmup_iterations: int = 5,
    optimization_level: int = 1,
    *,
    scheduler: Scheduler | str | None = None,
    input_shapes: Shapes | None = None,
) -> dict[str, Any]:
    """Times each operator of a model, with the signature and the result of DeepSparse's function.

    `deepsched.analysis.analyze` returns more.

    Args:
        inp: inputs as `Engine.run` takes them.
        model, batch_size, num_cores, input_shapes: see compile_model.
        num_iterations: number of timed runs.
        num_warmup_iterations: number of runs before those.
        optimization_level: 1 for the optimised operators, which engines run; 0 for those of the
            model's file.
        scheduler: multi_stream profiles a run on one stream, the others a run on all cores.

    Returns:
        `layer_info`, a dict for each operator:

        - `name`: its type; `canonical_name`: its node's name; `activation_sparsity`: 0.0, since
          ONNX Runtime does not measure it; `sub_layer_info`: empty;
        - `input_dims`, `output_dims`: lists of sizes by index; `kernel_dims`: likewise, of the
          first constant of two or more dimensions; `strides`: empty;
        - `average_run_time_in_ms`; `average_teraflops_per_second`, 0.0 if unknown;
        - `average_utilization`: speed-up over one core divided by the number of cores, between 0
          and 1; 0.0 if the operator is too short to measure.

        `average_total_time` in ms per request and `items_per_second`, both without the profiler;
        `batch_size`, `num_threads`.

    Raises:
        OptionError: an option has a value that is not allowed.
        The exceptions of compile_model and `Engine.run`.

    Example:
        >>> import numpy as np
        >>> from deepsched.benchmark import bundled_model
        >>> image = np.zeros((1, 3, 224, 224), np.float32)
        >>> result = model_debug_analysis(bundled_model("squeezenet"), [image], num_iterations=3)
        >>> result["layer_info"][0]["name"], result["layer_info"][0]["kernel_dims"]
        ('Conv', {0: [64, 3, 3, 3]})
    """
    num_iterations, num_warmup_iterations = check_iterations(num_iterations, num_warmup_iterations)
    optimization_level = check_integer("optimization_level", optimization_level, 0, 1)
    is_multi = scheduler is not None and Scheduler.from_str(scheduler) == Scheduler.multi_stream
    streams = partition(Topology.detect(), num_cores, None if is_multi else 1).streams
    cores = len(streams[0].cores)
    analysis = profile_widths(
        ProfilingTarget(
            model,
            batch_size,
            input_shapes,
            inp,
            DEFAULT_CACHE,
            optimizes=optimization_level == 1,
            rewrites="fast" if optimization_level == 1 else "none",
        ),
        sorted({1, cores}),
        RunBudget(num_warmup_iterations, num_iterations, num_iterations, 0.0),
        num_rounds=1,
        seconds=0.0,
        on_progress=lambda text: None,
    )
    return _to_dict(analysis)


def _to_dict(analysis: Analysis) -> dict[str, Any]:
    cores = analysis.most_cores
    batch_size = analysis.batch_size or 1
    return {
        "layer_info": [_layer(operator) for operator in analysis.operators],
        "average_total_time": analysis.plain_ms[cores],
        "items_per_second": 1e3 * batch_size / analysis.plain_ms[cores],
        "batch_size": batch_size,
        "num_threads": cores,
    }


def _layer(operator: Operator) -> dict[str, Any]:
    cores = operator.most_cores
    weights = [] if operator.weight_shape is None else [operator.weight_shape]
    return {
        "name": operator.op_type,
        "canonical_name": operator.name,
        "input_dims": _by_index(operator.input_shapes),
        "output_dims": _by_index(operator.output_shapes),
        "kernel_dims": _by_index(weights),
        "strides": {},
        "activation_sparsity": 0.0,
        "average_run_time_in_ms": operator.ms[cores],
        "average_utilization": min(1.0, (operator.speedup or 0.0) / cores),
        "average_teraflops_per_second": (operator.gflops(cores) or 0.0) / 1e3,
        "sub_layer_info": [],
    }


def _by_index(shapes: Any) -> dict[int, list[int]]:
    return {index: list(shape) for index, shape in enumerate(shapes) if shape is not None}
