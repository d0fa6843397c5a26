"""Recipes: engines and contexts travel to other processes as the call that made them.

Threads, sessions and mapped weights are a process's own. What can be sent is what they were asked
for: the other process asks for the same, and finds the model in the same cache.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any, NoReturn

from deepsched.errors import CopyError
from deepsched.models.prepare import serialize

_PATHS = ("model", "cache_dir", "custom_ops")
"""Options whose strings are paths."""


def recipe_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an `__init__`, its `locals()`, such that they mean the same later and in
    another process: paths are absolute, lists are tuples, a ModelProto is its bytes.

    All else stays as it was given, options to come as well: num_cores=None is to mean all cores of
    the machine that it is sent to.

    Raises:
        InvalidModelError: a ModelProto above 2 GB.
    """
    return {name: _settled(name, value) for name, value in arguments.items() if name != "self"}


def _settled(name: str, value: Any) -> Any:
    if isinstance(value, os.PathLike) or (name in _PATHS and isinstance(value, str)):
        with contextlib.suppress(OSError):  # the working folder has been removed
            return os.path.abspath(value)
    if isinstance(value, (list, tuple)):
        return tuple(_settled(name, item) for item in value)
    if isinstance(value, (bytearray, memoryview)) or hasattr(value, "SerializeToString"):
        return serialize(value)
    return value


def remake(cls: type[Any], maker: type[Any], recipe: dict[str, Any]) -> Any:
    """What a pickle calls: an object of `cls`, by the `__init__` of `maker` whose recipe it is. A
    subclass has an `__init__` with other arguments."""
    instance = object.__new__(cls)
    maker.__init__(instance, **recipe)
    return instance


class Uncopied:
    """The base of what holds threads and memory: a copy's end would be that of the original."""

    def __copy__(self) -> NoReturn:
        raise CopyError(
            f"{type(self).__name__} cannot be copied: it holds threads and memory of this process. "
            "Threads may share it; for a second one, make another"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self.__copy__()
