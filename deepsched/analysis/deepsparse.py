"""model_debug_analysis: an analysis in the form that DeepSparse's had."""

from __future__ import annotations

from typing import Any

from deepsched.analysis.analyzing import measure
from deepsched.analysis.operators import Analysis, Operator
from deepsched.analysis.profiling import Runs, Subject
from deepsched.engine import Inputs
from deepsched.integers import check_integer
from deepsched.invocation.sequential_timing import check_iterations
from deepsched.machine.partition import partition
from deepsched.machine.topology import Topology
from deepsched.models.compiled import DEFAULT
from deepsched.models.prepare import ModelLike, Shapes
from deepsched.scheduler import Scheduler


def model_debug_analysis(
    model: ModelLike,
    inp: Inputs,
    batch_size: int | None = 1,
    num_cores: int | None = None,
    num_iterations: int = 20,
    num_warmup_iterations: int = 5,
    optimization_level: int = 1,
    *,
    scheduler: Scheduler | str | None = None,
    input_shapes: Shapes | None = None,
) -> dict[str, Any]:
    """Times each operator of a model: DeepSparse's function, in its form.

    `deepsched.analysis.analyze` tells more.

    Args:
        inp: what `Engine.run` takes.
        model, batch_size, num_cores, input_shapes: see compile_model.
        num_iterations: runs to take the time of.
        num_warmup_iterations: runs before those.
        optimization_level: 1 for the operators that engines run; 0 for those of the model's file.
        scheduler: multi_stream looks at a run on one stream, the others at one on all cores.

    Returns:
        `layer_info`, a dict for each operator:

        - `name`: its type; `canonical_name`: its node's name; `activation_sparsity`: 0.0, which
          ONNX Runtime does not look for; `sub_layer_info`: empty;
        - `input_dims`, `output_dims`, `kernel_dims`: lists of sizes by the index of the input or
          output; the last of the constant of two dimensions or more. `strides`: empty;
        - `average_run_time_in_ms`; `average_teraflops_per_second`, 0.0 where it is not known;
        - `average_utilization`: the speed-up over one core, for each core; between 0 and 1, 0.0
          where the operator is too short to tell.

        `average_total_time`, ms of a request, and `items_per_second`, both without the timing of
        operators; `batch_size`, `num_threads`.

    Raises:
        OptionError: an option has a value that is not allowed.
        What compile_model and `Engine.run` raise.

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
    analysis = measure(
        Subject(model, batch_size, input_shapes, inp, DEFAULT, optimization_level == 1),
        sorted({1, cores}),
        Runs(num_warmup_iterations, num_iterations, num_iterations, 0.0),
        num_rounds=1,
        seconds=0.0,
        say=lambda text: None,
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
