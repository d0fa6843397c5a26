"""deepsched decides which CPU cores serve which inference request.

Names are imported on first use (PEP 562). So `import deepsched` is cheap, a command imports what it
needs and no more, and Ctrl-C finds the command line ready before numpy and onnx are loaded.
"""

from __future__ import annotations

from deepsched.version import __version__ as __version__

TYPE_CHECKING = False  # type checkers take it for true; importing typing takes 4 ms
if TYPE_CHECKING:
    from deepsched.analysis.deepsparse import model_debug_analysis as model_debug_analysis
    from deepsched.api import benchmark_model as benchmark_model
    from deepsched.api import compile_model as compile_model
    from deepsched.context import Context as Context
    from deepsched.doctor import check_hardware as check_hardware
    from deepsched.engine import Engine as Engine
    from deepsched.engine import MultiModelEngine as MultiModelEngine
    from deepsched.machine.measured import latency_matrix as latency_matrix
    from deepsched.machine.partition import partition as partition
    from deepsched.machine.topology import Topology as Topology
    from deepsched.scheduler import Scheduler as Scheduler

_MODULE_OF = {
    "Context": "deepsched.context",
    "Engine": "deepsched.engine",
    "MultiModelEngine": "deepsched.engine",
    "Scheduler": "deepsched.scheduler",
    "Topology": "deepsched.machine.topology",
    "benchmark_model": "deepsched.api",
    "check_hardware": "deepsched.doctor",
    "compile_model": "deepsched.api",
    "latency_matrix": "deepsched.machine.measured",
    "model_debug_analysis": "deepsched.analysis.deepsparse",
    "partition": "deepsched.machine.partition",
}
# `import deepsched` and then `deepsched.analysis.analyze(...)`, without an import of its own.
_SUBMODULES = ("advice", "analysis", "backend", "benchmark", "doctor", "errors", "timeline")

__all__ = ["__version__", *_MODULE_OF]

# Type checkers would take any name at all for one of this module's.
if not TYPE_CHECKING:

    def __getattr__(name):
        from importlib import import_module

        if name in _MODULE_OF:
            value = getattr(import_module(_MODULE_OF[name]), name)
        elif name in _SUBMODULES:
            value = import_module(f"deepsched.{name}")
        else:
            raise AttributeError(f"module 'deepsched' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, *_SUBMODULES})
