"""A prepared model with the rewrites that serve it on these streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepsched.machine.partition import Stream
from deepsched.models.external_data import FOLDER, external_paths, point_at
from deepsched.models.prepare import PreparedModel, serialize
from deepsched.models.repeatability import varying_operators
from deepsched.models.rewrites.tried import Tried
from deepsched.runtime.session import Session

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from deepsched.models.rewrites.graph import ReadTensor


OpenPrepared = Callable[[PreparedModel, Stream], Session]


def rewrite_model(
    prepared: PreparedModel,
    rewrites: str,
    open_prepared: OpenPrepared,
    streams: Sequence[Stream],
    is_pinned: bool,
) -> tuple[PreparedModel, tuple[Tried, ...]]:
    """The model to be compiled, and how the rules that fit it fared.

    Raises:
        ModelError, ThreadError: the model as it is cannot be opened.
        InvalidModelError: the model's file has changed since it was prepared.
    """
    if rewrites == "none":
        return prepared, ()
    import onnx  # 0.3 s that models from the cache need not pay

    from deepsched.models.rewrites.catalog import RULES
    from deepsched.models.rewrites.choosing import choose

    plain, prepared = prepared, _to_be_changed(prepared)

    def load() -> onnx.ModelProto:
        return onnx.load_from_string(prepared.graph)

    def open_form(
        model: onnx.ModelProto | None, config: Mapping[str, str], stream: Stream
    ) -> Session:
        form = plain if model is None else _with_graph(prepared, model, config)
        return open_prepared(form, stream)

    read = _reader(prepared, load())
    choice = choose(
        load=load,
        read=read,
        rules=[rule for rule in RULES if rule.is_exact or rewrites == "fast"],
        open_form=open_form,
        streams=widest_and_narrowest(streams),
        is_pinned=is_pinned,
    )
    return with_rules(plain, choice.tried), choice.tried


def with_rules(prepared: PreparedModel, tried: Sequence[Tried]) -> PreparedModel:
    """The model, rewritten by the rules that are kept."""
    kept = {it.rule for it in tried if it.is_kept}
    if not kept:
        return prepared
    import onnx

    from deepsched.models.rewrites.catalog import RULES, rewrite

    prepared = _to_be_changed(prepared)
    model = onnx.load_from_string(prepared.graph)
    rules = [rule for rule in RULES if rule.name in kept]
    config = rewrite(model, rules, _reader(prepared, model)).config
    return _with_graph(prepared, model, config)


def _to_be_changed(prepared: PreparedModel) -> PreparedModel:
    """Its graph as that of a model that is no file: it tells where its external data is."""
    import onnx

    if not prepared.is_unchanged or not prepared.external_files:
        return prepared
    model = onnx.load_from_string(prepared.graph)
    folder = point_at(model, external_paths(prepared.path, prepared.external_files))
    return prepared._replace(graph=serialize(model), config={FOLDER: folder})


def _reader(prepared: PreparedModel, model: onnx.ModelProto) -> ReadTensor:
    """Reads initializers wherever they are: in the graph, among the large weights, or in files."""
    from onnx import TensorProto, numpy_helper

    weights = prepared.weights
    large = {model.graph.initializer[it.initializer].name: it for it in weights.places}

    def read(tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
        if (place := large.get(tensor.name)) is not None:
            raw = weights.read(place)
            tensor = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=raw)
        return numpy_helper.to_array(tensor, base_dir=prepared.config.get(FOLDER, ""))

    return read


def _with_graph(
    prepared: PreparedModel, model: onnx.ModelProto, config: Mapping[str, str]
) -> PreparedModel:
    """Rules add initializers at the end, and remove none: the places of large weights hold."""
    return prepared._replace(
        graph=serialize(model),
        varying=varying_operators(model),
        is_unchanged=False,
        config={**prepared.config, **config},
    )


def widest_and_narrowest(streams: Sequence[Stream]) -> list[Stream]:
    """In this order; a single one if all are as wide."""
    by_width = {len(stream.cpus): stream for stream in reversed(streams)}
    return [by_width[width] for width in sorted({max(by_width), min(by_width)}, reverse=True)]
