"""Sources: where models come from, under one roof of names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from deepsched.errors import OptionError
from deepsched.server.repository.found import FoundModel


class Source(Protocol):
    """A place with models. Its methods read the disk: not for the event loop's thread."""

    def names(self) -> list[str]:
        """The models that there are now."""

    def find(self, name: str) -> FoundModel | None:
        """The model of that name; None if there is none. Raises OptionError or ModelError if it
        cannot be served."""


class Named:
    """Models that the user has named one by one."""

    def __init__(self, models: Mapping[str, Callable[[], FoundModel]]) -> None:
        self._models = models

    def names(self) -> list[str]:
        """Always the same."""
        return list(self._models)

    def find(self, name: str) -> FoundModel | None:
        """Where the user has said that it is."""
        find = self._models.get(name)
        return None if find is None else find()


class Sources:
    """Several sources as one.

    Raises:
        OptionError: two have a model of the same name.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        seen: set[str] = set()
        for name in (name for source in sources for name in source.names()):
            if name in seen:
                raise OptionError(
                    f"two models are named {name!r}; NAME=FILE on the command line gives one of "
                    "them another name"
                )
            seen.add(name)

    def names(self) -> list[str]:
        """All of them."""
        return [name for source in self._sources for name in source.names()]

    def find(self, name: str) -> FoundModel | None:
        """That of the first source that has the name."""
        return next(
            (found for source in self._sources if (found := source.find(name)) is not None), None
        )
