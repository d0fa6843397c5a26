"""Descriptors of ours, of which each stays what it is: somebody who closes one that is not his, or
twice, hits one of them sooner or later.

The numbers that others have just closed are taken again at once, since the kernel gives the lowest
free one; so a second close of the same number closes one of these.
"""

from __future__ import annotations

import os
import time

from tests.soak.rounds import Round

_AT_ONCE = 4


def descriptors(round: Round) -> None:
    """Opens some, holds them for a moment, and looks whether they are still the same."""
    end = time.monotonic() + 3
    while time.monotonic() < end:
        held = {}
        for number in range(_AT_ONCE):
            fd = os.memfd_create(f"soak-{number}")
            held[fd] = os.fstat(fd).st_ino
        round.pause(0.01)
        for fd, inode in held.items():
            try:
                if os.fstat(fd).st_ino != inode:
                    round.ledger.breach(f"descriptor {fd} has been closed, and is another file")
                os.close(fd)
            except OSError as error:
                round.ledger.breach(f"descriptor {fd} has been closed: {error}")
            round.ledger.count("descriptors watched")
