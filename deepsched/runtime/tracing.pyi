from typing import Any

import numpy as np

ENTRY: np.dtype[Any]
"""submitted_ns, started_ns (0: it never ran), ended_ns, model, group (-1: it never ran), stage,
by_worker."""

class Tracer:
    """Collects an entry for each request that ends between `start` and `stop`."""

    def start(self, capacity: int, owner: object) -> None: ...
    def stop(self, owner: object) -> tuple[bytes, int]: ...
