"""A model's bytes, compiled and run on made-up inputs: all goes well, or is refused by an exception
of errors.py. With the default options for one in four (by its content), since rewrites and batches
are tried by running; plain for the others. Left out: models that ask for more than 64 MB of inputs.

A crash that plain onnxruntime has as well, at the same input, is ONNX Runtime's own.
"""

from __future__ import annotations

import functools
import math
import zlib

from deepsched.context import Context
from deepsched.engine import Engine
from deepsched.errors import DeadlineExceeded, InferenceError, InputError, ModelError, OptionError
from deepsched.models import prepare, random_inputs
from deepsched.models.batching import search
from deepsched.models.rewrites import catalog, choosing
from fuzz.models import mutate, seeds
from fuzz.target import Target

_MOST_ELEMENTS = 2**23
_TIMEOUT = 2.0

_INSTRUMENTED = (prepare, random_inputs, search, catalog, choosing)
"""Imported here, while imports are instrumented, rather than when they are first used."""


def check(data: bytes) -> None:
    has_defaults = zlib.crc32(data) % 4 == 0
    options = {} if has_defaults else {"rewrites": "none", "batching": "off"}
    try:
        engine = Engine(data, context=_context(), cache_dir=None, **options)
    except (ModelError, OptionError) as error:
        assert str(error)
        return
    with engine:
        sizes = [
            [it if isinstance(it, int) else 1 for it in shape] for shape in engine.input_shapes
        ]
        if sum(map(math.prod, sizes)) > _MOST_ELEMENTS:
            return
        try:
            inputs = engine.generate_random_inputs()
            first = engine.run(inputs, timeout=_TIMEOUT)
            assert len(first) == len(engine.output_names)
        except (ModelError, InputError, InferenceError, DeadlineExceeded) as error:
            assert str(error)


@functools.cache
def _context() -> Context:
    return Context(num_cores=1, num_streams=1, pin="none", cores="share")


TARGET = Target(check, seeds, mutate, is_ort=True, max_bytes=40_000)
