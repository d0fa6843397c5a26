"""Our own checks on machines that are not at hand, emulated: python -m tests.machines [NAME ...]

    python -m tests.machines              # all of them
    python -m tests.machines two-sockets  # one

Each machine of catalog.py is a real Linux under QEMU's software emulation, with its own sockets,
NUMA nodes, caches and control groups. checks.py runs inside. What is checked are facts, never
times. Prints a table; exits with status 1 if anything is not as it should be. It needs root, and

    apt-get install -y --no-install-recommends qemu-system-x86 hwloc-nox
"""

from __future__ import annotations

import re
import sys
import time

from tests.machines.catalog import CASES
from tests.support.guest import kernel, run_python


def main(names: list[str]) -> int:
    chosen = {name: CASES[name] for name in names or CASES}
    columns = list(dict.fromkeys(check for case in chosen.values() for check in case.checks))
    print("|", " | ".join(["machine", *columns, "seconds"]), "|")
    print("|", " | ".join(["---"] * (len(columns) + 2)), "|", flush=True)
    is_right = True
    with kernel() as unpacked:
        for name, case in chosen.items():
            began = time.monotonic()
            output, _ = run_python(unpacked, case.machine, ["-m", "tests.machines.checks", name])
            seconds = time.monotonic() - began
            verdicts = dict(re.findall(r"^(\w+): (ok|WRONG)", output, re.M))
            found = {check: verdicts.get(check, "missing") for check in case.checks}
            cells = [found.get(column, "") for column in columns]
            print("|", " | ".join([name, *cells, f"{seconds:.0f}"]), "|", flush=True)
            if set(found.values()) != {"ok"}:
                print(output, flush=True)
                is_right = False
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
