"""Harsh surroundings: another soak in them, as a child process, with the load and other faults."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.soak.rounds import Round

_MAX_S = 240


def soak_within(
    round: Round,
    name: str,
    start: Callable[..., subprocess.Popen[str]],
    faults: str,
    disturb: Callable[[], None] = lambda: None,
) -> None:
    """A soak of two rounds, by `start`, which takes a command and is as Popen. `disturb` is called
    again and again meanwhile. Its breaches are breaches here."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "tests.soak", "--rounds", "2", "--faults", faults]
        command += ["--seed", str(round.rng.randrange(10**6)), "--json", str(report)]
        errors = (Path(folder) / "errors").open("w+")
        with errors, start(command, stdout=subprocess.DEVNULL, stderr=errors) as process:
            end = time.monotonic() + _MAX_S
            while process.poll() is None and time.monotonic() < end:
                disturb()
                round.pause(0.5)
            process.kill()
            process.wait()
            errors.seek(0)
            if process.returncode:
                round.ledger.breach(
                    f"{name}: {' '.join(command)} ended with {process.returncode}: "
                    f"{errors.read()[-3000:]}"
                )
                return
        counts: dict[str, Any] = json.loads(report.read_text())["counts"]
        round.ledger.count(f"{name}: calls done", counts["calls done"])
        round.ledger.count(f"{name}: soaks")
