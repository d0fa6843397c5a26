"""Names and paths of models: what a name may be, and that a path stays below its folder.

Names in requests are looked up among those that were found, and never become paths. What is
checked here is what the folder itself holds: a link may lead anywhere.
"""

from __future__ import annotations

import os
import re

from deepsched.errors import InvalidModelError, ModelNotFoundError

_VERSION = re.compile(r"[1-9][0-9]{0,17}")


def is_version(text: str) -> bool:
    """Whether `text` is a version: a positive integer without zeros before it.

    >>> is_version("12"), is_version("012"), is_version("1.5")
    (True, False, False)
    """
    return _VERSION.fullmatch(text) is not None


def why_no_name(name: str) -> str:
    """What keeps `name` from being a model's; empty if nothing does.

    A name is a part of an address, and is printed in logs.

    >>> why_no_name("resnet 50"), why_no_name("../etc"), why_no_name("")
    ('', 'it has a slash', 'it is empty')
    """
    if not name:
        return "it is empty"
    if "/" in name or "\\" in name:
        return "it has a slash"
    if name.startswith("."):
        return "it begins with a dot"
    if not name.isprintable():  # NUL, control characters, lone surrogates of other encodings
        return "it has characters that cannot be printed"
    return ""


def inside(folder: str, path: str) -> str:
    """`path`, which must lead to a file or a folder below `folder`, links resolved.

    Raises:
        InvalidModelError: it leads out of `folder`.
        ModelNotFoundError: there is nothing.
    """
    if "\0" in path:
        raise ModelNotFoundError(f"there is no {path!r}: no name has a NUL in it")
    real, real_folder = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([real, real_folder]) != real_folder or real == real_folder:
        raise InvalidModelError(
            f"{path} leads to {real}, which is not in {folder}; what is served from a folder must "
            "be in it"
        )
    if not os.path.exists(real):
        raise ModelNotFoundError(f"there is no {path}")
    return path
