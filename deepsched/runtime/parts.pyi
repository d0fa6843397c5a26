from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from deepsched.runtime.inbox import Inbox
from deepsched.runtime.model import Model
from deepsched.runtime.request import Request

def start_many(
    model: Model,
    source: Iterator[Any],
    in_order: Callable[[Any], list[Any]],
    inbox: Inbox,
    sent: deque[Request],
    most: int,
    priority: int,
    check_inputs: bool,
    shrinks: bool,
) -> int: ...
def start_together(
    model: Model, items: list[list[Any]], inbox: Inbox, submitted_ns: int
) -> tuple[Request | None, int]: ...
def outputs_of_parts(request: Request) -> list[list[Any]] | None: ...
