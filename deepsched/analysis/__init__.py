"""Profiles a model by operator: where the time goes, and how each operator scales with cores.

* **reading**: parses ONNX Runtime's profile of a session; pure.
* **constants**: shapes and sizes of each operator's constants, from the model's file.
* **work**: the operation count of an operator, from its shapes; pure.
* **operators**: the result of an analysis.
* **profiling**: runs a model under ONNX Runtime's profiler on a given number of cores.
* **calibration**: measures the profiler's own overhead.
* **analyzing**: `analyze`, which does that for core groups of every width.
* **deepsparse**: DeepSparse's `model_debug_analysis`, from the same figures.
"""

from deepsched.analysis.analyzing import analyze
from deepsched.analysis.operators import Analysis, Operator, OperatorType

__all__ = ["Analysis", "Operator", "OperatorType", "analyze"]
