"""Whether this process is one of several workers of a program, and of how many.

The rule, of which docs/many-processes.md is the user's form: a process is a worker if it was
started by gunicorn, by `uvicorn --workers`, by Celery's prefork pool, or by a process pool of
multiprocessing, concurrent.futures or joblib. How many there are is what DEEPSCHED_WORKERS says,
else what the server itself was told. Pools do not tell their processes.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from deepsched.errors import OptionError

_POOL_NAMES = re.compile(r"(?:(?:Fork|Spawn|ForkServer)?PoolWorker|LokyProcess)-[\d:]+$")


class Workers(NamedTuple):
    """Of what this process is a worker."""

    program: str
    """gunicorn, uvicorn, Celery, or a process pool."""
    number: int | None
    """How many workers there are; None if that is not known."""


def workers() -> Workers | None:
    """Of what this process is a worker; None if of nothing, or if it is the only one.

    Raises:
        OptionError: DEEPSCHED_WORKERS is not a number of workers.
    """
    found = _gunicorn() or _celery() or _uvicorn() or _pool()
    if said := os.environ.get("DEEPSCHED_WORKERS"):
        if not said.isdecimal() or int(said) < 1:
            raise OptionError(f"DEEPSCHED_WORKERS must be an integer of at least 1, got {said!r}")
        found = Workers(found.program if found else "workers", int(said))
    return None if found is None or found.number == 1 else found


def _gunicorn() -> Workers | None:
    """A worker has a handler of SIGUSR1 that is a method of its own, with the settings."""
    if "gunicorn.workers.base" not in sys.modules:
        return None
    worker = getattr(signal.getsignal(signal.SIGUSR1), "__self__", None)
    if not hasattr(worker, "ppid"):  # else it is the arbiter
        return None
    return Workers("gunicorn", _whole(getattr(getattr(worker, "cfg", None), "workers", None)))


def _uvicorn() -> Workers | None:
    """A worker is a spawned process whose arguments have the settings."""
    if "uvicorn" not in sys.modules or _process() is None:
        return None
    config = getattr(_process(), "_kwargs", {}).get("config")
    number = _whole(getattr(config, "workers", None))
    return None if number is None else Workers("uvicorn", number)


def _celery() -> Workers | None:
    """A prefork pool's process is billiard's, and has the command line of its parent."""
    billiard = sys.modules.get("billiard.process")
    if billiard is None or not _POOL_NAMES.match(billiard.current_process().name):
        return None
    return Workers("Celery", _number_after(sys.argv, ("-c", "--concurrency")))


def _pool() -> Workers | None:
    process: Any = _process()
    if process is None:
        return None
    target = getattr(process, "_target", None)
    is_executor = getattr(target, "__module__", None) == "concurrent.futures.process"
    if _is_unpickled(process):
        # After its target, whose module that has imported.
        is_executor = "concurrent.futures.process" in sys.modules
    return (
        Workers("a process pool", None) if is_executor or _POOL_NAMES.match(process.name) else None
    )


def _process() -> Any:
    """multiprocessing's object for this process; None in one that it has not started."""
    module = sys.modules.get("multiprocessing.process")
    if module is None:
        return None
    process = module.current_process()
    return process if module.parent_process() is not None or _is_unpickled(process) else None


def _is_unpickled(process: Any) -> bool:
    """Whether what a spawned process was given (an initializer's engine, say) is being unpickled:
    multiprocessing sets its parent and its target after that."""
    return bool(getattr(process, "_inheriting", False))


def _number_after(words: Sequence[str], flags: Sequence[str]) -> int | None:
    """The number that an option has: `-c 2`, `-c2`, `--concurrency=2`.

    >>> _number_after(["celery", "worker", "--concurrency=2"], ("-c", "--concurrency"))
    2
    """
    for word, following in zip(words, [*words[1:], ""], strict=True):
        for flag in flags:
            value = following if word == flag else word.removeprefix(flag).removeprefix("=")
            if word.startswith(flag) and value.isdecimal():
                return int(value)
    return None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
