from deepsched.runtime.groups import CoreGroups
from deepsched.runtime.policy import PolicyTree

class Elastic:
    """State of the elastic scheduler."""

    def __init__(self, tree: PolicyTree, groups: CoreGroups) -> None: ...
