"""The native core: requests, the queue, core groups, pinned threads and ONNX Runtime's C API.

README.md in this folder explains the protocols. Nothing here knows the Python classes above it.
"""

from importlib.util import find_spec as _find_spec
from os.path import isdir as _isdir

if not _isdir(__path__[0]):
    raise ImportError(
        f"the native core cannot be loaded from {__path__[0]}: Python loads compiled modules from "
        "folders only. Unpack the archive (shiv and pex do so by themselves, zipapp does not)"
    )
if _find_spec("deepsched.runtime.dispatch") is None:
    raise ImportError(
        f"the native core is not compiled in {__path__[0]}. If that is a clone's own folder, it "
        "hides the installed package from a python that is started there: start it elsewhere, or "
        "install the clone with pip install -e ."
    )


def _what_freezers_read() -> None:
    """Never called. Tools that freeze programs read the import statements of Python files, not of
    compiled ones, and these modules stand in no other. At the top they would load numpy into every
    command."""
    from deepsched.runtime import (  # noqa: F401
        backlog,
        batch_plan,
        batching,
        completion,
        distances,
        elastic,
        element_types,
        estimates,
        expected_load,
        gathering,
        groups,
        known_short,
        measuring,
        queue,
        runner,
        shrink,
        statistics,
        stopping,
        turnstile,
        values,
    )
