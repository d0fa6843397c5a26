"""Ctrl-C where a KeyboardInterrupt could only end in a traceback: during imports and shutdown; and
SIGTERM where something must be removed first."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn


@contextmanager
def exits_on_ctrl_c() -> Iterator[None]:
    """Within the block SIGINT kills the process, as it does a program in C.

    A KeyboardInterrupt would not do for imports: in a callback, as the import lock has them, Python
    prints it and goes on; extension modules turn it into an ImportError.
    """
    is_changed = let_ctrl_c_exit()
    try:
        yield
    finally:
        if is_changed:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def let_ctrl_c_exit() -> bool:
    """The same from now on. Returns whether that is a change: not under `nohup`, nor where the
    program has a handler of its own."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    except ValueError:  # another thread than the main one, which gets no KeyboardInterrupt
        return False
    return True


class _Terminated(BaseException):
    """A signal that kills, on its way through `finally` blocks."""


@contextmanager
def unwinds_on_sigterm() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP kill after the block's `finally` blocks have run; the
    second one at once. No change where the program handles or ignores them, or in another thread
    than the main one."""
    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL
    ]

    def restore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)

    def unwind(number: int, _: object) -> NoReturn:
        restore()
        raise _Terminated(number)

    try:
        for number in numbers:
            signal.signal(number, unwind)
    except ValueError:
        numbers.clear()
    try:
        yield
    except _Terminated as terminated:
        os.kill(os.getpid(), terminated.args[0])
    finally:
        restore()
