from collections.abc import Sequence

class PolicyTree:
    """The tree of core groups as the policy uses it."""

    def __init__(self, leaves: Sequence[tuple[int, int]], parents: Sequence[int]) -> None: ...
    def roomiest_leaf(self, busy_ns: Sequence[int]) -> int: ...
    def choose(
        self,
        run_ns: Sequence[int],
        busy_ns: Sequence[int],
        leaf: int,
        num_waiting: int,
        num_seen: float = 0.0,
    ) -> int: ...
