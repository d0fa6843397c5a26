from deepsched.runtime.groups import CoreGroups
from deepsched.runtime.policy import GroupTree

class Elastic:
    """What the elastic scheduler knows."""

    def __init__(self, tree: GroupTree, groups: CoreGroups) -> None: ...
