from typing import Any, NoReturn

from deepsched.runtime.dispatch import Dispatcher
from deepsched.runtime.inbox import Inbox
from deepsched.runtime.request import Request
from deepsched.runtime.session import Session
from deepsched.runtime.values import ValueInfo

Snapshot = tuple[bytes, int, int]
GroupCounts = tuple[int, int, int, int, int, Snapshot, Snapshot]

class Model:
    """One model's sessions, one for each core group."""

    def __init__(self, dispatcher: Dispatcher, sessions: list[Session]) -> None: ...
    @property
    def dispatcher(self) -> Dispatcher: ...
    @property
    def inputs(self) -> list[ValueInfo]: ...
    @property
    def outputs(self) -> list[ValueInfo]: ...
    @property
    def typical_ns(self) -> int: ...
    def run(
        self,
        inputs: list[Any],
        timeout: float | None = None,
        priority: int = 0,
        check_inputs: bool = True,
    ) -> list[Any]: ...
    def start(
        self,
        inputs: list[Any],
        inbox: Inbox,
        tag: Any = None,
        timeout: float | None = None,
        priority: int = 0,
        check_inputs: bool = True,
        block: bool = True,
        feeds: bool = False,
    ) -> Request | None: ...
    def reject(self) -> NoReturn: ...
    def help(self, most: int) -> int: ...
    def wake_workers(self) -> None: ...
    def orphan(self, inbox: Inbox, num_left: int) -> None: ...
    def cancel(self, request: Request, as_expired: bool = False) -> None: ...
    def counts(self) -> tuple[list[GroupCounts], tuple[int, int, int]]: ...
    def close(self) -> None: ...
