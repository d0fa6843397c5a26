from collections.abc import Mapping, Sequence

from deepsched.runtime.values import ValueInfo

class Session:
    """One ORT session for one (model, core group)."""

    @property
    def reserved_bytes(self) -> int: ...
    def describe_inputs(self) -> list[ValueInfo]: ...
    def describe_overridable(self) -> list[ValueInfo]: ...
    def describe_outputs(self) -> list[ValueInfo]: ...
    def end_profiling(self) -> str: ...
    def arena_bytes(self) -> int | None: ...

def open_session(
    model: str | bytes,
    *,
    num_threads: int,
    cpus: Sequence[int] | None,
    thread_prefix: str,
    config: dict[str, str],
    name: str | None = None,
    is_optimized: bool = False,
    save_to: str | None = None,
    profile_to: str | None = None,
    custom_ops: tuple[str, ...] = (),
    files: Mapping[str, bytes] | None = None,
    nodes: Sequence[int] = (),
    is_aside: bool = False,
) -> Session: ...
def trim_heap() -> None: ...
