"""What onnxruntime does of a model by itself: python -m fuzz.plain_onnxruntime FILE

Opens it as deepsched does (optimised, saved, and opened again from what was saved), and runs it on
ones. Where the process dies of it, or takes as long, that is ONNX Runtime's own; where it takes as
much memory, it exits with TOO_LARGE.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnxruntime

from fuzz.target import MOST_MIB, TOO_LARGE


def main(path: str) -> int:
    data = Path(path).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        saved = str(Path(folder, "model.onnx"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        with suppress(Exception):
            _run(onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]))
        options.optimized_model_filepath = saved
        with suppress(Exception):
            onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            _run(onnxruntime.InferenceSession(saved, providers=["CPUExecutionProvider"]))
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return TOO_LARGE if taken > MOST_MIB * 1024 else 0


def _run(session: onnxruntime.InferenceSession) -> None:
    types = {"tensor(float)": "f4", "tensor(int64)": "i8", "tensor(bool)": "?"}
    feeds = {
        it.name: np.ones([n if isinstance(n, int) else 1 for n in it.shape], types[it.type])
        for it in session.get_inputs()
    }
    session.run(None, feeds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
