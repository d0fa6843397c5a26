"""One target under atheris, in a process of its own: python -m fuzz.guided NAME LIBFUZZER_OPTION...

The Python of deepsched is instrumented as it is imported. libFuzzer ends the process at the first
input for which the property does not hold, and saves it.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable
from random import Random

import atheris

from fuzz.target import BUILD, Target, load


def _mutator(target: Target) -> Callable[[bytes, int, int], bytes]:
    """Half of the mutations are the target's own, the other half libFuzzer's, of bytes."""

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        if target.mutate is not None and random.random() < 0.5:
            changed = target.mutate(data, random)
            if len(changed) <= max_size:
                return changed
        return bytes(atheris.Mutate(data, max_size))

    return mutate


def _saving(name: str, check: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Saves the input for which a check raises: libFuzzer saves it only where its own handler of
    the process's end is called."""

    def run(data: bytes) -> None:
        try:
            check(data)
        except Exception:
            path = BUILD / name / f"crash-{hashlib.sha1(data).hexdigest()}"
            path.write_bytes(data)
            print(f"Test unit written to {path}", file=sys.stderr, flush=True)
            raise

    return run


def main(name: str, options: list[str]) -> None:
    with atheris.instrument_imports(include=["deepsched"]):
        target = load(name)
    logging.disable()  # what is logged of refused inputs would fill the disk
    more = {} if target.mutate is None else {"custom_mutator": _mutator(target)}
    atheris.Setup(
        [name, f"-max_len={target.max_bytes}", *options], _saving(name, target.check), **more
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
