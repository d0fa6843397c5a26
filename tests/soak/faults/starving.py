"""Memory that the kernel refuses (RLIMIT_AS) in the middle of a call, in a child process."""

from __future__ import annotations

import subprocess
import sys

from tests.soak.rounds import Round

_MAX_S = 120

_CHILD = """
import asyncio, random, resource, sys
import numpy as np
from deepsched import Engine
from deepsched.errors import DeepschedError

rng = random.Random(int(sys.argv[2]))
unlimited = resource.getrlimit(resource.RLIMIT_AS)
answered = refused = 0
with Engine(sys.argv[1], None, scheduler=rng.choice(["single_stream", "elastic"])) as engine:
    ways = [
        engine.run,
        lambda inputs: engine.submit(inputs).result(60),
        lambda inputs: asyncio.run(engine.run_async(inputs)),
        lambda inputs: next(engine.map([inputs])),
    ]
    for way in ways:
        way([np.zeros(1, np.float32), np.zeros(1, np.int64)])  # its threads are there
    for number in range(60):
        x = np.arange(1 << 20, dtype=np.float32) + number
        index = np.resize(np.arange(0, 1 << 20, 17), 1 << rng.randrange(10, 23))
        engine.trim()
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        room = rng.choice([0, 64 << 10, 1 << 20, 4 << 20, 16 << 20])
        try:
            resource.setrlimit(resource.RLIMIT_AS, (used + room, unlimited[1]))
            (y,) = rng.choice(ways)([x, index])
        except (DeepschedError, MemoryError, OSError) as error:
            refused += 1
        else:
            answered += 1
            assert np.array_equal(y, x[index])
        finally:
            resource.setrlimit(resource.RLIMIT_AS, unlimited)
        (y,) = engine.run([x, index])
        assert np.array_equal(y, x[index])
    assert engine.stats().queue_depth == 0
print(answered, refused)
"""


def starving(round: Round) -> None:
    """A call is answered or says what was missing; the next one, with memory, is answered."""
    gather = next(kind for kind in round.kinds if kind.name == "gather")
    seed = str(round.rng.randrange(10**6))
    ran = subprocess.run(
        [sys.executable, "-c", _CHILD, gather.path, seed],
        capture_output=True,
        text=True,
        timeout=_MAX_S,
        check=False,
    )
    if ran.returncode:
        round.ledger.breach(f"starving {seed} ended with {ran.returncode}: {ran.stderr[-3000:]}")
        return
    answered, refused = map(int, ran.stdout.split())
    round.ledger.count("calls without memory: answered", answered)
    round.ledger.count("calls without memory: refused", refused)
