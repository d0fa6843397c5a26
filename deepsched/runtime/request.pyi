class Request:
    """One inference; made by Model.run."""

    @property
    def record(self) -> tuple[int, bool, int, int, int]: ...
