class Pins:
    """Where the threads of core groups are pinned."""

    @property
    def lost_cpus(self) -> list[int]: ...

def refused_cpus(cpus: list[int]) -> list[int]: ...
