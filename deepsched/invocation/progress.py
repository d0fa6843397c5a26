"""A progress bar for programs that ask for one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from deepsched.shortages import thread_errors

T = TypeVar("T")


def tracked(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    """The items, with a bar on stderr that counts them; `total`: how many, if that is known."""
    from rich.console import Console  # 0.1 s that others need not pay
    from rich.progress import track

    with thread_errors("the threads that draw progress"):
        yield from track(items, description, total=total, console=Console(stderr=True))
