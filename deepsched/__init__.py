"""deepsched decides which CPU cores serve which inference request."""

from deepsched.analysis.deepsparse import model_debug_analysis
from deepsched.api import benchmark_model, compile_model
from deepsched.context import Context
from deepsched.doctor import check_hardware
from deepsched.engine import Engine, MultiModelEngine
from deepsched.machine.partition import partition
from deepsched.machine.topology import Topology
from deepsched.scheduler import Scheduler
from deepsched.version import __version__

__all__ = [
    "Context",
    "Engine",
    "MultiModelEngine",
    "Scheduler",
    "Topology",
    "__version__",
    "benchmark_model",
    "check_hardware",
    "compile_model",
    "model_debug_analysis",
    "partition",
]
