from typing import Any

from deepsched.runtime.inbox import Inbox

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
    def record(self) -> tuple[int, bool, int, int, int]: ...
    def outputs(self) -> list[Any]: ...
