"""FoundModel: a model where it lies, before anything is opened; and whether it has changed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from deepsched.server.repository.model_options import ModelOptions

Stamp = tuple[tuple[str, int, int, int, int, int], ...]
"""Of each file: path, device, inode, size, mtime and ctime in ns. A file with the same ones has not
been written to."""


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """The versions of a model that there are."""

    name: str
    versions: Mapping[str, str]
    """By version, the path of its ONNX file."""
    options: ModelOptions
    is_folder: bool
    """Whether each version has a folder of its own, all of which is the version's."""

    def wanted(self) -> list[str]:
        """The versions that should serve, ascending."""
        return self.options.version_policy.choose(self.versions)

    def stamp(self, version: str) -> Stamp:
        """What changes if the version does, its configuration included. Files that are gone are
        not in it."""
        path = self.versions[version]
        files = _files_in(os.path.dirname(path)) if self.is_folder else [path]
        return stamp([*files, *self.options.files])


def stamp(paths: Iterator[str] | list[str]) -> Stamp:
    """What changes if one of the files does."""
    entries = []
    for path in sorted(paths):
        with suppress(OSError):  # removed meanwhile
            it = os.stat(path)
            entries.append((path, it.st_dev, it.st_ino, it.st_size, it.st_mtime_ns, it.st_ctime_ns))
    return tuple(entries)


def _files_in(folder: str) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield os.path.join(parent, name)
