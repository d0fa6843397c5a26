"""Scheduler: which core groups a request may claim."""

from __future__ import annotations

import enum
from typing import ClassVar

from deepsched.errors import OptionError


class Scheduler(str, enum.Enum):
    """How requests share the cores. Members equal, and hash as, their strings.

    Example:
        >>> Scheduler.multi_stream == "multi_stream"
        True
        >>> Scheduler.from_str("async")
        <Scheduler.multi_stream: 'multi_stream'>
        >>> Scheduler.default
        <Scheduler.single_stream: 'single_stream'>
    """

    default: ClassVar[Scheduler]

    single_stream = "single_stream"
    """One request at a time, on all cores: the lowest latency for one caller."""
    multi_stream = "multi_stream"
    """One request on each stream: the highest throughput for many callers."""
    elastic = "elastic"
    """As wide as the load allows. For now the same as multi_stream."""

    __str__ = str.__str__

    @classmethod
    def from_str(cls, word: str) -> Scheduler:
        """The member for a word: its own name or DeepSparse's, in any case.

        Raises:
            OptionError: it is none of them.
        """
        if isinstance(word, str) and word.lower() in _WORDS:
            return _WORDS[word.lower()]
        raise OptionError(f"scheduler must be one of {', '.join(_WORDS)}, got {word!r}")


Scheduler.default = Scheduler.single_stream

_WORDS = {
    "single_stream": Scheduler.single_stream,
    "single": Scheduler.single_stream,
    "sync": Scheduler.single_stream,
    "multi_stream": Scheduler.multi_stream,
    "multi": Scheduler.multi_stream,
    "async": Scheduler.multi_stream,
    "elastic": Scheduler.elastic,
    "default": Scheduler.default,
}
