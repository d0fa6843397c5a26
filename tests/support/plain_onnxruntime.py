"""The same model on plain onnxruntime, whose results ours equal bit for bit."""

from __future__ import annotations

import onnxruntime


def plain(model, num_threads=1):
    """A session of onnxruntime; as many threads as our stream has, for the same sums."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 4
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options)


def reference(model, inputs, num_threads=1):
    """The outputs of plain onnxruntime."""
    session = plain(model, num_threads)
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


def same_bits(actual, expected):
    """Asserts that two outputs, or lists of them, have the same dtypes, shapes and bits."""
    if isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            same_bits(one, other)
    elif expected.dtype == object:
        assert actual.tolist() == expected.tolist()
    else:
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        assert actual.tobytes() == expected.tobytes()


def assert_equals_plain(engine, model):
    """Asserts that an engine whose streams have one core gives onnxruntime's bits."""
    inputs = engine.generate_random_inputs()
    same_bits(engine.run(inputs), reference(model, inputs))
