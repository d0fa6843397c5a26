from deepsched.runtime.distances import Distances
from deepsched.runtime.groups import CoreGroups
from deepsched.runtime.policy import PolicyTree

class Elastic:
    """State of the elastic scheduler."""

    def __init__(self, tree: PolicyTree, groups: CoreGroups, is_pinned: bool) -> None: ...
    @property
    def distances(self) -> Distances: ...
