"""Every order of the threads' steps: models for spin."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from proofs.proof import Proof, Verdict, build, in_order, run

_FOLDER = Path(__file__).parent


class Model(Proof):
    """A Promela model. A mutant is a macro."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "MUTANT_")
        self.promises_progress = "\nltl " in self.text

    def check(self, mutant: str | None) -> Verdict:
        """Its assertions, then its progress. The size is the number of states."""
        verdict = self._explore(mutant, of_progress=False)
        if verdict.fails or not self.promises_progress:
            return verdict
        progress = self._explore(mutant, of_progress=True)
        return progress._replace(
            size=verdict.size + progress.size, problems=verdict.problems + progress.problems
        )

    def _explore(self, mutant: str | None, of_progress: bool) -> Verdict:
        with tempfile.TemporaryDirectory() as folder:
            define = [f"-D{mutant}"] if mutant else []
            build(["spin", "-a", *define, str(self.path)], folder)
            options = ["-DNFAIR=3"] if of_progress else ["-DSAFETY", "-DNOCLAIM"]
            speed = "-O0" if mutant else "-O1"  # most mutants fail before a compiler's work pays
            build(["cc", "-w", speed, *options, "-o", "pan", "pan.c"], folder)
            # -E: threads may wait for ever at the end; where they may not, that is asserted.
            how = ["-a", "-f"] if of_progress else []
            _, output = run(["./pan", "-m1000000", "-E", *how], folder)
        signs = ("max search depth too small", "out of memory")
        problems = [sign for sign in signs if sign in output]
        if mutant is None and not of_progress:
            # An assertion that is never reached holds of anything.
            unreached = r"^\t\S*?(\w+\.pml:\d+), state \d+, \"(?!-end-)(.+)\"$"
            problems += [
                f"{place} is never reached: {what}"
                for place, what in re.findall(unreached, output, re.M)
            ]
        errors, states = (
            int(re.search(pattern, output)[1]) for pattern in (r"errors: (\d+)", r"(\d+) states, s")
        )
        return Verdict(errors > 0, states, problems, output)


def proofs() -> list[Proof]:
    return in_order([Model(path) for path in _FOLDER.glob("*.pml")])
