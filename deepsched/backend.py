"""deepsched as an ONNX backend: onnx.backend.base.Backend, for onnx's own test suite.

Example:
    >>> import deepsched.backend as backend
    >>> backend.supports_device("CPU"), backend.supports_device("CUDA")
    (True, False)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep, Device, DeviceType, namedtupledict

from deepsched.engine import Engine


class DeepschedBackendRep(BackendRep):
    """A prepared model."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs for `inputs`: a list in the graph's order, a mapping, or one array."""
        if isinstance(inputs, np.ndarray):
            inputs = [inputs]
        if isinstance(inputs, (list, tuple)):
            # The suite leaves out optional inputs at the end.
            missing = len(self._engine.input_names) - len(inputs)
            inputs = [*inputs, *[None] * missing]
        outputs = self._engine.run(inputs)
        names = [name or f"output_{i}" for i, name in enumerate(self._engine.output_names)]
        return namedtupledict("Outputs", names)(*outputs)


class DeepschedBackend(Backend):
    """Runs ONNX models on the CPU through an Engine with any batch size."""

    @classmethod
    def prepare(
        cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any
    ) -> DeepschedBackendRep:
        """Compiles `model`; `kwargs` are Engine's."""
        super().prepare(model, device, **kwargs)
        kwargs.setdefault("batch_size", None)
        kwargs.setdefault("cache_dir", None)  # such models are made on the spot, and not kept
        return DeepschedBackendRep(Engine(model, **kwargs))

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Compiles `model` and runs it once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Runs one operator: a model of this node alone, its inputs typed as `inputs` are."""
        super().run_node(node, inputs, device, outputs_info, **kwargs)
        arrays = [np.asarray(value) for value in inputs]
        values = [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in zip([name for name in node.input if name], arrays, strict=True)
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
        graph = onnx.helper.make_graph([node], node.op_type, values, outputs)
        # Straight to the engine: the checker asks for the outputs' types, which ORT infers.
        with Engine(onnx.helper.make_model(graph, ir_version=10), None, cache_dir=None) as engine:
            return DeepschedBackendRep(engine).run(arrays)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """CPU only."""
        return bool(Device(device).type == DeviceType.CPU)


prepare = DeepschedBackend.prepare
run_model = DeepschedBackend.run_model
run_node = DeepschedBackend.run_node
supports_device = DeepschedBackend.supports_device
