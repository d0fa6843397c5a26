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

# Tools that freeze programs read the import statements of Python files, not those of compiled ones.
# These modules stand in no other statement.
from deepsched.runtime import backlog as backlog  # noqa: E402
from deepsched.runtime import completion as completion  # noqa: E402
from deepsched.runtime import elastic as elastic  # noqa: E402
from deepsched.runtime import element_types as element_types  # noqa: E402
from deepsched.runtime import estimates as estimates  # noqa: E402
from deepsched.runtime import groups as groups  # noqa: E402
from deepsched.runtime import known_short as known_short  # noqa: E402
from deepsched.runtime import queue as queue  # noqa: E402
from deepsched.runtime import shrink as shrink  # noqa: E402
from deepsched.runtime import statistics as statistics  # noqa: E402
from deepsched.runtime import stopping as stopping  # noqa: E402
from deepsched.runtime import values as values  # noqa: E402
