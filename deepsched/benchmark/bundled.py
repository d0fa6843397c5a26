"""Models without a download: the onnx wheel ships some for its own tests."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from deepsched.errors import ModelNotFoundError


def bundled_model(name: str = "resnet50") -> str:
    """The path of a model in the onnx wheel: the full graph, with random weights.

    Args:
        name: bvlc_alexnet, densenet121, inception_v1, inception_v2, resnet50, shufflenet,
            squeezenet, vgg19 or zfnet512.

    Raises:
        ModelNotFoundError: the installed onnx does not ship it.

    >>> bundled_model().endswith("light_resnet50.onnx")
    True
    """
    spec = find_spec("onnx")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        path = Path(folder, "backend/test/data/light", f"light_{name}.onnx")
        if path.is_file():
            return str(path)
    raise ModelNotFoundError(
        f"the installed onnx does not ship light_{name}.onnx; give the path of a model"
    )
