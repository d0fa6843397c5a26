from typing import Any

from deepsched.errors import DeadlineExceeded
from deepsched.runtime.inbox import Inbox

OUTCOMES: dict[int, str]

class Request:
    """One inference; made by a Model."""

    tag: Any
    @property
    def owner(self) -> Any: ...
    @property
    def inbox(self) -> Inbox | None: ...
    @property
    def is_running(self) -> bool: ...
    @property
    def times_ns(self) -> tuple[int, int, int]: ...
    def outputs(self) -> list[Any]: ...
    def expiry(self) -> DeadlineExceeded: ...
