"""deepsched beside plain onnxruntime, in the usual ways to use it from threads.

    python -m bench.peers [--models resnet50,squeezenet] [--seconds 2] [--rounds 5] [-x out.json]
        [--openvino] [--deepsparse PYTHON]

Each form answers the same closed-loop load from 1, 2, 4 and 8 Python threads. The forms take turns
within a round, so that a machine whose speed drifts treats them alike; what is compared are ratios
of medians over the measurements of one state of the machine (deepsched/machine/state.py).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
from rich.console import Console
from rich.table import Table

from bench.models import CASES, find
from deepsched import Topology, compile_model
from deepsched.benchmark import measure
from deepsched.machine.state import Conditions, StateWatch, by_state, states_of, summarize

NUM_CORES = len(Topology.detect().cores)
RAW = ("raw: all threads", "raw: 1 thread, shared", "raw: one per stream")
OURS = ("deepsched single_stream", "deepsched multi_stream")


def raw_session(model: str | bytes, num_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class RawForms:
    """The ways to call plain onnxruntime from several threads."""

    def __init__(self, model: str | bytes) -> None:
        self.all_threads = raw_session(model, NUM_CORES)
        self.shared = raw_session(model, 1)
        self.per_stream = [raw_session(model, 1) for _ in range(NUM_CORES)]
        self.names = [info.name for info in self.shared.get_inputs()]
        self.idle = list(self.per_stream)

    def feed(self, inputs: list[Any]) -> dict[str, Any]:
        return dict(zip(self.names, inputs, strict=True))

    def run_all_threads(self, inputs: list[Any]) -> Any:
        return self.all_threads.run(None, self.feed(inputs))

    def run_shared(self, inputs: list[Any]) -> Any:
        return self.shared.run(None, self.feed(inputs))

    def run_per_stream(self, inputs: list[Any]) -> Any:
        # The usual pool: whoever finds a session idle takes it; the callers beyond them share.
        try:
            session = self.idle.pop()
        except IndexError:
            return self.per_stream[0].run(None, self.feed(inputs))
        try:
            return session.run(None, self.feed(inputs))
        finally:
            self.idle.append(session)


class OpenVino:
    """OpenVINO's AsyncInferQueue with as many requests under way as there are callers."""

    def __init__(self, model: str | bytes, num_streams: int) -> None:
        import openvino

        core = openvino.Core()
        read = core.read_model(io.BytesIO(model) if isinstance(model, bytes) else model)
        options = {
            "NUM_STREAMS": num_streams,
            "INFERENCE_NUM_THREADS": NUM_CORES,
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the CPU can
        }
        self.compiled = core.compile_model(read, "CPU", options)
        self.make_queue = openvino.AsyncInferQueue

    def measure(self, inputs: list[Any], callers: int, seconds: float) -> tuple[float, float]:
        queue = self.make_queue(self.compiled, callers)
        spans: list[tuple[int, int]] = []
        queue.set_callback(lambda _, begin: spans.append((begin, time.perf_counter_ns())))
        begin = time.perf_counter_ns() + int(seconds / 5 * 1e9)
        end = begin + int(seconds * 1e9)
        while (now := time.perf_counter_ns()) < end:
            queue.start_async(dict(enumerate(inputs)), userdata=now)
        queue.wait_all()
        return _summary(spans, begin, end)


