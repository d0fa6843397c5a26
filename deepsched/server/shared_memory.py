"""System shared memory that clients have registered, for tensors to be read where they lie."""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deepsched.server.errors import RequestError
from deepsched.server.request_limits import integer_of

_FOLDER = Path("/dev/shm")

# What shm_open takes: one name, with or without a slash before it. Names that begin with "sem."
# are semaphores of programs.
_KEY = re.compile(r"/?(?!\.\.?$)(?!sem\.)[^/\0]{1,254}")

_MOST_REGIONS = 4096


class Region(NamedTuple):
    """A part of a shared memory object."""

    name: str
    key: str
    offset: int
    byte_size: int
    memory: memoryview
    """Of the part."""
    descriptor: _Descriptor


class _Descriptor:
    """Closes a file descriptor with itself."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class Regions:
    """By name. A region that is unregistered stays mapped until the last request that uses it has
    ended."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        self._folder = folder
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Maps a part of the object `key`.

        Raises:
            RequestError: the name is taken, the key is none, there is no such object, or it is
                shorter than offset + byte_size.
        """
        what = f"shared memory region {name!r:.80}"
        if not name or name in self._regions:
            raise RequestError(f"{what} is registered already" if name else "a region needs a name")
        if len(self._regions) >= _MOST_REGIONS:
            raise RequestError(f"{_MOST_REGIONS} regions are registered already; unregister some")
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise RequestError(
                f"{what}: expected a key as of shm_open, one name without folders, got {key!r:.80}"
            )
        for field, value, least in (("offset", offset, 0), ("byte_size", byte_size, 1)):
            if type(value) is not int or not least <= value < 2**62:
                raise RequestError(
                    f"{what}: expected {field} to be {least} or more, got {value!r:.40}"
                )
        self._regions[name] = self._map(what, name, key, offset, byte_size)

    def _map(self, what: str, name: str, key: str, offset: int, byte_size: int) -> Region:
        path = self._folder / key.removeprefix("/")
        try:
            # O_NONBLOCK: a pipe of this name does not keep us waiting.
            number = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise RequestError(f"{what}: no object {key!r}: {error.strerror}") from None
        descriptor = _Descriptor(number)
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise RequestError(f"{what}: {key!r} is no shared memory object")
        if offset + byte_size > status.st_size:
            raise RequestError(
                f"{what}: offset {offset} + byte_size {byte_size} is beyond the end of {key!r}, "
                f"which has {status.st_size} bytes"
            )
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        try:
            mapped = mmap.mmap(number, offset + byte_size - start, offset=start)
        except (OSError, ValueError) as error:
            raise RequestError(f"{what}: {key!r} cannot be mapped: {error}") from None
        memory = memoryview(mapped)[offset - start :]
        return Region(name, key, offset, byte_size, memory, descriptor)

    def unregister(self, name: str) -> None:
        """Forgets a region; "": all. One that is not there is forgotten already."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def status(self, name: str = "") -> list[Region]:
        """The region `name`; "": all.

        Raises:
            RequestError: no such region.
        """
        if not name:
            return list(self._regions.values())
        return [self._find(name)]

    def _find(self, name: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            raise RequestError(f"no shared memory region {name!r:.80} is registered")
        return region

    def view(self, what: str, parameters: Mapping[str, Any]) -> memoryview:
        """The bytes that a tensor's parameters name.

        Args:
            what: whose, for errors.
            parameters: `shared_memory_region`, `shared_memory_byte_size` and, if it is not 0,
                `shared_memory_offset`.

        Raises:
            RequestError: not within the region, or the object has become shorter.
        """
        name = parameters["shared_memory_region"]
        region = self._find(name if isinstance(name, str) else "")
        offset = _integer(what, parameters, "shared_memory_offset", 0)
        byte_size = _integer(what, parameters, "shared_memory_byte_size", None)
        if offset + byte_size > region.byte_size:
            raise RequestError(
                f"{what}: offset {offset} + {byte_size} bytes is beyond the end of shared memory "
                f"region {region.name!r}, which has {region.byte_size}"
            )
        # Touching a page beyond the object's end would end the process.
        if os.fstat(region.descriptor.number).st_size < region.offset + region.byte_size:
            raise RequestError(
                f"{what}: the object {region.key!r} has become shorter than its region "
                f"{region.name!r}; register it again"
            )
        return region.memory[offset : offset + byte_size]

    def write(
        self, output: str, parameters: Mapping[str, Any], data: bytes | memoryview
    ) -> dict[str, Any]:
        """Writes an output where its parameters say, and returns those that tell where.

        Raises:
            RequestError: see `view`; or there is less room than the output has bytes.
        """
        view = self.view(f"output {output!r}", parameters)
        if len(data) > view.nbytes:
            raise RequestError(
                f"output {output!r} has {len(data)} bytes, more than shared_memory_byte_size "
                f"{view.nbytes}"
            )
        view[: len(data)] = data
        return {
            "shared_memory_region": parameters["shared_memory_region"],
            "shared_memory_byte_size": len(data),
            "shared_memory_offset": parameters.get("shared_memory_offset", 0),
        }


def _integer(what: str, parameters: Mapping[str, Any], name: str, default: int | None) -> int:
    value = integer_of(parameters.get(name, default))
    if type(value) is not int or value < 0:
        raise RequestError(f"{what}: expected {name} to be 0 or more, got {value!r:.40}")
    return value
