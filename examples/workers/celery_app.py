"""A model behind Celery: each process of a worker's pool leases an equal share of the cores.

    MODEL=model.onnx celery -A examples.workers.celery_app worker --concurrency 2

BROKER is where tasks come from; unless it is set, a folder of this machine.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_process_init

from deepsched import Engine, compile_model
from deepsched.benchmark import bundled_model

_folder = Path(os.environ.get("BROKER") or Path(tempfile.gettempdir()) / "deepsched-tasks")
for name in ("tasks", "control", "results"):
    (_folder / name).mkdir(parents=True, exist_ok=True)

app = Celery("deepsched", broker="filesystem://", backend=f"file://{_folder / 'results'}")
app.conf.broker_transport_options = {
    "data_folder_in": str(_folder / "tasks"),
    "data_folder_out": str(_folder / "tasks"),
    "control_folder": str(_folder / "control"),
}
engines: list[Engine] = []


@worker_process_init.connect
def open_engine(**_: Any) -> None:
    """In each process of the pool: an engine does not survive a fork."""
    engines.append(compile_model(os.environ.get("MODEL") or bundled_model("squeezenet")))


@app.task
def infer() -> dict[str, Any]:
    """A request on made-up inputs."""
    (engine,) = engines
    outputs = engine.run(engine.generate_random_inputs())
    return {
        "pid": os.getpid(),
        "cpus": engine.context.topology.cpus,
        "shapes": [output.shape for output in outputs],
    }
