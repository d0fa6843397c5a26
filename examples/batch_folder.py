"""A batch job over a folder: every .npy file (and image, with Pillow) through the model.

    python -m examples.batch_folder --demo 200 pictures
    python -m examples.batch_folder pictures results

The first line makes files up. The second writes `results/NAME.npy`, the model's first output, for
each file of `pictures`, with a progress bar. NAME is the whole name: `a.npy.npy` for `a.npy`. It
may be stopped at any time (Ctrl-C, SIGTERM, a crash) and started again: a result appears by one
rename, complete, and what has one is not done again. Files that cannot be read, or that the model
does not take, are reported and left out.

Exit codes: 0, all done; 1, files were left out; 2, bad arguments; 3, a result could not be written,
as on a full disk; 130, stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import platform
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
from deepsched.errors import DeepschedError, InferenceError, InputError, OptionError
from examples.decoding import SUFFIXES, check_fits, decode_image, read_npy

Report = Callable[[Path, str | None], None]
"""Is told of each file when it ends, and what was wrong with it, if something was."""


def find_work(source: Path, target: Path) -> list[Path]:
    """The files of `source` that have no result in `target` yet."""
    kinds = {".npy"} | (SUFFIXES if _has_pillow() else set())
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in kinds)
    return [path for path in files if not result_of(path, target).exists()]


def result_of(path: Path, target: Path) -> Path:
    """Where the result of a file is. By its whole name: a.png, a.npy and a.png.npy are three."""
    return target / f"{path.name}.npy"


class CannotSave(Exception):  # noqa: N818
    """A result could not be written; what is behind it could not either."""


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
    """The inputs, as they are asked for; files that cannot be read, or do not fit, are reported.

    An input that the engine refuses would end the `map`, and let the streams run dry.
    """
    shape, dtype = engine.input_shapes[0], engine.input_dtypes[0]
    while waiting:
        path = waiting.popleft()
        try:
            is_image = path.suffix.lower() in SUFFIXES
            x = decode_image(path, shape) if is_image else read_npy(path)
            check_fits(x, shape, dtype)
        except InputError as error:
            report(path, str(error))
            continue
        taken.append(path)
        yield [x]


def save(path: Path, array: Any) -> None:
    """Writes the file so that it is there whole, or not at all, also after a crash."""
    unfinished = path.with_name(f"{_unfinished()}{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())  # else the name may get to the disk before the contents
        os.replace(unfinished, path)
    except OSError as error:
        raise CannotSave(f"{path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # the one above tells more
            unfinished.unlink(missing_ok=True)


def remove_unfinished(target: Path) -> None:
    """What processes of this machine were writing when they died."""
    for path in target.glob(f"{_unfinished()}*"):
        with contextlib.suppress(ValueError, OverflowError, PermissionError):  # not ours, or alive
            try:
                os.kill(int(path.name.removeprefix(_unfinished())), 0)
            except ProcessLookupError:
                path.unlink(missing_ok=True)


def _unfinished() -> str:
    """How the name begins; a process's number follows. One is enough, `save` runs in one thread.

    With the host, since a container has numbers of its own, and may share the folder.
    """
    return f".unfinished-{platform.node()}-"


def sync_names(target: Path) -> None:
    """Gets the renames to the disk: once, since a result that a crash undoes is made again."""
    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does this for files only
            raise CannotSave(f"{target}: {error.strerror}") from error
    finally:
        os.close(folder)


def _has_pillow() -> bool:
    try:
        import PIL  # noqa: F401
    except ImportError:
        return False
    return True


# --- The program ----------------------------------------------------------------------------------


def make_up(folder: Path, number: int, engine: Engine) -> None:
    """Files to try this with."""
    folder.mkdir(exist_ok=True)
    (x,) = engine.generate_random_inputs()
    for index in range(number):
        save(folder / f"{index:06}.npy", x + np.asarray(index / number, x.dtype))


def run(args: argparse.Namespace, engine: Engine) -> int:
    """Does what is left to do, and says how it went. Returns the exit code."""
    source, target = Path(args.source), Path(args.target)
    target.mkdir(parents=True, exist_ok=True)
    if target.samefile(source):
        raise OptionError("source and target are one folder; results would be taken for inputs")
    remove_unfinished(target)
    files = find_work(source, target)
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
    sync_names(target)
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
    except CannotSave as error:
        print(f"batch_folder: cannot write {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("stopped; start it again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
