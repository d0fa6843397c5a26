"""Where compiled models are kept: the cache folder, or memory."""

from __future__ import annotations

import contextlib
import enum
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from deepsched.errors import OptionError
from deepsched.models.cache import Cache
from deepsched.models.entry import Entry, make_locked_folder, remove_stale


class DefaultCache(enum.Enum):
    """The type of DEFAULT_CACHE. No string, since that would be the name of a folder."""

    default = enum.auto()

    def __repr__(self) -> str:
        return "<default cache>"


DEFAULT_CACHE = DefaultCache.default
"""The cache folder that the environment chooses; see default_folder."""

CacheDir: TypeAlias = str | os.PathLike[str] | DefaultCache | None
"""A folder's path, the default one, or None to keep nothing on disk."""

SHARED_MEMORY = Path("/dev/shm")


def default_folder() -> Path:
    """DEEPSCHED_CACHE_DIR, or `deepsched` in the user's cache folder (XDG)."""
    chosen = os.environ.get("DEEPSCHED_CACHE_DIR")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: relative paths are invalid and to be ignored.
    home = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~"), ".cache")
    return home / "deepsched"


def open_cache(cache_dir: CacheDir) -> Cache | None:
    """The cache in that folder; None for None.

    Raises:
        OptionError: cache_dir is not a path.
        OSError: the folder cannot be used.
    """
    if cache_dir is None:
        return None
    if cache_dir is DEFAULT_CACHE:
        return Cache(default_folder())
    if not isinstance(cache_dir, (str, os.PathLike)) or not os.fspath(cache_dir):
        raise OptionError(f"cache_dir must be a folder's path or None, got {cache_dir!r}")
    return Cache(Path(cache_dir))


def memory_folders() -> list[Path]:
    """Folders for files that lose their names once they are mapped. The second is for containers,
    whose /dev/shm may be too small."""
    folders = dict.fromkeys([SHARED_MEMORY, Path(tempfile.gettempdir())])
    return [folder for folder in folders if os.access(folder, os.W_OK)]


@contextlib.contextmanager
def stage_in(parent: Path) -> Iterator[Entry]:
    """A folder that is removed at the block's end; mappings of its files stay valid."""
    prefix = f"deepsched-{os.geteuid()}-"
    for stale in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            remove_stale(stale)
    entry = make_locked_folder(parent, prefix)
    try:
        yield entry
    finally:
        shutil.rmtree(entry.folder, ignore_errors=True)
        entry.close()
