"""/proc/locks, and what may lie where the file of leases is to be: locks of others, or an OSError.

The first byte chooses what lies there; the rest is the text, in which DEVICE stands for the file's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from deepsched.machine import lease_file
from fuzz.folders import folder
from fuzz.target import Target


def check(data: bytes) -> None:
    place = folder("leases")
    os.environ["DEEPSCHED_LEASE_DIR"] = str(place)
    path = place / lease_file.NAME
    _put(path, (data[0] if data else 0) % 6)
    text = data[1:].decode("utf-8", "replace")

    def read_text(_: Path) -> str:
        status = path.stat()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        return text.replace("DEVICE", device)

    lease_file.read_text = read_text  # type: ignore[assignment]
    leases = lease_file.LeaseFile()
    try:
        with leases.allocating():
            assert leases.try_lock([0, 1, 5], is_lease=True)
        for lock in leases.locks():
            assert lock.pid >= 0
        leases.unlock([0, 1, 5], is_lease=True)
    except OSError as error:
        assert str(error)
    finally:
        if leases._fd >= 0:  # a process has one, and keeps it
            os.close(leases._fd)


def _put(path: Path, what: int) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if what == 1:
        path.write_bytes(b"text")
    elif what == 2:
        path.mkdir()
    elif what == 3:
        os.mkfifo(path)
    elif what == 4:
        path.symlink_to("elsewhere")
    elif what == 5:
        path.symlink_to(path.name)


def _seeds() -> Iterator[bytes]:
    for what in range(6):
        yield bytes([what]) + (
            b"1: POSIX  ADVISORY  WRITE 12 DEVICE 0 3\n"
            b"1: -> POSIX  ADVISORY  WRITE 12 DEVICE 0 3\n"
            b"2: POSIX  ADVISORY  READ  -1 DEVICE 1048576 1048577\n"
            b"3: FLOCK  ADVISORY  WRITE 3 00:2f:4 0 EOF\n"
            b"4: POSIX  ADVISORY  WRITE 1 DEVICE 3145728 EOF\n"
        )


TARGET = Target(check, _seeds, words=(b"DEVICE", b"POSIX", b"EOF", b"READ", b"WRITE", b"-1"))