class DeepSparse:
    """DeepSparse in a process of its own, with an interpreter that has it."""

    def __init__(self, python: str, model: str | bytes, scheduler: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        if isinstance(model, bytes):
            path = Path(self.folder.name, "model.onnx")
            path.write_bytes(model)
            model = str(path)
        script = Path(__file__).with_name("deepsparse_peer.py")
        self.process = subprocess.Popen(
            [python, str(script), model, scheduler, str(NUM_CORES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pipes = (self.process.stdin, self.process.stdout)

    def measure(self, inputs: list[Any], callers: int, seconds: float) -> tuple[float, float]:
        given, answers = self.pipes
        assert given is not None and answers is not None
        print(callers, seconds, file=given, flush=True)
        for line in answers:  # DeepSparse prints a banner
            if line.startswith("{"):
                answer = json.loads(line)
                begin, end = answer["begin"], answer["end"]
                return _summary([tuple(span) for span in answer["spans"]], begin, end)
        raise RuntimeError("the DeepSparse process ended; is it installed there, with numpy<2?")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def _summary(spans: list[tuple[int, int]], begin: int, end: int) -> tuple[float, float]:
    """Requests a second and the median latency in ms, of what ended within the time."""
    ended = [stop - start for start, stop in spans if begin < stop <= end]
    if not ended:
        return 0.0, float("nan")
    return len(ended) / (end - begin) * 1e9, statistics.median(ended) / 1e6


Form = Callable[[list[Any], int, float], tuple[float, float]]


def by_threads(run: Callable[[Any], Any]) -> Form:
    """A closed loop from Python threads."""

    def form(inputs: list[Any], callers: int, seconds: float) -> tuple[float, float]:
        result = measure(run, inputs, callers=callers, seconds=seconds, warmup_seconds=seconds / 5)
        return result.items_per_sec, result.percentile(50)

    return form


def compare(
    model: str | bytes,
    callers: list[int],
    seconds: float,
    rounds: int,
    openvino: bool,
    deepsparse: str | None,
) -> dict[str, Any]:
    """{callers: {state: {form: {"items_per_sec": median, "p50_ms": median, "rounds": [...]}}}}."""
    raw = RawForms(model)
    with (
        compile_model(model, scheduler="single_stream") as single,
        compile_model(model, scheduler="multi_stream", num_streams=NUM_CORES) as multi,
        contextlib.ExitStack() as stack,
    ):
        inputs = single.generate_random_inputs()
        runs = (raw.run_all_threads, raw.run_shared, raw.run_per_stream, single.run, multi.run)
        forms = {name: by_threads(run) for name, run in zip(RAW + OURS, runs, strict=True)}
        if openvino:
            for num_streams in sorted({1, NUM_CORES}):
                name = f"OpenVINO, {num_streams} stream{'s' * (num_streams > 1)}"
                forms[name] = OpenVino(model, num_streams).measure
        if deepsparse:
            for scheduler in ("single_stream", "multi_stream"):
                peer = DeepSparse(deepsparse, model, scheduler)
                stack.callback(peer.close)
                forms[f"DeepSparse {scheduler}"] = peer.measure
        results: dict[str, Any] = {}
        for count in callers:
            conditions: list[Conditions] = []
            measured: list[tuple[str, float, float]] = []
            for _ in range(rounds):
                for name, form in forms.items():
                    watch = StateWatch()
                    measured.append((name, *form(inputs, count, seconds)))
                    conditions.append(watch.end())
            print(f"{count} callers: {summarize(states_of(conditions))}", file=sys.stderr)
            results[str(count)] = {
                str(state): {name: _medians(of, name) for name in forms if _rounds(of, name)}
                for state, of in by_state(conditions, measured).items()
            }
    return results


def _rounds(measured: list[tuple[str, float, float]], form: str) -> list[tuple[float, float]]:
    return [(rate, p50) for name, rate, p50 in measured if name == form]


def _medians(measured: list[tuple[str, float, float]], form: str) -> dict[str, Any]:
    pairs = _rounds(measured, form)
    return {
        "items_per_sec": statistics.median(rate for rate, _ in pairs),
        "p50_ms": statistics.median(p50 for _, p50 in pairs),
        "rounds": pairs,
    }


def show(name: str, results: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{name}, {NUM_CORES} cores: items/sec (p50 ms)")
    names = list(
        dict.fromkeys(form for of in results.values() for it in of.values() for form in it)
    )
    for column in ("callers", "state", *names, "multi / best raw", "single p50 / raw p50"):
        table.add_column(column, justify="right")
    for callers, states in results.items():
        for state, forms in states.items():
            cells = (_cell(forms.get(form)) for form in names)
            table.add_row(callers, state, *cells, *_ratios(forms))
    console.print(table)


def _cell(figures: dict[str, Any] | None) -> str:
    return f"{figures['items_per_sec']:,.0f} ({figures['p50_ms']:.3g})" if figures else "-"


def _ratios(forms: dict[str, Any]) -> tuple[str, str]:
    """Where all that they are of was measured in this state."""
    multi = single = "-"
    if {OURS[1], *RAW} <= forms.keys():
        best = max(forms[form]["items_per_sec"] for form in RAW)
        multi = f"{forms[OURS[1]]['items_per_sec'] / best:.2f}"
    if {OURS[0], RAW[0]} <= forms.keys():
        single = f"{forms[OURS[0]]['p50_ms'] / forms[RAW[0]]['p50_ms']:.2f}"
    return multi, single


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--models",
        default="resnet50,squeezenet,shufflenet,mlp 3x128",
        help=f"comma-separated, of {', '.join(CASES)}",
    )
    parser.add_argument("--callers", default="1,2,4,8", help="comma-separated")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--openvino", action="store_true", help="OpenVINO too; needs pip install -e '.[peers]'"
    )
    parser.add_argument(
        "--deepsparse",
        metavar="PYTHON",
        help="DeepSparse too: the interpreter (3.11) of an environment made by "
        "pip install deepsparse==1.8.0 'numpy<2'",
    )
    parser.add_argument("-x", "--export_path", help="write the figures there as JSON")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    everything = {}
    for name in args.models.split(","):
        model = find(name)
        callers = [int(count) for count in args.callers.split(",")]
        everything[name] = compare(
            model, callers, args.seconds, args.rounds, args.openvino, args.deepsparse
        )
        show(name, everything[name], console)
        if args.export_path:
            with open(args.export_path, "w") as file:
                json.dump(everything, file, indent=1)


if __name__ == "__main__":
    main()
