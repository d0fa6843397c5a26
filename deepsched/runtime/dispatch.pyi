from deepsched.runtime.backlog import Backlog
from deepsched.runtime.elastic import Elastic
from deepsched.runtime.pins import Pins
from deepsched.runtime.policy import PolicyTree
from deepsched.runtime.tracing import Tracer
from deepsched.runtime.turnstile import Turnstile

class Dispatcher:
    """The queue, the core groups and the workers of one context."""

    def __init__(
        self,
        cpus_by_group: list[list[int] | None],
        *,
        queue_capacity: int,
        spin_ns: int,
        thread_prefix: str,
        tree: PolicyTree | None = None,
    ) -> None: ...
    @property
    def is_forked(self) -> bool: ...
    @property
    def num_streams(self) -> int: ...
    @property
    def num_busy(self) -> int: ...
    @property
    def wake_up_ns(self) -> int: ...
    @property
    def backlog(self) -> Backlog: ...
    @property
    def elastic(self) -> Elastic | None: ...
    @property
    def pins(self) -> Pins: ...
    @property
    def turnstile(self) -> Turnstile: ...
    @property
    def tracer(self) -> Tracer: ...
    def close(self) -> None: ...
