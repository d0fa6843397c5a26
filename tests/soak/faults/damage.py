"""Files of the cache are damaged: as a disk does it, under another inode, since what is mapped is
only ever replaced. Not the tag: a folder without that is none of ours, and is left alone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from deepsched import Engine
from deepsched.models.tag import TAG
from tests.soak.rounds import Round


def damage(round: Round) -> None:
    """Whoever opens the model next compiles it again, or does without, and answers right."""
    for _ in range(3):
        round.pause(0.5)
        files = sorted(
            path for path in round.cache.rglob("*") if path.is_file() and path.name != TAG
        )
        if files:
            _replace(round, files[round.pick(len(files))])
        kind = round.rng.choice(round.kinds)
        with Engine(kind.path, None, **kind.options) as engine:
            round.check_answer(engine, kind)


def _replace(round: Round, path: Path) -> None:
    way = round.rng.choice(["flipped", "cut", "emptied", "removed", "no permission"])
    with contextlib.suppress(FileNotFoundError):  # evicted or replaced meanwhile
        content = bytearray(path.read_bytes())
        if way == "removed" or not content:
            path.unlink()
        elif way == "no permission":
            path.chmod(0o666)  # anybody may write to it
        else:
            at = round.pick(len(content))
            if way == "flipped":
                content[at] ^= 1 << round.pick(8)
            else:
                del content[at if way == "cut" else 0 :]
            beside = path.with_name(f".tmp-{os.urandom(8).hex()}")
            beside.write_bytes(content)
            beside.chmod(0o600)
            beside.rename(path)
    round.ledger.count(f"files of the cache {way}")
