"""Arguments of the command line, up to where a command would run: they are taken, or refused with
status 2 and a message, or print help. --input-shapes is a list of lists or an OptionError.

Arguments are separated by newlines.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from deepsched.checks import check_integer
from deepsched.cli.options import parse_shapes
from deepsched.cli.program import COMMANDS, build_parser
from deepsched.errors import OptionError, ShapeOverrideError
from deepsched.models.batch import check_batch_size
from deepsched.models.prepare import check_shapes
from fuzz.target import Target


def check(data: bytes) -> None:
    arguments = data.decode("utf-8", "surrogateescape").split("\n")
    command = next((it for it in arguments if not it.startswith("-")), "")
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            parsed = build_parser([command]).parse_args(arguments)
        except SystemExit as end:
            assert end.code in (0, 2), end.code
            assert said.getvalue(), "it ended without a word"
            return
    with contextlib.suppress(OptionError, ShapeOverrideError):
        check_shapes(parse_shapes(getattr(parsed, "input_shapes", "")))
    with contextlib.suppress(OptionError):
        check_batch_size(getattr(parsed, "batch_size", None))
    with contextlib.suppress(OptionError):
        check_integer("num_streams", getattr(parsed, "num_streams", None), 1)


def _seeds() -> Iterator[bytes]:
    for command in COMMANDS:
        yield command.encode()
        yield f"{command}\n--help".encode()
    yield b"benchmark\nm.onnx\n-b\n4\n-i\n[1,3],[2]\n--seconds\n0.5\n--callers\n2\n--rate\n1e3"
    yield b"serve\na=m.onnx\n--port\n0\n--config\nc.yaml\n--num-streams=2"
    yield b"advise\nm.onnx\n--goal\nlatency\n--batching\n8"
    yield b"topology\n--num-streams\n2\n--cores\nlease"
    yield b"benchmark\n--input-shapes\n" + b"[" * 3000


_WORDS = tuple(it.encode() for it in COMMANDS) + (
    *(
        b"--batch-size",
        b"--input-shapes",
        b"--num-streams",
        b"--num-cores",
        b"--seconds",
        b"--rate",
    ),
    *(b"--rewrites", b"--batching", b"--scheduler", b"--output", b"nan", b"inf", b"--", b"1_0"),
)

TARGET = Target(check, _seeds, words=_WORDS, max_bytes=4096)
