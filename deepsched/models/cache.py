"""The folder of compiled models: atomic, checked, bounded.

    <cache>/v1/<key>/               an entry; its key says what it was made of
        about.json                  what is in it, with checksums; its second line is its own
        model.onnx, weights         what ONNX Runtime opens
        checked.json                as which files the checksums were found to be right
    <cache>/v1/.staging-*/          an entry in the making, or on its way out
    <cache>/v1/external/<key>.json  the external data files that a model names

An entry appears by one rename, complete, and is never written again. Whoever uses it holds a shared
`flock` on its folder; whoever takes it away must get the exclusive one. The kernel drops the locks
of a process that is killed, so what it leaves behind is found by being unlocked.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import blake3

from deepsched.errors import OptionError

logger = logging.getLogger("deepsched")

_VERSION = "v1"
_STAGING = ".staging-"
_ABOUT = "about.json"
_CHECKED = "checked.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

_MOST_BYTES = 10 * 2**30
_MOST_ENTRIES = 1000

# What nobody holds, and is younger than this, may be about to be locked.
_GRACE_S = 60.0


class Damaged(Exception):  # noqa: N818
    """An entry is not what was written."""


class Entry:
    """A folder that is held: nobody takes it away until `close`."""

    def __init__(self, folder: Path, lock_fd: int) -> None:
        self.folder = folder
        self.about: dict[str, Any] = {}
        """What whoever compiled it wants its finder to know; JSON."""
        self._lock_fd = lock_fd

    @property
    def model(self) -> Path:
        """The graph, whose initializers lie in `weights`."""
        return self.folder / "model.onnx"

    @property
    def weights(self) -> Path:
        """Initializers and what kernels made of them, ready to be mapped."""
        return self.folder / "weights"

    def files(self) -> list[Path]:
        """What ONNX Runtime wrote: a model of small tensors has no weights file."""
        return [path for path in (self.model, self.weights) if path.exists()]

    def seal(self) -> None:
        """Writes down what is in the folder, and `about`, for those who find it."""
        sums = {}
        for path in self.files():
            path.chmod(0o600)
            sums[path.name] = [path.stat().st_size, hash_file(path)]
        text = json.dumps({**self.about, "files": sums}, sort_keys=True)
        line = f"{text}\n{blake3.blake3(text.encode()).hexdigest()}\n"
        path = self.folder / _ABOUT
        path.write_text(line, encoding="utf-8")
        path.chmod(0o600)

    def check(self) -> None:
        """Compares the files with what was sealed.

        Every byte of them, unless that has been done since the machine started (what was written
        before may not have reached the disk) and nobody has written to them since.

        Raises:
            Damaged: something differs, or is missing.
        """
        try:
            text, checksum, rest = (self.folder / _ABOUT).read_bytes().decode().split("\n")
            if rest or blake3.blake3(text.encode()).hexdigest() != checksum:
                raise Damaged(f"{_ABOUT} does not match its checksum")
            self.about = json.loads(text)
            sums = self.about.pop("files")
            states = [_BOOT_ID, *([name, *_state(self.folder / name)] for name in sorted(sums))]
            if self._was_checked(states):
                return
            for name, (size, checksum) in sums.items():
                path = self.folder / name
                if path.stat().st_size != size or hash_file(path) != checksum:
                    raise Damaged(f"{name} does not match its checksum")
            self._note_checked(states)
        except (OSError, ValueError) as error:
            raise Damaged(str(error)) from error

    def _was_checked(self, states: list[Any]) -> bool:
        try:
            return bool(json.loads((self.folder / _CHECKED).read_text("utf-8")) == states)
        except (OSError, ValueError):
            return False

    def _note_checked(self, states: list[Any]) -> None:
        # A write soon after the one before may leave the times as they are: the kernel's clock
        # for files ticks every 10 ms or faster.
        newest = max(state[-1] for state in states[1:])
        if time.time_ns() - newest < 100_000_000:
            return
        with contextlib.suppress(OSError):
            fd, path = tempfile.mkstemp(dir=self.folder)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(states, file)
            os.replace(path, self.folder / _CHECKED)

    def close(self) -> None:
        """Lets go of the folder. May be called again."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class EntryInfo(NamedTuple):
    """A line of `deepsched cache list`."""

    key: str
    model: str
    """What it was compiled from: a path, or how many bytes."""
    batch_size: int | None
    """What it was compiled for; None: as the model has it."""
    num_bytes: int
    used: float
    """When it was last opened; seconds since the epoch."""
    is_in_use: bool


