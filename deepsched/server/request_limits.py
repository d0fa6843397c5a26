"""RequestLimits: how long a request may take and how urgent it is, by what it and its model say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from deepsched.server.errors import RequestError

_MOST_DIGITS = 20  # of 64 bits


def integer_of(value: Any) -> Any:
    """A parameter's value; an integer where it is digits, as some clients write 64-bit integers.

    >>> integer_of("12"), integer_of("a dozen")
    (12, 'a dozen')
    """
    if type(value) is str and value.isdecimal() and len(value) <= _MOST_DIGITS:
        return int(value)
    return value


class RequestLimits(NamedTuple):
    """What a model's configuration says of its requests; as if it had none."""

    timeout: float | None = None
    """Seconds, of requests that ask for none; None: no limit."""
    may_override: bool = True
    """Whether a request may ask for another timeout."""
    priority_levels: int = 3
    """1 is the highest; the engine has three: high, normal and low."""
    default_priority: int = 2
    """The level of requests that ask for 0, or for one that there is not."""

    def seconds(self, parameters: Mapping[str, Any], limit: float | None) -> float | None:
        """Seconds that a request may take.

        Args:
            parameters: its own: `timeout` is in microseconds, 0 for none.
            limit: what else limits it, in seconds; None: nothing.

        Raises:
            RequestError: a timeout that is none.

        Example:
            >>> RequestLimits(timeout=2.0).seconds({"timeout": 500000}, None)
            0.5
        """
        timeout = self.timeout
        asked = parameters.get("timeout")
        if asked:
            asked = integer_of(asked)
            if type(asked) is not int or not 0 < asked < 2**63:
                raise RequestError(
                    f"parameter 'timeout': expected microseconds, an integer, got {asked!r:.40}"
                )
            if self.may_override:
                timeout = asked / 1e6
        if timeout is None or limit is None:
            return limit if timeout is None else timeout
        return min(timeout, limit)

    def engine_priority(self, parameters: Mapping[str, Any]) -> int:
        """The engine's priority for a request's `priority`.

        Raises:
            RequestError: a priority that is none.

        Example:
            >>> [RequestLimits().engine_priority({"priority": it}) for it in (0, 1, 2, 3, 4)]
            [0, 1, 0, -1, 0]
            >>> limits = RequestLimits(priority_levels=2)
            >>> [limits.engine_priority({"priority": it}) for it in (0, 1, 2)]
            [0, 1, 0]
        """
        level = integer_of(parameters.get("priority", 0))
        if type(level) is not int or level < 0:
            raise RequestError(
                f"parameter 'priority': expected an integer, 1 the highest, got {level!r:.40}"
            )
        if not 0 < level <= self.priority_levels:
            level = self.default_priority
        return self._third(level)

    def _third(self, level: int) -> int:
        """Of three levels and more, the thirds are high, normal and low; two are high and normal,
        one is normal."""
        if self.priority_levels < 3:
            return int(level < self.priority_levels)
        third = self.priority_levels / 3
        return int(level <= third) - int(level > 2 * third)
