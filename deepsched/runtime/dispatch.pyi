from typing import Any

from deepsched.runtime.session import Session
from deepsched.runtime.values import ValueInfo

class Dispatcher:
    """The queue, the core groups and the workers of one context."""

    records: list[tuple[int, bool, int, int, int]] | None
    def __init__(
        self,
        cpus_by_group: list[list[int] | None],
        *,
        queue_capacity: int,
        spin_ns: int,
        thread_prefix: str,
    ) -> None: ...
    @property
    def is_forked(self) -> bool: ...
    @property
    def num_busy(self) -> int: ...
    def close(self) -> None: ...

class Model:
    """One model's sessions, one for each core group."""

    def __init__(self, dispatcher: Dispatcher, sessions: list[Session]) -> None: ...
    @property
    def dispatcher(self) -> Dispatcher: ...
    @property
    def inputs(self) -> list[ValueInfo]: ...
    @property
    def outputs(self) -> list[ValueInfo]: ...
    def run(self, inputs: list[Any]) -> list[Any]: ...
    def close(self) -> None: ...
