"""A batch job over a folder: every .npy file (and image, with Pillow) through the model.

    python -m examples.batch_folder --demo 200 pictures
    python -m examples.batch_folder pictures results

The first line makes files up. The second writes `results/NAME.npy`, the model's first output, for
each file of `pictures`, with a progress bar. NAME is the whole name: `a.npy.npy` for `a.npy`. It
may be stopped at any time (Ctrl-C, SIGTERM, a crash) and started again: a result appears by one
rename, complete, and what has one is not done again. Several jobs may share the folders, on several
hosts and in containers.

Whatever else is in `pictures` is named and counted as left out: files that cannot be read, that the
model does not take or whose name is too long for a result's, images where there is no Pillow, files
of other kinds, and folders.

Exit codes: 0, all done; 1, something was left out; 2, bad arguments; 3, a result could not be
written, as on a full disk; 130, stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import secrets
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deepsched import Engine
from deepsched.benchmark import bundled_model
from deepsched.errors import DeepschedError, InferenceError, InputError, OptionError
from examples.decoding import SUFFIXES, Shape, check_fits, decode_image, read_npy

Report = Callable[[Path, str | None], None]
"""Is told of each file when it ends, and what was wrong with it, if something was."""


UNFINISHED = ".unfinished-"
"""How the names of results begin that are being written."""


def find_work(files: Iterable[Path], target: Path) -> list[Path]:
    """Those of `files` that have no result in `target` yet."""
    # os.path: for Path.exists a name that is too long is an error.
    return sorted(path for path in files if not os.path.exists(result_of(path, target)))


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
        inputs = _read(engine, waiting, taken, target, report)
        try:
            for outputs in engine.map(inputs, in_flight):
                path = taken.popleft()
                save(result_of(path, target), outputs[0])
                report(path, None)
        except (InputError, InferenceError) as error:
            report(taken.popleft(), str(error))
            waiting.extendleft(reversed(taken))


def _read(
    engine: Engine, waiting: deque[Path], taken: deque[Path], target: Path, report: Report
) -> Iterator[list[Any]]:
    """The inputs, as they are asked for; files that cannot be read, or do not fit, are reported.

    An input that the engine refuses would end the `map`, and let the streams run dry.
    """
    shape, dtype = engine.input_shapes[0], engine.input_dtypes[0]
    longest = os.pathconf(target, "PC_NAME_MAX")
    while waiting:
        path = waiting.popleft()
        try:
            if len(os.fsencode(result_of(path, target).name)) > longest:
                raise InputError(f"the name of its result would have more than {longest} bytes")
            x = _decode(path, shape)
            check_fits(x, shape, dtype)
        except InputError as error:
            report(path, str(error))
            continue
        taken.append(path)
        yield [x]


def _decode(path: Path, shape: Shape) -> Any:
    kind = path.suffix.lower()
    if kind == ".npy":
        return read_npy(path)
    if kind not in SUFFIXES:
        raise InputError(f"neither .npy nor an image ({', '.join(sorted(SUFFIXES))})")
    try:
        return decode_image(path, shape)
    except ImportError:
        raise InputError("images need Pillow (pip install pillow)") from None


def save(path: Path, array: Any) -> None:
    """Writes the file so that it is there whole, or not at all, also after a crash."""
    try:
        while not _is_saved(path, array):
            pass  # once for each job that starts meanwhile, at most
    except OSError as error:
        raise CannotSave(f"{path}: {error.strerror or error}") from error


def _is_saved(path: Path, array: Any) -> bool:
    """False if another job took the unfinished file for that of a dead one.

    It may: between creation and lock, or where locks do not reach, as from one NFS host to another.
    """
    # Not by host and process: two containers may share both, and the folder.
    unfinished = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
    descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "wb") as file:  # and so locked, until it is renamed
            _is_locked(descriptor)
            np.save(file, array)
            file.flush()
            os.fsync(descriptor)  # else the name may get to the disk before the contents
            os.replace(unfinished, path)
        return True
    except FileNotFoundError:
        return False
    finally:
        with contextlib.suppress(OSError):  # the one above tells more
            unfinished.unlink(missing_ok=True)


def remove_unfinished(target: Path) -> None:
    """Removes what jobs were writing when they died: nobody holds its lock."""
    for path in target.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):  # another user's, or a folder
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                if _is_locked(descriptor):
                    path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Locks the file. False if another process has; or none can, and then nothing is removed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


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
    everything = list(source.iterdir())  # before the target is made: the name may be mistyped
    target.mkdir(parents=True, exist_ok=True)
    if target.samefile(source):
        raise OptionError("source and target are one folder; results would be taken for inputs")
    remove_unfinished(target)
    everything = [path for path in everything if not _is_same(path, target)]
    files = find_work(everything, target)
    failures: list[str] = []
    columns = (
        TextColumn("{task.description}", markup=False),
        *Progress.get_default_columns()[1:3],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(args.source, total=len(files))

        def report(path: Path, error: str | None) -> None:
            if error is not None:
                failures.append(path.name)
                # repr: a name may hold what a terminal would obey.
                progress.console.print(
                    f"{str(path)!r}: {error}", markup=False, highlight=False, soft_wrap=True
                )
            progress.advance(task)

        process(engine, files, target, report, args.in_flight)
    sync_names(target)
    print(
        f"{len(files) - len(failures)} done, {len(failures)} left out, "
        f"{len(everything) - len(files)} done before"
    )
    return 1 if failures else 0


def _is_same(path: Path, target: Path) -> bool:
    return path.name == target.name and path.samefile(target)


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
    if args.in_flight is not None and args.in_flight < 1:
        parser.error(f"--in-flight must be 1 or more, got {args.in_flight}")
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
