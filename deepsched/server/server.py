"""What all parts of a server are given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from deepsched.server.inference import Inference
from deepsched.server.observed import Observed
from deepsched.server.repository import Repository
from deepsched.server.settings import Settings
from deepsched.server.shared_memory import Regions


def _let_all_through(headers: Mapping[str, str]) -> None:
    pass


@dataclass
class Server:
    """One a process."""

    settings: Settings
    repository: Repository
    regions: Regions = field(default_factory=Regions)
    check_control: Callable[[Mapping[str, str]], None] = _let_all_through
    """Raises Unauthorized or Forbidden where a request with these headers (lower case) may not load
    and unload models, or name shared memory."""
    started_at: float = field(default_factory=time.time)
    """As of time.time()."""
    is_stopping: bool = False
    """Not ready any more, though new requests are taken."""
    is_closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when none are taken any more."""
    on_stop: list[Callable[[], None]] = field(default_factory=list)
    """To be called when no more connections are taken: what would keep some open for ever."""
    on_answered: list[Callable[[], None]] = field(default_factory=list)
    """To be called after the last answer."""

    def __post_init__(self) -> None:
        self.inference = Inference(self.repository, self.regions)

    @property
    def observed(self) -> Observed:
        """What all versions of all models have counted."""
        return self.repository.observed

    @property
    def is_ready(self) -> bool:
        """Whether requests should be sent here."""
        return not self.is_stopping and self.repository.is_ready()
