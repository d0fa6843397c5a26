"""What is fuzzed: a property of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from random import Random

FOLDER = Path(__file__).parent
TARGETS = FOLDER / "targets"
CORPUS = FOLDER / "corpus"
BUILD = FOLDER.parent / "build" / "fuzz"

MOST_SECONDS = 20
"""That an input may take."""

MOST_MIB = 3072
"""Of memory, that it may take."""

TOO_LARGE = 3
"""Exit status of plain_onnxruntime where it takes more."""


@dataclass(frozen=True)
class Target:
    """A property that holds for all bytes; the docstring of its module states it."""

    check: Callable[[bytes], None]
    """Raises if the property does not hold for this input."""
    seeds: Callable[[], Iterable[bytes]]
    """Inputs to begin with, made in code; fuzz/corpus/NAME has what fuzzing has added to them."""
    mutate: Callable[[bytes, Random], bytes] | None = None
    """An input like this one, changed in the terms of its format. None: libFuzzer changes bytes."""
    words: tuple[bytes, ...] = ()
    """What the format is made of, for mutations of bytes."""
    is_ort: bool = False
    """Whether inputs are models that ONNX Runtime opens, which may crash by itself."""
    max_bytes: int = 4096


def names() -> list[str]:
    """Of all targets."""
    return sorted(path.stem for path in TARGETS.glob("*.py") if path.stem != "__init__")


def load(name: str) -> Target:
    """The target of that name; imports what it tests."""
    target: Target = import_module(f"fuzz.targets.{name}").TARGET
    return target


def corpus(name: str) -> list[Path]:
    """The inputs of a target that are in the repository."""
    return sorted(path for path in (CORPUS / name).glob("*") if path.is_file())
