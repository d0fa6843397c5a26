"""glibc's allocator, set for bodies of images: what page faults cost."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_BYTES = 32 * 2**20
"""glibc's own limit of the mmap threshold."""


def keep_freed_memory() -> None:
    """Lets this process keep what it frees, instead of giving back every large body at once.

    By default memory of 128 KiB and more comes fresh from the kernel, a page fault every 4 KiB:
    two thirds of the server's time for an image. Does nothing where there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _BYTES)
        mallopt(_M_TRIM_THRESHOLD, 4 * _BYTES)
