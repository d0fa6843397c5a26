"""Attributes that are computed when they are first read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

if sys.version_info >= (3, 12):
    from functools import cached_property as cached_property
else:
    _T = TypeVar("_T")

    class cached_property(Generic[_T]):  # noqa: N801
        """As functools has it from Python 3.12 on: without a lock.

        That of 3.11 has one for all objects of a class and holds it while it computes. So models
        would be compiled one after another, and a child that is forked meanwhile would wait for
        ever.

        >>> class Circle:
        ...     radius = 2
        ...     @cached_property
        ...     def area(self):
        ...         print("computed")
        ...         return 3 * self.radius**2
        >>> circle = Circle()
        >>> circle.area, circle.area
        computed
        (12, 12)
        """

        def __init__(self, compute: Callable[[Any], _T]) -> None:
            self._compute = compute
            self.__doc__ = compute.__doc__

        @overload
        def __get__(self, instance: None, owner: type) -> cached_property[_T]: ...

        @overload
        def __get__(self, instance: object, owner: type) -> _T: ...

        def __get__(self, instance: object | None, owner: type) -> cached_property[_T] | _T:
            if instance is None:
                return self
            # Two threads that come at once may both compute it; the first value stays. Found in the
            # instance's own dictionary from then on.
            found: _T = vars(instance).setdefault(self._compute.__name__, self._compute(instance))
            return found
