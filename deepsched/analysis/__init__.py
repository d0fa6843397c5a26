"""Where a model's time goes: by operator, and on how many cores each is done soonest.

* **reading**: ONNX Runtime's timeline of a session, as what each operator took in each run; pure.
* **work**: how many operations an operator does, from its shapes; pure.
* **operators**: what an analysis returns.
* **profiling**: runs a model with ONNX Runtime's profiler on so many cores.
* **analyzing**: `analyze`: the same on every width of core group.
* **debug**: DeepSparse's `model_debug_analysis`, on the same figures.
"""

from deepsched.analysis.analyzing import analyze
from deepsched.analysis.operators import Analysis, Operator, OperatorType

__all__ = ["Analysis", "Operator", "OperatorType", "analyze"]
