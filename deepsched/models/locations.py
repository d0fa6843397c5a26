"""Where compiled models are kept: the cache folder, or memory; and folders for temporary files."""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import pwd
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from deepsched.errors import OptionError
from deepsched.models.cache import Cache
from deepsched.models.entry import Entry, holds_others
from deepsched.models.folders import Folder, is_in_memory, open_trusted
from deepsched.models.locks import lock_exclusive, make_locked_folder
from deepsched.models.prepare import ModelLike
from deepsched.models.tag import has_tag, write_tag


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
    user = os.environ.get("HOME") or os.path.expanduser("~" + _user_name())
    home = Path(base) if os.path.isabs(base) else Path(user, ".cache")
    if not home.is_absolute():  # no HOME and no passwd entry: "~" would be a folder here
        raise OptionError(
            "this user has no home folder to keep compiled models in; set DEEPSCHED_CACHE_DIR, or "
            "cache_dir=None to keep none"
        )
    return home / "deepsched"


def _user_name() -> str:
    """Of this process's user; empty if nobody knows it. An empty HOME is none, to which
    `expanduser` would say /."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except (KeyError, OSError):
        return ""


def keeps_in_memory(model: ModelLike, cache_dir: CacheDir) -> bool:
    """Whether the default cache is not for this model: one given as bytes may have been decrypted,
    or made, and is not to be found on a disk unless a folder for it was named."""
    return cache_dir is DEFAULT_CACHE and not isinstance(model, (str, os.PathLike))


def open_cache(cache_dir: CacheDir) -> Cache | None:
    """The cache in that folder; None for None.

    Raises:
        OptionError: cache_dir is not a path.
        OSError: the folder cannot be used.
    """
    if cache_dir is None:
        return None
    if cache_dir is DEFAULT_CACHE:
        try:
            return Cache(default_folder())
        except OptionError as error:  # nobody asked for a cache: the engine starts without
            raise OSError(str(error)) from error
    path = os.fspath(cache_dir) if isinstance(cache_dir, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise OptionError(f"cache_dir must be a folder's path or None, got {cache_dir!r}")
    return Cache(Path(path))


@contextlib.contextmanager
def temporary_folder(
    parents: Sequence[Path] | None = None, in_memory: bool = False
) -> Iterator[Folder]:
    """A locked folder in the first of `parents` that can be used, by default the one for temporary
    files or /dev/shm. All in it is removed at the block's end; mappings of its files stay valid.
    `in_memory`: one on a disk cannot be used.

    Raises:
        OSError: none of them can be used.
    """
    if parents is None:
        parents = [*_temporary_folders(), SHARED_MEMORY]
    parent, folder = _make_temporary_folder(parents, in_memory)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            parent.remove_folder(folder.path.name)
        folder.close()


def memory_folders() -> list[Path]:
    """Folders for files that lose their names once they are mapped, of models that are not to be
    written to a disk. The second is for containers, whose /dev/shm may be too small."""
    return list(dict.fromkeys([SHARED_MEMORY, *_temporary_folders()]))


def temporary_places(model: str) -> list[Path]:
    """The same folders for a model's file: if that is on a disk, those on a disk come first. There
    the kernel can take back the memory of a file; in memory it counts until its last mapping ends.
    """
    if not _is_on_disk(Path(model).parent):
        return memory_folders()
    on_disk = [path for path in _temporary_folders() if _is_on_disk(path)]
    return list(dict.fromkeys([*on_disk, *memory_folders()]))


def _is_on_disk(path: Path) -> bool:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return not is_in_memory(fd)
        finally:
            os.close(fd)
    return False


def _temporary_folders() -> list[Path]:
    """The folder for temporary files, if there is one: a root may be read-only."""
    try:
        return [Path(tempfile.gettempdir())]
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def stage_in(parent: Path, in_memory: bool = False) -> Iterator[Entry]:
    """An entry outside the cache, which is removed at the block's end; for `in_memory` and what it
    raises see temporary_folder."""
    with temporary_folder([parent], in_memory) as folder:
        yield Entry(folder)


def sweep_temporary_folders() -> int:
    """Removes this user's temporary folders that killed processes left; returns how many."""
    is_ours = re.compile(rf"{_prefix()}[0-9a-z_]{{8,16}}")
    num_removed = 0
    for path in memory_folders():
        with contextlib.suppress(OSError):  # not for us to use
            parent = open_trusted(path)
            names = [name for name in parent.names() if is_ours.fullmatch(name)]
            num_removed += sum(_remove_stale(parent, name) for name in names)
    return num_removed


@functools.cache
def sweep_once() -> None:
    """sweep_temporary_folders, in the first start of an engine in this process."""
    sweep_temporary_folders()


def _prefix() -> str:
    return f"deepsched-{os.geteuid()}-"


def _make_temporary_folder(parents: Sequence[Path], in_memory: bool) -> tuple[Folder, Folder]:
    errors = []
    for path in parents:
        try:
            parent = open_trusted(path)
            if in_memory and not is_in_memory(parent.fd):
                raise OSError(f"{path} is on a disk")
            folder = make_locked_folder(parent, _prefix())
            try:
                write_tag(folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    parent.remove_folder(folder.path.name)
                raise
        except OSError as error:
            errors.append(str(error))
            continue
        return parent, folder
    raise OSError("; ".join(errors))


def _remove_stale(parent: Folder, name: str) -> bool:
    """Removes a temporary folder whose process has ended: it is unlocked, and has our mark, or
    nothing but an entry in it, as those that versions before left."""
    with contextlib.suppress(OSError):
        folder = lock_exclusive(parent, name)
        if folder is not None and (has_tag(folder) or not holds_others(folder)):
            parent.remove_folder(name)
            return True
    return False
