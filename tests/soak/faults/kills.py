"""Children that compile into the same cache are killed on the way."""

from __future__ import annotations

import subprocess
import sys

import onnx

from deepsched import Engine
from tests.soak.kinds import Kind, call_pick, pick
from tests.soak.rounds import Round

_CHILD = """
import sys
from deepsched import Engine
print("ready", flush=True)
with Engine(sys.argv[1], None):
    pass
"""


def kills(round: Round) -> None:
    """What they leave keeps nobody from opening the model, and goes."""
    for _ in range(2):
        seed = round.rng.randrange(1, 2**32)
        path = round.folder / "new.onnx"
        onnx.save(pick(seed), path)
        with subprocess.Popen(
            [sys.executable, "-c", _CHILD, path], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            round.pause(round.rng.choice([0.05, 0.2, 0.5]))
            child.kill()
        round.ledger.count("children killed")
        with Engine(path, None) as engine:
            call = call_pick(round.rng, seed=seed)
            outputs = engine.run(call.inputs)
            if not Kind("pick", str(path)).is_right(call, outputs):
                round.ledger.breach("a wrong answer of a model that a killed child compiled")
        path.unlink()
