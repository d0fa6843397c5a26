"""What models of both kinds have in common: what is read from the comment at their head."""

from __future__ import annotations

import os
import re
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
README = FOLDER.parent / "deepsched" / "runtime" / "README.md"

_SECONDS = 120


class Verdict(NamedTuple):
    fails: bool
    size: int
    """How much was explored."""
    problems: list[str]
    """Why it says less than it should."""
    output: str


class Proof(ABC):
    """A property of a section of the README, and mutants for which it does not hold."""

    def __init__(self, path: Path, mutants: str) -> None:
        self.path = path
        self.text = path.read_text()
        head = re.sub(r"\n \* {2,}", " ", self.text[: self.text.index("*/")])
        fields = dict(re.findall(r"^(?:/| )\* (.+?): (.+)$", head, re.M))
        self.section = fields["Section"]
        self.property = fields["Property"]
        self.mutants = [name for name in fields if re.match(mutants, name)]

    @abstractmethod
    def check(self, mutant: str | None) -> Verdict:
        """Explores it, or a mutant."""

    def row(self, size: int) -> str:
        """Of the README's table."""
        name = self.path.relative_to(FOLDER)
        return f"| {self.section} | `{name}` | {self.property} | {len(self.mutants)} | {size:,} |"


def in_order(proofs: list[Proof]) -> list[Proof]:
    """By section, then by name."""
    sections = re.findall(r"^## (.+)$", README.read_text(), re.M)
    return sorted(proofs, key=lambda proof: (sections.index(proof.section), proof.path.name))


def run(command: list[str], folder: str, **environment: str) -> tuple[int, str]:
    """Exit status, and what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SECONDS,
    )
    return done.returncode, done.stdout


def build(command: list[str], folder: str) -> None:
    """Raises RuntimeError if it fails."""
    status, output = run(command, folder)
    if status:
        raise RuntimeError(f"{' '.join(command)}: {output}")
