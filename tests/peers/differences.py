"""Where tests of others ask for what deepsched does otherwise, by the test's name and its failure.

The guide's pages on DeepSparse and on onnxruntime have each.
"""

from __future__ import annotations

DIFFERENCES: dict[str, tuple[tuple[str, str], ...]] = {
    "deepsparse": (
        (r"input_shapes must be a list of shapes", "a shape for each input, no flat list"),
        (r"num_streams must be an integer between 1 and", "no more streams than cores"),
        (r"'-n(streams|cores)', '4'", "no more streams and cores than there are"),
        (r"test_\w+_help .*usage: deepsched", "the command has another name"),
        (r"test_check_hardware", "the command has another name and other lines"),
        (
            r"deepsparse\.(operators|schedulers|benchmark\.api)",
            "of its pipelines; there are none",
        ),
        (r"cannot import name 'Pipeline'", "of its pipelines; there are none"),
    ),
    "onnxruntime": (
        (r"test_raise_wrong_num_inputs .*missing", "the error has other words"),
        (r"test_dict_vectorizer .*InputTypeError", "the error is a ValueError and a TypeError"),
        (r"strings without NUL", "no NUL inside a string: InputTypeError"),
        (r"opaque or sparse", "no sparse tensors as inputs: UnsupportedModelError"),
    ),
}
