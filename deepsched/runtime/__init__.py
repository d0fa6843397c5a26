"""The native core: requests, the queue, core groups, pinned threads and ONNX Runtime's C API.

README.md in this folder explains the protocols. Nothing here knows the Python classes above it.
"""

from importlib.util import find_spec as _find_spec

if _find_spec("deepsched.runtime.dispatch") is None:
    raise ImportError(
        f"the native core is not compiled in {__path__[0]}. If that is a clone's own folder, it "
        "hides the installed package from a python that is started there: start it elsewhere, or "
        "install the clone with pip install -e ."
    )
