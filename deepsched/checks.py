"""The checks of options that many calls take: integers, flags and timeouts."""

from __future__ import annotations

import math
import operator
import sys

from deepsched.errors import DeepschedError, OptionError


def check_integer(
    name: str,
    value: object,
    lowest: int,
    highest: int | None = None,
    *,
    unit: str = "",
    otherwise: str = "",
    error: type[DeepschedError] = OptionError,
) -> int:
    """Returns `value` as a plain int.

    Anything with `__index__` is an integer, numpy's included, so that sizes may come from shapes
    and arrays. bool has `__index__` too, but `num_streams=True` is a mistake.

    Args:
        name: the option, as the user wrote it.
        lowest, highest: the bounds, both allowed; `highest` None: what native code can hold.
        unit: what is counted, or where the bound comes from; for the message.
        otherwise: what is allowed instead of an integer; for the message.
        error: what to raise.

    Raises:
        OptionError, or `error`: `value` is no integer, or out of bounds.

    Example:
        >>> import numpy as np
        >>> check_integer("callers", np.int8(4), 1)
        4
        >>> check_integer("num_cores", True, 1, 8)
        Traceback (most recent call last):
        ...
        deepsched.errors.OptionError: num_cores must be an integer between 1 and 8, got True
    """
    number = _index_of(value)
    most = sys.maxsize if highest is None else highest
    if number is not None and lowest <= number <= most:
        return number
    is_huge = number is not None and number > most
    if highest == lowest:
        expected = f"the integer {lowest}" if number is None else f"{lowest}"
    elif highest is not None or is_huge:
        expected = f"an integer between {lowest} and {most}"
    else:
        expected = f"an integer of at least {lowest}"
    if unit:
        expected += f" ({unit})"
    if otherwise:
        expected += f", or {otherwise}"
    raise error(f"{name} must be {expected}, got {value!r}")


def check_optional_integer(
    name: str,
    value: object,
    lowest: int,
    highest: int | None = None,
    *,
    unit: str = "",
    otherwise: str = "None",
    error: type[DeepschedError] = OptionError,
) -> int | None:
    """`check_integer` for an option that may be None.

    >>> check_optional_integer("in_flight", None, 1) is None
    True
    """
    if value is None:
        return None
    return check_integer(name, value, lowest, highest, unit=unit, otherwise=otherwise, error=error)


def check_flag(name: str, value: object, *, otherwise: str = "") -> bool:
    """Returns `value`, True or False, numpy's included, as a plain bool.

    Raises:
        OptionError: it is something else, such as "no", which would count as True.

    Example:
        >>> check_flag("deterministic", "no")
        Traceback (most recent call last):
        ...
        deepsched.errors.OptionError: deterministic must be True or False, got 'no'
    """
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    expected = "True or False" + (f", or {otherwise}" if otherwise else "")
    raise OptionError(f"{name} must be {expected}, got {value!r:.80}")


def check_timeout(timeout: object, name: str = "timeout") -> float | None:
    """Returns `timeout` in seconds as a float, or None; `name` is the option's.

    At most 1e9 s, which are 32 years: native clocks count in ns, and have room for that.

    Raises:
        OptionError: it is no number, or negative.

    Example:
        >>> from decimal import Decimal
        >>> check_timeout(Decimal("0.5")), check_timeout(10**400)
        (0.5, 1000000000.0)
    """
    if timeout is None:
        return None
    seconds = -1.0
    if not isinstance(timeout, (bool, str, bytes)):
        try:
            seconds = float(timeout)  # type: ignore[arg-type]  # raises TypeError if it is none
        except OverflowError:  # an int beyond what a float holds
            seconds = math.inf if timeout > 0 else -1.0  # type: ignore[operator]
        except (TypeError, ValueError):
            pass
    if not seconds >= 0:
        raise OptionError(
            f"{name} must be a number of seconds, at least 0, or None, got {timeout!r:.80}"
        )
    return min(seconds, 1e9)


def _index_of(value: object) -> int | None:
    # By name: numpy 1 gives its bool_ an index, and this module must not need numpy.
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # raises TypeError if it has none
    except TypeError:
        return None
