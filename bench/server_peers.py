"""`deepsched serve` beside servers of others, each with the same model and the same clients.

    python -m bench.server_peers --peer kserve=PYTHON --peer mlserver=PYTHON --peer pytriton=PYTHON
        [--model squeezenet] [--callers 1,4,16] [--seconds 3] [--rounds 3]

PYTHON is an interpreter whose environment has that server (kserve, mlserver or nvidia-pytriton) and
onnxruntime: they pin versions that others here do not take. pytriton is Triton's server with its
Python backend alone. None of the three brings a server of ONNX models as a package, so each gets
the model as its documentation says to: a class or a function around an onnxruntime session with all
cores, called outside of the event loop.
Throughput is that of closed loops over gRPC; the servers take turns, one runs at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.server import free_port, our_arguments, running, wait_for, wait_ready
from deepsched.benchmark import bundled_model, measure
from deepsched.client.engine import RemoteEngine, open_server
from deepsched.errors import ServerError

SESSION = """
import functools, sys
import numpy as np
import onnxruntime
path, http, grpc, metrics = sys.argv[1], *map(int, sys.argv[2:])

@functools.cache  # when it is first used: some servers fork before
def session():
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
"""

KSERVE = """
import asyncio
import kserve

class Onnx(kserve.Model):
    def __init__(self):
        super().__init__("model")
        self.ready = True

    async def get_input_types(self):
        return [{"name": it.name, "datatype": "FP32", "shape": it.shape}
                for it in session().get_inputs()]

    async def predict(self, payload, headers=None, response_headers=None):
        given = {it.name: it.as_numpy() for it in payload.inputs}
        results = await asyncio.to_thread(session().run, None, given)
        outputs = []
        for info, array in zip(session().get_outputs(), results):
            output = kserve.InferOutput(info.name, list(array.shape), "FP32")
            output.set_data_from_numpy(array, binary_data=True)
            outputs.append(output)
        return kserve.InferResponse(payload.id or "", "model", outputs)

kserve.ModelServer(http_port=http, grpc_port=grpc, enable_grpc=True).start([Onnx()])
"""

MLSERVER = """
import asyncio
import mlserver
from mlserver.codecs import NumpyCodec

class Onnx(mlserver.MLModel):
    async def predict(self, payload):
        given = {it.name: NumpyCodec.decode_input(it) for it in payload.inputs}
        results = await asyncio.to_thread(session().run, None, given)
        outputs = [NumpyCodec.encode_output(info.name, array)
                   for info, array in zip(session().get_outputs(), results)]
        return mlserver.types.InferenceResponse(model_name="model", outputs=outputs)

async def main():
    settings = mlserver.Settings(
        host="127.0.0.1", http_port=http, grpc_port=grpc, metrics_port=metrics,
        parallel_workers=0, debug=False, grpc_max_message_length=1 << 27)
    inputs = [mlserver.types.MetadataTensor(name=it.name, datatype="FP32", shape=it.shape)
              for it in session().get_inputs()]
    model = mlserver.ModelSettings(name="model", implementation=Onnx, inputs=inputs)
    await mlserver.MLServer(settings).start([model])

asyncio.run(main())
"""

PYTRITON = """
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

@batch
def infer(**given):
    results = session().run(None, given)
    return {it.name: array for it, array in zip(session().get_outputs(), results)}

def tensors(infos):
    return [Tensor(name=it.name, dtype=np.float32, shape=tuple(it.shape[1:])) for it in infos]

config = TritonConfig(http_port=http, grpc_port=grpc, metrics_port=metrics)
with Triton(config=config) as triton:
    triton.bind(model_name="model", infer_func=infer, inputs=tensors(session().get_inputs()),
                outputs=tensors(session().get_outputs()), config=ModelConfig(max_batch_size=1))
    triton.serve()
"""

PEERS = {"kserve": KSERVE, "mlserver": MLSERVER, "pytriton": PYTRITON}


@contextlib.contextmanager
def ours(model: str) -> Iterator[RemoteEngine]:
    http, rpc = free_port(), free_port()
    with running(our_arguments(f"model={model}", http, rpc), http):
        wait_ready(http)
        with contextlib.closing(open_server(f"grpc://127.0.0.1:{rpc}", "model")) as remote:
            yield remote


@contextlib.contextmanager
def other(name: str, python: str, model: str) -> Iterator[RemoteEngine]:
    http, rpc, metrics = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "log"), "w") as log:
        program = Path(folder, "server.py")
        program.write_text(SESSION + PEERS[name])
        arguments = [python, str(program), model, *map(str, (http, rpc, metrics))]
        process = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=folder)
        try:
            wait_for(rpc)
            with contextlib.closing(connected(rpc)) as remote:
                yield remote
        except (SystemExit, ServerError):
            print(Path(folder, "log").read_text()[-2000:])
            raise
        finally:
            process.terminate()
            process.wait()


def connected(port: int) -> RemoteEngine:
    """To a server that may listen before it has its model."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return open_server(f"grpc://127.0.0.1:{port}", "model")
        except ServerError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--model", default="squeezenet")
    parser.add_argument("--callers", default="1,4,16")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    model = str(bundled_model(args.model))
    servers = {"deepsched serve": lambda: ours(model)}
    for peer in args.peer:
        name, _, python = peer.partition("=")
        servers[name] = lambda name=name, python=python: other(name, python, model)
    callers = [int(number) for number in args.callers.split(",")]
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.rounds):
        for name, serving in servers.items():
            with serving() as remote:
                for number in callers:
                    result = measure(remote, callers=number, seconds=args.seconds)
                    rates.setdefault((name, number), []).append(result.items_per_sec)
    table = Table("requests a second", *(f"{number} clients" for number in callers))
    for name in servers:
        table.add_row(
            name, *(f"{statistics.median(rates[name, number]):.1f}" for number in callers)
        )
    Console().print(table)


if __name__ == "__main__":
    main()
