from collections.abc import Sequence

from deepsched.runtime.policy import PolicyTree

class Learner:
    """A policy for one model on machines that are not at hand."""

    def __init__(self, tree: PolicyTree, run_ns: Sequence[float], born_ns: int = 0) -> None: ...
    def arrive(self, num_in_system: int, now: int) -> None: ...
    def decide(
        self,
        busy_ns: Sequence[int],
        leaf: int,
        num_waiting: float,
        now: int,
        may_try: bool = True,
        may_hold: bool = False,
    ) -> tuple[int, bool]: ...
    def learn(
        self, group: int, company: float, length_ns: int, is_trial: bool, now: int
    ) -> None: ...
    def doubt(self) -> None: ...
    @property
    def lengths(self) -> list[tuple[float, float]]: ...
