from collections.abc import Collection, Sequence

class PolicyTree:
    """The tree of core groups as the policy uses it."""

    def __init__(
        self,
        leaves: Sequence[tuple[int, int]],
        parents: Sequence[int],
        straddling: Collection[int] = (),
    ) -> None: ...
    @property
    def num_levels(self) -> int: ...
    def level_of(self, group: int) -> int: ...
