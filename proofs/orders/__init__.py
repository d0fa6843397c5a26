"""Every value that the C++ memory model lets a load see: checks for Relacy."""

from __future__ import annotations

import re
import tempfile
import threading
from pathlib import Path

from proofs.proof import Proof, Verdict, build, in_order, run

_FOLDER = Path(__file__).parent


class Check(Proof):
    """A C++ program. A mutant has a weaker order in one place."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "[A-Z_]+$")
        self._built: tempfile.TemporaryDirectory[str] | None = None
        self._building = threading.Lock()

    def check(self, mutant: str | None) -> Verdict:
        """The size is the number of executions."""
        with self._building:
            if self._built is None:
                built = tempfile.TemporaryDirectory()
                source = str(self.path)
                build(["c++", "-w", "-std=c++17", "-o", "check", source], built.name)
                self._built = built
        status, output = run(["./check"], self._built.name, MUTANT=mutant or "")
        found = re.search(r"iterations: (\d+)", output)
        return Verdict(status != 0, int(found[1]) if found else 0, [], output[-3000:])


def proofs() -> list[Proof]:
    return in_order([Check(path) for path in _FOLDER.glob("*.cpp")])
