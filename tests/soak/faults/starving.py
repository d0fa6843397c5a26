"""Memory that the kernel refuses (RLIMIT_AS) in the middle of a call, in a child process.

A little is left: without any, glibc itself ends a process ("cannot allocate memory for thread-local
data") when a thread first uses a library.
"""

from __future__ import annotations

import os
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
    small = [np.zeros(1, np.float32), np.zeros(1, np.int64)]
    for way in ways:
        way(small)
    for future in [engine.submit(small) for _ in range(200)]:  # all threads have run once
        future.result()
    for number in range(40):
        x = np.arange(1 << 20, dtype=np.float32) + number
        index = np.resize(np.arange(0, 1 << 20, 17), 1 << rng.choice([12, 18, 20, 22]))
        expected = x[index]
        engine.trim()
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        room = rng.choice([1 << 20, 2 << 20, 8 << 20])
        try:
            resource.setrlimit(resource.RLIMIT_AS, (used + room, unlimited[1]))
            (y,) = rng.choice(ways)([x, index])
        except (DeepschedError, MemoryError, OSError) as error:
            y = None
        finally:
            resource.setrlimit(resource.RLIMIT_AS, unlimited)
        if y is None:
            refused += 1
        else:
            answered += 1
            assert np.array_equal(y, expected)
        del y
        (y,) = engine.run([x, index])
        assert np.array_equal(y, expected)
        del y
    assert engine.stats().queue_depth == 0
print(answered, refused)
"""


def starving(round: Round) -> None:
    """A call is answered or says what was missing; the next one, with memory, is answered."""
    gather = next(kind for kind in round.kinds if kind.name == "gather")
    seed = str(round.rng.randrange(10**6))
    ran = subprocess.run(
        [sys.executable, "-c", _CHILD, gather.path, seed],
        # What is freed goes back to the kernel, so that it can be refused.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000", "MALLOC_TRIM_THRESHOLD_": "0"},
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
