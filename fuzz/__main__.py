"""Fuzzes what deepsched reads: python -m fuzz [TARGET ...] [--seconds N] [--input FILE]

All targets by default, as many at once as there are CPUs, within N seconds of wall time together
(120). Exits with status 1 if a property does not hold for an input; it is saved in
build/fuzz/TARGET/, and the command that tries it again is printed. What covers something new is
kept in build/fuzz/TARGET/corpus for the next time, so long runs go on where they ended. 0 seconds:
tries what is in the repository, in this process and without a fuzzer. It needs

    pip install atheris -e '.[test,serve]'
"""

from __future__ import annotations

import argparse
import base64
import logging
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fuzz.target import (
    BUILD,
    CORPUS,
    FOLDER,
    MOST_MIB,
    MOST_SECONDS,
    TOO_LARGE,
    corpus,
    load,
    names,
)

_STARTING = 4.0
"""Seconds until a target's first input."""

_OPTIONS = (
    *(f"-timeout={MOST_SECONDS}", f"-rss_limit_mb={MOST_MIB}", "-detect_leaks=0"),
    "-print_final_stats=1",
    *("-reload=0", "-len_control=20"),
)

_UNCAUGHT = "=== Uncaught Python exception"
"""What atheris says of one."""

_SHORT = 2000


class Outcome(NamedTuple):
    """Of a target's run."""

    name: str
    num_runs: int
    num_ort: int
    """How often ONNX Runtime ended the process, and plain onnxruntime does so too."""
    failure: str
    """Empty: the property held."""


def fuzz(name: str, seconds: float) -> Outcome:
    """Fuzzes a target, and goes on after what is ONNX Runtime's own."""
    folder = BUILD / name
    seeds = folder / "seeds"
    for each in (folder / "corpus", seeds, CORPUS / name):
        each.mkdir(parents=True, exist_ok=True)
    target = load(name)
    for number, seed in enumerate(target.seeds()):
        (seeds / f"{number:03}").write_bytes(seed)
    words = [*target.words, b"\0"]  # libFuzzer takes no empty list
    (folder / "words").write_text("".join(f'"{_escaped(word)}"\n' for word in words))
    end = time.monotonic() + seconds
    num_runs = num_ort = 0
    while (left := end - time.monotonic()) > 0 or not num_runs + num_ort:
        done, text = _run(name, max(1, round(left - _STARTING)))
        num_runs += _number(r"number_of_executed_units: *(\d+)", text)
        if not done:
            break
        saved = map(Path, re.findall(r"Test unit written to (\S+)", text))
        path = next(filter(Path.exists, saved), None)
        is_ours = not target.is_ort or _UNCAUGHT in text
        if is_ours or path is None or not _ort_fails(path):
            return Outcome(name, num_runs, num_ort, _told(name, path, text))
        num_ort += 1
        (folder / "ort").mkdir(exist_ok=True)
        path.rename(folder / "ort" / path.name)
    return Outcome(name, num_runs, num_ort, "")


def _try_again(name: str) -> int:
    """Checks seeds and corpus, and returns how many they are. Raises what `check` does."""
    target = load(name)
    inputs = [*target.seeds(), *(path.read_bytes() for path in corpus(name))]
    for data in inputs:
        target.check(data)
    return len(inputs)


def _run(name: str, seconds: int) -> tuple[int, str]:
    """Exit status of a process that fuzzes, and what it printed."""
    folder = BUILD / name
    command = [
        *(sys.executable, "-m", "fuzz.guided", name, *_OPTIONS),
        *(f"-max_total_time={seconds}", f"-artifact_prefix={folder}/", f"-dict={folder / 'words'}"),
        *map(str, (folder / "corpus", folder / "seeds", CORPUS / name)),
    ]
    log = folder / "log"
    with open(log, "w") as output:
        status = subprocess.call(
            command, cwd=FOLDER.parent, stdout=output, stderr=subprocess.STDOUT
        )
    return status, log.read_text(errors="replace")


def _ort_fails(path: Path) -> bool:
    """Whether plain onnxruntime dies of a model too, or takes as long, or as much memory."""
    command = [sys.executable, "-m", "fuzz.plain_onnxruntime", str(path)]
    try:
        plain = subprocess.run(
            command, cwd=FOLDER.parent, capture_output=True, timeout=MOST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    return plain.returncode < 0 or plain.returncode == TOO_LARGE


def _number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def _told(name: str, path: Path | None, text: str) -> str:
    """What failed, and how to try it again."""
    began = max(text.rfind(_UNCAUGHT), 0)
    said = text[began:].partition("\nSUMMARY: libFuzzer")[0][-3000:]
    if path is None:
        return f"{said}\nno input was saved; see {BUILD / name / 'log'}"
    data = path.read_bytes()
    encoded = base64.b64encode(data).decode()
    made = f"echo {encoded} | base64 -d > {path}\n" if len(data) < _SHORT else ""
    return f"{said}\n{made}python -m fuzz {name} --input {path}"


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(names()))
    parser.add_argument("--seconds", type=float, default=120.0, metavar="N")
    parser.add_argument("--input", type=Path, metavar="FILE", help="try this one, of one TARGET")
    options = parser.parse_args(arguments)
    chosen = options.targets or names()
    if unknown := set(chosen) - set(names()):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    if options.input is not None:
        if len(chosen) != 1:
            parser.error("--input is for one TARGET")
        load(chosen[0]).check(options.input.read_bytes())
        print("the property holds")
        return 0
    if not options.seconds:
        logging.disable()  # what is said of damaged caches
        for name in chosen:
            print(f"{name}: {_try_again(name)} inputs of the repository")
        return 0
    at_once = min(len(os.sched_getaffinity(0)), len(chosen))
    rounds = -(-len(chosen) // at_once)
    with ThreadPoolExecutor(at_once) as threads:
        outcomes = list(threads.map(lambda name: fuzz(name, options.seconds / rounds), chosen))
    for it in outcomes:
        own = f", {it.num_ort} crashes of ONNX Runtime's own" if it.num_ort else ""
        print(f"{it.name}: {it.num_runs:,} inputs{own}{': FAILS' if it.failure else ''}")
    for it in outcomes:
        if it.failure:
            print(f"\n== {it.name}\n{it.failure}")
    return 1 if any(it.failure for it in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
