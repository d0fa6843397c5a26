"""The result of one check, and of all of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


class Status(enum.StrEnum):
    """The outcome of a check. Members equal their strings."""

    ok = "ok"
    """Nothing to do."""

    warn = "warn"
    """It costs speed, accuracy or memory, and something can be done."""

    unknown = "unknown"
    """The machine does not report it."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    """The check's name; stable across versions."""
    status: Status
    found: str
    """The facts, with units."""
    meaning: str = ""
    """The effect on inference, where it is not obvious."""
    advice: str = ""
    """What to do: commands and options; empty unless the status is warn."""
    data: dict[str, Any] = field(default_factory=dict)
    """The facts, for programs."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain types, for JSON."""
        return {
            "name": self.name,
            "status": str(self.status),
            "found": self.found,
            "meaning": self.meaning,
            "advice": self.advice,
            "data": self.data,
        }


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The findings of `check_hardware`; `str()` gives them as lines."""

    checks: tuple[Check, ...]

    def __getitem__(self, name: str) -> Check:
        """The check of that name.

        Raises:
            KeyError: no such check.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    @property
    def warnings(self) -> tuple[Check, ...]:
        """The checks that found something to do."""
        return tuple(check for check in self.checks if check.status == Status.warn)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain types, for JSON."""
        return {
            "num_warnings": len(self.warnings),
            "checks": [check.to_dict() for check in self.checks],
        }

    def __str__(self) -> str:
        return "\n".join(line for check in self.checks for line in _lines(check))


def _lines(check: Check) -> list[str]:
    lines = [f"{check.name}: {check.status}: {check.found}"]
    return lines + [f"    {text}" for text in (check.meaning, check.advice) if text]


def ok(name: str, found: str, meaning: str = "", /, **data: Any) -> Check:
    """A check that found nothing to do."""
    return Check(name, Status.ok, found, meaning, data=data)


def warn(name: str, found: str, meaning: str, advice: str, /, **data: Any) -> Check:
    """A check that found something to do."""
    return Check(name, Status.warn, found, meaning, advice, data)


def unknown(name: str, found: str, /, **data: Any) -> Check:
    """A check of something that the machine does not report."""
    return Check(name, Status.unknown, found, data=data)
