"""Answers are kept for the same question: a file each, in the cache folder."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import blake3

from deepsched.advice.settings import Advice, BatchFigures, Figures, Setting
from deepsched.machine.sysfs import read_cpuinfo
from deepsched.machine.topology import Topology
from deepsched.models.cache import Cache, default_folder, hash_file
from deepsched.models.compiled import CacheDir
from deepsched.models.prepare import ModelLike, serialize
from deepsched.runtime.library import describe_library
from deepsched.version import __version__


class Memory:
    """Of one question about one model, on this machine, with these versions."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of(cls, model: ModelLike, cache_dir: CacheDir, question: list[Any]) -> Memory | None:
        """None: there is no cache to remember in."""
        if cache_dir is None:
            return None
        try:
            folder = Cache(default_folder() if cache_dir == "default" else Path(cache_dir)).folder
            if isinstance(model, (str, os.PathLike)):
                content = hash_file(os.fspath(model))
            else:
                content = blake3.blake3(serialize(model)).hexdigest()
            machine = [Topology.detect().to_dict(), _cpu_models()]
            parts = [content, question, machine, __version__, describe_library()["version"]]
            key = blake3.blake3(json.dumps(parts, default=str).encode()).hexdigest()[:32]
        except (OSError, AttributeError, TypeError, ValueError):
            return None
        return cls(folder / f".advice-{key}.json")

    def recall(self, seconds: float, compares_batches: bool) -> Advice | None:
        """What was kept; None if nothing was, it was found in less time than is given now or says
        nothing of batches that are asked for, or it is damaged or another version's."""
        try:
            file = json.loads(self._path.read_text("utf-8"))
            kept = file["advice"]
            if file["seconds"] < seconds or (compares_batches and not kept["batches"]):
                return None
            del kept["best_batch_size"]
            kept |= {
                "setting": Setting(**kept["setting"]),
                "figures": tuple(
                    Figures(**{**it, "setting": Setting(**it["setting"])}) for it in kept["figures"]
                ),
                "batches": tuple(BatchFigures(**it) for it in kept["batches"] if compares_batches),
                "scaling_ms": {int(cores): ms for cores, ms in kept["scaling_ms"].items()},
                "was_remembered": True,
            }
            return Advice(**kept)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def keep(self, advice: Advice, seconds: float) -> None:
        """Whole or not at all. `seconds`: what was given to find it."""
        with contextlib.suppress(OSError):  # then it is measured anew
            fd, name = tempfile.mkstemp(dir=self._path.parent, prefix=".advice-")
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump({"seconds": seconds, "advice": advice.to_dict()}, file)
            os.replace(name, self._path)


def _cpu_models() -> list[list[str]]:
    """What kinds of CPU there are: machines of one shape may share a cache folder."""
    fields = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")
    cpus = read_cpuinfo(Path("/")).values()
    return sorted(
        [list(kind) for kind in {tuple(cpu.get(it, "") for it in fields) for cpu in cpus}]
    )
