"""CACHEDIR.TAG: marks a folder as ours to fill and to empty, and tells backups to leave it out.

The format is that of https://bford.info/cachedir/.
"""

from __future__ import annotations

import contextlib
import os

from deepsched.models.folders import Folder
from deepsched.models.records import replace_file

TAG = "CACHEDIR.TAG"

_TEXT = b"""Signature: 8a477f597d28d172789f06886806bc55
# This folder was made by deepsched, and holds nothing but what it can make again.
# For the format see https://bford.info/cachedir/
"""


def write_tag(folder: Folder) -> None:
    """Marks a folder. Raises OSError."""
    replace_file(folder, TAG, _TEXT)


def has_tag(folder: Folder) -> bool:
    """Whether the folder has our mark; another program's does not count."""
    with contextlib.suppress(OSError):
        fd = folder.open_file(TAG)
        try:
            return os.read(fd, len(_TEXT) + 1) == _TEXT
        finally:
            os.close(fd)
    return False