class Cache:
    """The entries below one folder."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder if need be.

        Raises:
            OSError: it cannot be made, or others than this user may write to it.
        """
        self.folder = folder / _VERSION
        self._most_bytes = _most_bytes()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.folder.stat()
        if found.st_uid != os.geteuid():
            raise PermissionError(f"{self.folder} belongs to another user")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"others may write to {self.folder}; chmod go-w helps")

    # --- Entries ----------------------------------------------------------------------------

    def find(self, key: str) -> Entry | None:
        """The entry of `key`, held and checked. A damaged one is removed."""
        entry = _hold(self.folder / key, fcntl.LOCK_SH)
        if entry is None:
            return None
        try:
            entry.check()
        except Damaged as damage:
            logger.warning("the compiled model in %s is damaged: %s", entry.folder, damage)
            self.discard(entry)
            return None
        with contextlib.suppress(OSError):
            os.utime(entry.folder)  # when it was last used
        return entry

    def discard(self, entry: Entry) -> None:
        """Removes an entry that does not work. Who has it mapped keeps the pages."""
        self._take_away(entry.folder)
        entry.close()

    @contextlib.contextmanager
    def stage(self) -> Iterator[Entry]:
        """An empty folder, held. It is gone at the block's end, unless it was published."""
        entry = make_private_folder(self.folder, _STAGING)
        folder = entry.folder
        try:
            yield entry
        finally:
            if entry.folder == folder:  # not published
                shutil.rmtree(folder, ignore_errors=True)

    def publish(self, entry: Entry, key: str) -> None:
        """Makes a sealed staging folder the entry of `key`, in one step, and makes room.

        If another process was faster, its entry stays, and ours goes with our hold on it: they
        are the same.
        """
        target = self.folder / key
        try:
            entry.folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            return
        entry.folder = target
        self.make_room()

    # --- Models with external data ------------------------------------------------------------

    def external_files(self, key: str) -> list[str] | None:
        """The external data that a model names, as `remember_external_files` was told."""
        try:
            names = json.loads((self.folder / "external" / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return names if isinstance(names, list) else None

    def remember_external_files(self, key: str, names: list[str]) -> None:
        """Saves the next one to parse the model only to learn which files to read."""
        folder = self.folder / "external"
        folder.mkdir(mode=0o700, exist_ok=True)
        fd, path = tempfile.mkstemp(dir=folder)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(names, file)
        os.replace(path, folder / f"{key}.json")

    # --- All of it ----------------------------------------------------------------------------

    def list(self) -> list[EntryInfo]:
        """Its entries, the one used last first."""
        infos = []
        for folder in self._entries():
            try:
                about = json.loads((folder / _ABOUT).read_text("utf-8").splitlines()[0])
                infos.append(
                    EntryInfo(
                        folder.name,
                        str(about.get("model", "?")),
                        about.get("batch_size"),
                        _size_of(folder),
                        folder.stat().st_mtime,
                        _is_held(folder),
                    )
                )
            except (OSError, ValueError, IndexError):
                continue  # it goes, or is damaged
        return sorted(infos, key=lambda info: -info.used)

    def clear(self) -> int:
        """Removes what is not in use; returns how many entries that were."""
        removed = sum(self._take_away_if_free(folder) for folder in self._entries())
        shutil.rmtree(self.folder / "external", ignore_errors=True)
        self._sweep(grace_s=0)
        return removed

    def make_room(self) -> None:
        """Removes the entries used least lately until the bound holds; none that is in use."""
        self._sweep(_GRACE_S)
        found = []
        for folder in self._entries():
            with contextlib.suppress(FileNotFoundError):  # another process takes it away
                found.append((folder.stat().st_mtime, _size_of(folder), folder))
        num_bytes = sum(size for _, size, _ in found)
        num_left = len(found)
        for _, size, folder in sorted(found):
            if num_bytes <= self._most_bytes and num_left <= _MOST_ENTRIES:
                return
            if self._take_away_if_free(folder):
                num_bytes -= size
                num_left -= 1

    def _entries(self) -> Iterator[Path]:
        for folder in self.folder.iterdir():
            if not folder.name.startswith(".") and folder.name != "external":
                yield folder

    def _take_away_if_free(self, folder: Path) -> bool:
        entry = _hold(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if entry is None:
            return False
        self._take_away(folder)
        entry.close()
        return True

    def _take_away(self, folder: Path) -> None:
        # Renamed first: nobody finds half of it.
        try:
            away = tempfile.mkdtemp(prefix=_STAGING, dir=self.folder)
            os.rename(folder, away)
        except OSError:
            return  # somebody else did
        shutil.rmtree(away, ignore_errors=True)

    def _sweep(self, grace_s: float) -> None:
        """Removes what processes that were killed left behind."""
        for folder in self.folder.glob(f"{_STAGING}*"):
            remove_if_left(folder, grace_s)


def make_private_folder(parent: Path, prefix: str) -> Entry:
    """A new folder of this user's, held. Raises OSError."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        entry = _hold(folder, fcntl.LOCK_SH)
        if entry is not None:  # else swept in between
            return entry


def remove_if_left(folder: Path, grace_s: float = _GRACE_S) -> None:
    """Removes a staging folder whose process has ended."""
    with contextlib.suppress(OSError):
        if time.time() - folder.stat().st_mtime < grace_s:
            return
    entry = _hold(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if entry is not None:
        shutil.rmtree(folder, ignore_errors=True)
        entry.close()


def default_folder() -> Path:
    """DEEPSCHED_CACHE_DIR, or `deepsched` in the user's cache folder (XDG)."""
    chosen = os.environ.get("DEEPSCHED_CACHE_DIR")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: relative paths are invalid and to be ignored.
    home = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~"), ".cache")
    return home / "deepsched"


def hash_file(path: Path | str) -> str:
    """Of its content. Raises OSError, also for what is no file: a pipe may never end."""
    hasher = blake3.blake3()
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"{os.fspath(path)!r} is not a regular file")
    with open(path, "rb", buffering=0) as file:
        # Read, not mapped: the pages of a mapping would count as this process's memory.
        buffer = memoryview(bytearray(2**20))
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
    return hasher.hexdigest()


def _most_bytes() -> int:
    text = os.environ.get("DEEPSCHED_CACHE_BYTES")
    if not text:
        return _MOST_BYTES
    try:
        return int(text)
    except ValueError:
        raise OptionError(
            f"DEEPSCHED_CACHE_BYTES must be a number of bytes, got {text!r}"
        ) from None


def _hold(folder: Path, how: int) -> Entry | None:
    """Locks a folder that is there and stays there; None: it is not, or it is locked.

    Raises OSError where the file system has no such locks.
    """
    while True:
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, how)
            locked, there = os.fstat(fd), os.stat(folder)
        except (BlockingIOError, FileNotFoundError):
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        if (locked.st_dev, locked.st_ino) == (there.st_dev, there.st_ino):
            return Entry(folder, fd)
        os.close(fd)  # replaced between open and flock


def _is_held(folder: Path) -> bool:
    entry = _hold(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if entry is None:
        return True
    entry.close()
    return False


def _state(path: Path) -> list[int]:
    """Changes whenever the file is replaced or written to."""
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _size_of(folder: Path) -> int:
    with os.scandir(folder) as files:
        return sum(file.stat().st_size for file in files)
