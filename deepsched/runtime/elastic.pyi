from deepsched.runtime.groups import CoreGroups
from deepsched.runtime.policy import PolicyTree

class Elastic:
    """What the elastic scheduler knows."""

    def __init__(self, tree: PolicyTree, groups: CoreGroups) -> None: ...
