"""Models in ONNX Runtime's own format (`.ort`), which it makes ONNX of again."""

from __future__ import annotations

import contextlib
import os

from deepsched.errors import UnsupportedModelError
from deepsched.runtime.session import open_session

_MARK_AT, _MARK = 4, b"ORTM"
"""A flatbuffer's file identifier, behind the offset of its root."""


def is_ort_format(model: str | bytes) -> bool:
    """Whether a model, a path or bytes, is in that format. False for what cannot be read."""
    if isinstance(model, bytes):
        return model.startswith(_MARK, _MARK_AT)
    with contextlib.suppress(OSError):
        fd = os.open(model, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe has no reader yet
        try:
            return os.pread(fd, len(_MARK), _MARK_AT) == _MARK
        finally:
            os.close(fd)
    return False


def as_onnx(model: str | bytes) -> bytes:
    """The same model as a serialized ModelProto.

    Raises:
        ModelError: ONNX Runtime does not open it.
        UnsupportedModelError: it cannot be converted here.
    """
    name = repr(model) if isinstance(model, str) else "the model that was given as bytes"
    try:
        fd = os.memfd_create("deepsched-onnx")  # on no disk: it may have been decrypted
    except OSError as error:
        raise UnsupportedModelError(
            f"{name} is in ONNX Runtime's own format, which cannot be converted here "
            f"({error}); give the ONNX file that it was made from"
        ) from error
    with open(fd, "rb") as file:
        open_session(
            model,
            num_threads=1,
            cpus=None,
            thread_prefix="ds-convert",
            config={"session.load_model_format": "ORT", "session.save_model_format": "ONNX"},
            is_optimized=True,
            save_to=f"/proc/self/fd/{fd}",
        )
        return file.read()
