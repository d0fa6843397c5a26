Entry = tuple[int, int, int, bool, int, int, int]
"""(model, group, stage, by_worker, submitted_ns, started_ns, ended_ns)"""

class Tracer:
    """Collects an entry for each request that ends between `start` and `stop`."""

    def start(self, capacity: int) -> None: ...
    def stop(self) -> tuple[list[Entry], int]: ...
