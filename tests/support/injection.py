"""Calls something between two lines of our code: what a signal handler or a finalizer may do."""

from __future__ import annotations

import sys
from pathlib import Path

import deepsched

PACKAGE = str(Path(deepsched.__file__).parent)


def at_each_line(files, scenario):
    """Runs `scenario(inject)` again and again, the n-th time with a call before the n-th line that
    it executes in the `files` of the package, until there are fewer.

    `scenario` says with `with inject(action):` what is called, and during what. Returns how often
    it was called. As a handler does, the action runs on the same thread, inside of what it
    interrupts; an exception of it propagates from there.
    """
    paths = {f"{PACKAGE}/{name}" for name in files}
    number = 0
    was_called = True
    while was_called:
        number += 1
        injection = _Injection(paths, number)
        scenario(injection.during)
        was_called = injection.was_called
    return number - 1


class _Injection:
    def __init__(self, paths, number):
        self._paths = paths
        self._left = number
        self._action = None
        self.was_called = False

    def during(self, action):
        self._action = action
        return self

    def __enter__(self):
        sys.settrace(self._trace)

    def __exit__(self, *exception):
        sys.settrace(None)

    def _trace(self, frame, event, argument):
        if frame.f_code.co_filename not in self._paths:
            return None
        if event == "line" and not self.was_called:
            self._left -= 1
            if self._left == 0:
                self.was_called = True
                self._action()
        return self._trace
