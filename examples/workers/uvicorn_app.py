"""A model behind uvicorn: each worker leases an equal share of the cores.

MODEL=model.onnx uvicorn --workers 2 examples.workers.uvicorn_app:app
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

from deepsched import compile_model
from deepsched.benchmark import bundled_model

engine = compile_model(os.environ.get("MODEL") or bundled_model("squeezenet"))
inputs = engine.generate_random_inputs()


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answers every request with one of the model."""
    if scope["type"] != "http":
        return
    outputs = await engine.run_async(inputs, timeout=10)
    answer = {
        "pid": os.getpid(),
        "cpus": engine.context.topology.cpus,
        "shapes": [output.shape for output in outputs],
    }
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
