"""deepsched decides which CPU cores serve which inference request."""

from deepsched.context import Context
from deepsched.engine import Engine, MultiModelEngine, compile_model
from deepsched.partition import partition
from deepsched.scheduler import Scheduler
from deepsched.topology import Topology

__version__ = "0.1.0"
__all__ = [
    "Context",
    "Engine",
    "MultiModelEngine",
    "Scheduler",
    "Topology",
    "compile_model",
    "partition",
]
