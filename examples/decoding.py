"""What the examples are given: .npy files and images, by anybody, and damaged ones among them.

All that is wrong with one is an InputError, whatever numpy or Pillow made of it: they raise
SyntaxError, RecursionError, MemoryError, BadZipFile and more. What an image takes is bounded before
its pixels are unpacked, since half a megabyte of PNG may hold a gigabyte of them.
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from deepsched.errors import InputError

MOST_PIXELS = 25_000_000
"""Of an image: 200 MB while it is decoded, in the file's colours and in RGB."""

FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

_MOST_HEADER = 4096  # of an .npy file; 32 dimensions and their names take less

Shape = Sequence[int | str | None]
"""An engine's input_shapes have these; what is not an int may have any size."""


def read_npy(path: str | Path) -> NDArray[np.generic]:
    """The array in a file; its size bounds the memory, whatever the header says."""
    with _refused("cannot be read"), _open_regular(path) as file:
        return view_npy(file.read())


def view_npy(data: bytes | bytearray) -> NDArray[np.generic]:
    """The array in the bytes of an .npy file, without copying it.

    >>> file = io.BytesIO()
    >>> np.save(file, np.arange(3))
    >>> view_npy(bytearray(file.getvalue()))
    array([0, 1, 2])
    """
    with _refused("not an .npy file, or a damaged one"):
        file = io.BytesIO(memoryview(data)[:_MOST_HEADER])
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("arrays of Python objects are not taken")
        if any(size < 0 for size in shape):
            raise ValueError(f"a shape of {shape}")
        array = np.frombuffer(data, dtype, count=math.prod(shape), offset=file.tell())
        return array.reshape(shape, order="F" if is_fortran else "C")


def decode_image(source: Path | BinaryIO, shape: Shape) -> NDArray[np.float32]:
    """RGB, as large as a model with this input shape takes it, from 0 to 1.

    What a model was trained on decides; change it to that.

    Raises:
        InputError: not an image, a damaged or too large one, or the model takes none.
        ImportError: there is no Pillow.
    """
    from PIL import Image

    if len(shape) != 4:
        raise InputError(f"the model takes no images: its input has the shape {list(shape)}")
    height, width = (size if isinstance(size, int) else 224 for size in shape[-2:])
    with (
        _refused("not an image that can be read"),
        _open_regular(source) if isinstance(source, Path) else nullcontext(source) as file,
        Image.open(file, formats=FORMATS) as image,
    ):
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels; {MOST_PIXELS} are allowed")
        image.draft("RGB", (width, height))  # a JPEG is then decoded only as large as needed
        pixels = np.asarray(image.convert("RGB").resize((width, height)), np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None] / 255)


def check_fits(array: NDArray[np.generic], shape: Shape, dtype: np.dtype[np.generic]) -> None:
    """Raises InputError if a model with such an input would, as far as the shape tells.

    >>> check_fits(np.zeros((2, 3)), ("batch", 4), np.dtype(float))
    Traceback (most recent call last):
    deepsched.errors.InputError: expected float64 of shape ['batch', 4], got float64 of (2, 3)
    """
    fits = array.dtype.newbyteorder("=") == dtype
    if shape:  # () may also be a model that does not say how many dimensions
        fits &= len(shape) == array.ndim and all(
            size == actual or not isinstance(size, int)
            for size, actual in zip(shape, array.shape, strict=True)
        )
    if not fits:
        raise InputError(
            f"expected {dtype} of shape {list(shape)}, got {array.dtype} of {array.shape}"
        )


def _open_regular(path: str | Path) -> BinaryIO:
    """Neither a FIFO, whose opening waits for a writer, nor a device, which may have no end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError("not a regular file")
    return os.fdopen(descriptor, "rb")


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Exception, not a list: every list of what decoders raise was too short."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {error or repr(error)}") from None
