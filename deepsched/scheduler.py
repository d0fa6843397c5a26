"""Scheduler: which core groups a request may claim."""

from __future__ import annotations

import enum

from deepsched.errors import OptionError


class Scheduler(enum.StrEnum):
    """The policy for which requests run in parallel, and on how many cores.

    Members equal their strings, hash like them and print as them.

    Example:
        >>> Scheduler.multi_stream == "multi_stream"
        True
        >>> Scheduler.from_str("async")
        <Scheduler.multi_stream: 'multi_stream'>
        >>> Scheduler.default is Scheduler.single_stream
        True
    """

    single_stream = "single_stream"
    """One request at a time, on all cores of the budget: the lowest latency for a lone request."""

    multi_stream = "multi_stream"
    """One request per stream, in parallel: the highest throughput."""

    elastic = "elastic"
    """Each request on as many cores as the load allows."""

    default = "single_stream"
    """An alias of single_stream, not a member of its own."""

    @classmethod
    def from_str(cls, word: str) -> Scheduler:
        """The scheduler that `word` names.

        Args:
            word: in any case, one of

                - a member's name, or a member itself;
                - "default", the same as "single_stream";
                - DeepSparse's words: "sync", "single" and "singlestream" for single_stream,
                  "async", "multi" and "multistream" for multi_stream.

        Raises:
            OptionError: `word` is none of these.
        """
        scheduler = _BY_WORD.get(word.lower()) if isinstance(word, str) else None
        if scheduler is None:
            hint = ""
            if word == "auto":
                hint = ". compile_model takes 'auto', where it makes a context of its own"
            raise OptionError(
                f"scheduler must be one of {', '.join(Scheduler)} (or DeepSparse's words sync, "
                f"single, singlestream, async, multi, multistream, default), got {word!r}{hint}"
            )
        return scheduler


_BY_WORD = {
    **Scheduler.__members__,
    "single": Scheduler.single_stream,
    "sync": Scheduler.single_stream,
    "singlestream": Scheduler.single_stream,
    "multi": Scheduler.multi_stream,
    "async": Scheduler.multi_stream,
    "multistream": Scheduler.multi_stream,
}
