"""A model behind gunicorn: each worker leases an equal share of the cores.

    MODEL=model.onnx gunicorn --workers 2 examples.workers.gunicorn_app:app

Nothing here asks for a lease: deepsched sees that this is one of several workers, and of how many.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from deepsched import compile_model
from deepsched.benchmark import bundled_model

# In the worker: gunicorn imports the application after it has forked, unless it is told to preload.
engine = compile_model(os.environ.get("MODEL") or bundled_model("squeezenet"))
inputs = engine.generate_random_inputs()


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answers every request with one of the model."""
    outputs = engine.run(inputs, timeout=10)
    start_response("200 OK", [("Content-Type", "application/json")])
    answer = {
        "pid": os.getpid(),
        "cpus": engine.context.topology.cpus,
        "shapes": [output.shape for output in outputs],
    }
    return [json.dumps(answer).encode()]
