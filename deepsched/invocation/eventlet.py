"""Whether the program runs on eventlet, whose locks serve one thread only.

gevent's locks wake waiters in other threads (since its version 21), so under gevent a real thread
may resolve futures. A lock of eventlet wakes nobody outside the thread that releases it.
"""

from __future__ import annotations

import sys


def is_in_charge() -> bool:
    """Whether eventlet has replaced `threading`."""
    patcher = sys.modules.get("eventlet.patcher")
    return patcher is not None and patcher.is_monkey_patched("thread")
