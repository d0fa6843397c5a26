"""A batch job over a folder: every .npy file (and image, with Pillow) through the model.

    python -m examples.batch_folder --demo 200 pictures
    python -m examples.batch_folder pictures results

The first line makes files up. The second writes `results/NAME.npy`, the model's first output, for
each file of `pictures`, with a progress bar. It may be stopped at any time (Ctrl-C, SIGTERM, a
crash) and started again: a result appears by one rename, complete, and what has one is not done
again. Files that cannot be read, or that the model does not take, are reported and left out.

Exit codes: 0, all done; 1, files were left out; 2, bad arguments; 130, stopped.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deepsched import Engine
from deepsched.benchmark import bundled_model
from deepsched.errors import DeepschedError, InferenceError, InputError

IMAGES = {".jpg", ".jpeg", ".png", ".webp"}

Report = Callable[[Path, str | None], None]
"""Is told of each file when it ends, and what was wrong with it, if something was."""


def find_work(source: Path, target: Path) -> list[Path]:
    """The files of `source` that have no result in `target` yet."""
    kinds = {".npy"} | (IMAGES if _has_pillow() else set())
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in kinds)
    return [path for path in files if not result_of(path, target).exists()]


def result_of(path: Path, target: Path) -> Path:
    """Where the result of a file is. The whole name counts: a.png and a.jpg are two files."""
    name = path.name if path.suffix != ".npy" else path.stem
    return target / f"{name}.npy"


def process(
    engine: Engine,
    files: Sequence[Path],
    target: Path,
    report: Report,
    in_flight: int | None = None,
) -> None:
    """Runs the model on each file and saves what it says.

    `Engine.map` reads ahead only as far as keeps all streams busy, so memory does not grow with
    the folder. It ends at the first item that fails, and what was under way behind it is
    cancelled; so that is put back, and the map is started again.
    """
    waiting = deque(files)
    while waiting:
        taken: deque[Path] = deque()  # from `waiting`, and not reported
        inputs = _read(engine, waiting, taken, report)
        try:
            for outputs in engine.map(inputs, in_flight):
                path = taken.popleft()
                save(result_of(path, target), outputs[0])
                report(path, None)
        except (InputError, InferenceError) as error:
            report(taken.popleft(), str(error))
            waiting.extendleft(reversed(taken))


def _read(
    engine: Engine, waiting: deque[Path], taken: deque[Path], report: Report
) -> Iterator[list[Any]]:
    """The inputs, as they are asked for; files that cannot be read are reported."""
    while waiting:
        path = waiting.popleft()
        try:
            x = _image(path, engine) if path.suffix.lower() in IMAGES else _array(path)
        except (OSError, ValueError, EOFError, MemoryError) as error:
            report(path, f"cannot be read: {error}")
            continue
        taken.append(path)
        yield [x]


def save(path: Path, array: Any) -> None:
    """Writes the file so that it is there whole, or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            np.save(file, array)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _has_pillow() -> bool:
    try:
        import PIL  # noqa: F401
    except ImportError:
        return False
    return True


def _array(path: Path) -> Any:
    with open(path, "rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _image(path: Path, engine: Engine) -> Any:
    """RGB, as large as the model takes it, from 0 to 1; what it was trained on may differ."""
    from PIL import Image

    height, width = (size if isinstance(size, int) else 224 for size in engine.input_shapes[0][-2:])
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((width, height)), np.float32)
    except (SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None] / 255)


# --- The program ----------------------------------------------------------------------------------


def make_up(folder: Path, number: int, engine: Engine) -> None:
    """Files to try this with."""
    folder.mkdir(exist_ok=True)
    (x,) = engine.generate_random_inputs()
    for index in range(number):
        save(folder / f"{index:06}.npy", x + np.asarray(index / number, x.dtype))


def run(args: argparse.Namespace, engine: Engine) -> int:
    """Does what is left to do, and says how it went. Returns the exit code."""
    target = Path(args.target)
    target.mkdir(parents=True, exist_ok=True)
    files = find_work(Path(args.source), target)
    failures: list[str] = []
    columns = (
        TextColumn("{task.description}"),
        *Progress.get_default_columns()[1:3],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(args.source, total=len(files))

        def report(path: Path, error: str | None) -> None:
            if error is not None:
                failures.append(path.name)
                progress.console.print(f"{path}: {error}", markup=False, highlight=False)
            progress.advance(task)

        process(engine, files, target, report, args.in_flight)
    print(f"{len(files) - len(failures)} done, {len(failures)} left out")
    return 1 if failures else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Runs a model on each file of a folder.")
    parser.add_argument("source", help="folder of .npy files or images")
    parser.add_argument("target", nargs="?", help="folder for the results")
    parser.add_argument("--model", help="path of an ONNX file (default: SqueezeNet)")
    parser.add_argument("--scheduler", default="elastic")
    parser.add_argument("--in-flight", type=int, help="files under way (default: as many as help)")
    parser.add_argument("--demo", type=int, metavar="N", help="fill `source` with N files instead")
    args = parser.parse_args()
    if (args.target is None) == (args.demo is None):
        parser.error("give a target, or --demo N")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Engine(args.model or bundled_model("squeezenet"), scheduler=args.scheduler) as engine:
            if args.demo is not None:
                make_up(Path(args.source), args.demo, engine)
                return 0
            return run(args, engine)
    except (DeepschedError, OSError) as error:
        print(f"batch_folder: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; start it again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
