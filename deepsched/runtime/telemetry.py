"""ONNX Runtime's telemetry: off, unless the user asks for it.

On Linux it came with 1.29. From its initialisation on, the library has a thread that uploads, and
keeps a device id and a database in ~/.cache/Microsoft. ORT_DISABLE_TELEMETRY is read once, at that
moment, in all versions from 1.29 to 1.32; its API calls come too late for the first event. So this
is to be called before the library is opened, or the Python package imported: each has a copy.
"""

from __future__ import annotations

import os

VARIABLE = "ORT_DISABLE_TELEMETRY"

_WANTED = ("0", "false", "no", "n", "off")


def switch_off() -> bool:
    """Sets the opt-out, for child processes too. False: the user has asked for telemetry.

    ORT takes whatever it does not know for "do not disable", the empty string too. Here only a
    plain no counts as that.
    """
    if os.environ.get(VARIABLE, "").strip().lower() in _WANTED:
        return False
    os.environ[VARIABLE] = "1"
    return True
