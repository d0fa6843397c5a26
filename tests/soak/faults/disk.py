"""A disk of a few megabytes for the cache and all temporary files, which is full at times."""

from __future__ import annotations

import os
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from tests.soak.faults.harsh import soak_within
from tests.soak.rounds import Round

_MOUNT = 'mount -t tmpfs -o size=3m none "$TMPDIR" && exec "$@"'


def disk(round: Round) -> None:
    """Models are opened all the same, without a compiled form."""
    mounting = ["unshare", "--mount", "sh", "-c", _MOUNT, "sh"]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TMPDIR": folder}
        tried = subprocess.run(
            [*mounting, "true"], env=environment, capture_output=True, text=True, check=False
        )
        if tried.returncode:
            round.ledger.skip("disk", tried.stderr)
            return
        start = partial(_start, mounting, environment)
        soak_within(round, "disk", start, "reopening,filling")


def _start(
    mounting: list[str], environment: dict[str, str], command: list[str], **options: object
) -> subprocess.Popen[str]:
    return subprocess.Popen([*mounting, *command], env=environment, **options)  # type: ignore


def filling(round: Round) -> None:
    """On such a disk: takes all that is free, and gives it back."""
    filler = round.folder / "filler"
    for _ in range(8):
        try:
            with filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        except OSError:
            round.ledger.count("times the disk was full")
        round.pause(0.5)
        Path(filler).unlink(missing_ok=True)
        round.pause(0.2)
