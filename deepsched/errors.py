"""Every exception a user of deepsched can meet.

Each names the wrong value, what was expected, and what to do. Each also inherits the builtin that a
caller would expect, so ``except ValueError`` and ``except FileNotFoundError`` keep working.

>>> issubclass(StreamConfigError, ValueError)
True
"""

from __future__ import annotations


class DeepschedError(Exception):
    """The base of every exception that deepsched raises on purpose."""


# --- Options that are not possible -----------------------------------------------------------


class StreamConfigError(DeepschedError, ValueError):
    """num_cores, num_streams, the scheduler or the pinning is not possible on this topology."""


class TopologyError(DeepschedError, ValueError):
    """A machine's topology could not be read, or none of its CPUs may be used."""


class OptionError(DeepschedError, ValueError):
    """An option of an engine, a context or the command line has a value that is not allowed."""


class LeaseError(DeepschedError, RuntimeError):
    """Too few cores are free of other processes for a lease, or there can be no leases here."""


# --- The model -------------------------------------------------------------------------------


class ModelError(DeepschedError):
    """The model cannot be used; the subclasses say why."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No file at the model's path or its external data's, or one that may not be read."""


class InvalidModelError(ModelError, ValueError):
    """The file is not ONNX, is truncated, or holds a graph that is not valid."""


class UnsupportedModelError(ModelError, ValueError):
    """A valid model with an operator, opset or type that ONNX Runtime's CPU kernels do not have."""


class ShapeOverrideError(ModelError, ValueError):
    """The model cannot be compiled for this batch_size or these input_shapes."""


# --- A request -------------------------------------------------------------------------------


class InputError(DeepschedError, ValueError):
    """The inputs of a request do not fit the model; the engine stays usable."""


class InputTypeError(InputError, TypeError):
    """An input has an element type or a kind (tensor, sequence, map) other than the model's."""


class InferenceError(DeepschedError, RuntimeError):
    """A kernel failed inside ONNX Runtime; the engine stays usable."""


class ClosedError(DeepschedError, RuntimeError):
    """The engine or its context has been closed."""


class DeadlineExceeded(DeepschedError, TimeoutError):  # noqa: N818
    """A request's timeout expired: it never ran, or was stopped; the engine stays usable."""


class QueueFull(DeepschedError, RuntimeError):  # noqa: N818
    """The context's queue holds queue_capacity requests already, and the call may not wait."""


class ForkError(DeepschedError, RuntimeError):
    """The engine belongs to the parent process; its threads do not survive os.fork."""


class CopyError(DeepschedError, TypeError):
    """Something that holds threads cannot be copied, or cannot be sent to another process."""


# --- The environment -------------------------------------------------------------------------


class OrtImportError(DeepschedError, ImportError):
    """onnxruntime is not installed, or its library is too old or cannot be loaded."""


class ThreadError(DeepschedError, OSError):
    """The system refused to start or to pin a thread."""


class ServerError(DeepschedError, ConnectionError):
    """A server that is to be measured cannot be reached, or refused a request."""


class FileLimitError(DeepschedError, OSError):
    """The process may open no more files (RLIMIT_NOFILE), and a request needs a descriptor."""
