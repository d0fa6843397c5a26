"""Checks the protocols of deepsched/runtime/README.md: python -m proofs [NAME ...]

* steps/NAME.pml, a model for spin: every order of the threads' steps, each of which is seen by all
  (what sequential consistency gives). Safety by assertions; where the section promises progress, as
  a formula that holds as long as each thread that can go on does at some time.
* orders/NAME.cpp, the steps whose memory orders matter, for Relacy: every value that the C++ memory
  model lets a load see, and data races.

The comment at the head of each names its section, its property, what it leaves out, and its
mutants: mistakes that the section warns of, and weaker orders. Each mutant has to fail. Prints the
rows of the tables in that README; exits with status 1 if anything is not as it should be. It takes
two minutes on two cores, and needs

    apt-get install -y --no-install-recommends spin relacy-dev g++
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from proofs import orders, steps
from proofs.proof import Proof, Verdict


def proofs() -> list[Proof]:
    """Of both kinds, each in the order of the README's sections."""
    return [*steps.proofs(), *orders.proofs()]


def _tell(proof: Proof, mutant: str | None, verdict: Verdict) -> bool:
    """Prints what is wrong, and the row of what is not a mutant. Whether all is right."""
    wrong = list(verdict.problems)
    if verdict.fails != bool(mutant):
        wrong.append("is not caught" if mutant else f"fails: {verdict.output}")
    if mutant is None:
        print(proof.row(verdict.size), flush=True)
    for what in wrong:
        print(f"WRONG {proof.path.name} {mutant or ''}: {what}", flush=True)
    return not wrong


def main(names: list[str]) -> int:
    chosen = [proof for proof in proofs() if not names or proof.path.stem in names]
    cases = [(proof, mutant) for proof in chosen for mutant in (None, *proof.mutants)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        verdicts = threads.map(lambda case: case[0].check(case[1]), cases)
        told = [_tell(*case, verdict) for case, verdict in zip(cases, verdicts, strict=True)]
    print(f"{len(chosen)} proofs, {len(cases) - len(chosen)} mutants", flush=True)
    return 0 if cases and all(told) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
