"""Finds a model, and fixes its batch size and input shapes in the graph."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from deepsched.checks import check_integer
from deepsched.errors import (
    InvalidModelError,
    ModelError,
    ModelNotFoundError,
    OptionError,
    ShapeOverrideError,
    UnsupportedModelError,
)
from deepsched.models.batch import BatchSize, Sizes, check_batch_size, settle_batch
from deepsched.models.external_data import (
    FOLDER,
    external_files,
    external_paths,
    has_links,
    point_at,
)
from deepsched.models.folders import working_folder
from deepsched.models.large_weights import LargeWeights, split
from deepsched.models.ort_format import as_onnx, is_ort_format
from deepsched.models.repeatability import Varying, all_nodes, varying_operators
from deepsched.models.shape_inference import infer_shapes

if TYPE_CHECKING:
    import numpy as np
    import onnx

ModelLike: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"
Shapes: TypeAlias = Sequence[Sequence[int] | None]


class PreparedModel(NamedTuple):
    """A model that is ready to be compiled."""

    path: str | None
    """The file it came from; None for a model given as bytes or as a ModelProto."""
    name: str
    """Its path; for a model given as bytes, how many they are."""
    graph: bytes
    """A serialized ModelProto, without the bytes of `weights`."""
    weights: LargeWeights
    """Its large initializers; none if it has external data."""
    weights_bytes: int
    """Size of all initializers, those in external data included."""
    largest_bytes: int
    """Size of the largest of them."""
    varying: Varying
    """Its operators that may give other bits on other numbers of threads."""
    is_unchanged: bool
    """Whether its file is as good."""
    config: dict[str, str]
    """Session config entries that ONNX Runtime needs to open it from memory."""
    batch_size: int | None
    """The first dimension of its inputs; None where the model decides."""
    changed_fixed_sizes: bool
    """Whether a size that the model states was replaced, which its nodes may not allow."""
    external_files: tuple[str, ...]
    """Names by which it refers to its external data; see external_paths."""

    @property
    def source(self) -> str | bytes:
        """The whole of it, as ONNX Runtime opens it: a path, or a serialized ModelProto.

        Raises:
            InvalidModelError: above 2 GB, or its file has changed.
        """
        if self.is_unchanged and self.path is not None:
            return self.path
        return self.weights.put_back(self.graph) if self.weights.places else self.graph


def prepare_model(
    model: ModelLike,
    batch_size: BatchSize,
    input_shapes: Shapes | None,
    *,
    opens_batch: bool = False,
) -> PreparedModel:
    """Finds `model` and fixes the shapes of its inputs.

    Args:
        model: a path, a serialized ModelProto, or an onnx.ModelProto.
        batch_size: the first dimension of the inputs that batch_inputs finds, or of every input
            that leaves it open if it finds none. "auto" is 1 where batch_inputs finds an open one,
            and leaves all else as it is; so does None with everything. "auto" and 1 give way to
            `input_shapes`.
        input_shapes: a shape for each input, in the graph's order; None in place of a shape
            leaves that input to `batch_size`.
        opens_batch: first dimensions that the file leaves open stay so.

    Raises:
        ModelNotFoundError, InvalidModelError: there is no such file, or it is not a model, or its
            external data is missing or outside its folder.
        OptionError: batch_size or input_shapes is not valid.
        ShapeOverrideError: they are valid, but do not fit this model.
    """
    asked = check_batch_size(batch_size)
    path = None
    if isinstance(model, (str, os.PathLike)):
        path = _check_path(os.fspath(model))
    source = path if path is not None else model
    converted = None
    if isinstance(source, (str, bytes)) and is_ort_format(source):
        converted = as_onnx(source)
    proto, weights = _split(source if converted is None else converted)
    names = [value.name for value in _inputs_of(proto)]
    if twice := {name for name in names if names.count(name) > 1}:
        described = _describe(source)
        raise InvalidModelError(f"{described} has several inputs named {min(twice)!r}")
    shapes = _one_shape_each(check_shapes(input_shapes), names)
    sizes = {value.name: stated for value, stated in inputs_with_sizes(proto)}
    batch_size, batched = settle_batch(asked, shapes, sizes)
    _check_has_batch(proto, batch_size)
    wanted = _wanted_shapes(proto, shapes, dict.fromkeys(batched, batch_size))
    if opens_batch:
        for name, shape in wanted.items():
            shape[:1] = [None for size in sizes[name][:1] if not isinstance(size, int)] or shape[:1]
    changed, changed_fixed = _fix_shapes(proto, wanted)
    if any(shapes):
        _check_windows_fit(proto, input_shapes)
    changed |= converted is not None
    changed |= _drop_inputs_that_are_initializers(proto)
    files = external_files(proto)
    paths = external_paths(path, files)
    changed |= path is not None and has_links(path, paths)
    is_unchanged = not changed and path is not None
    config = {FOLDER: point_at(proto, paths)} if paths and not is_unchanged else {}
    graph = serialize(proto)
    if files and weights.places:
        # ONNX Runtime looks up all external data in one folder.
        graph, weights = weights.put_back(graph), weights.without()
    num_bytes = [_num_bytes(tensor) for tensor in proto.graph.initializer]
    name = path or f"{len(graph) + sum(place.num_bytes for place in weights.places)} bytes"
    return PreparedModel(
        path=path,
        name=name,
        graph=graph,
        weights=weights,
        weights_bytes=sum(num_bytes),
        largest_bytes=max(num_bytes, default=0),
        varying=varying_operators(proto),
        is_unchanged=is_unchanged,
        config=config,
        batch_size=batch_size,
        changed_fixed_sizes=changed_fixed,
        external_files=files,
    )


def serialize(model: bytes | onnx.ModelProto) -> bytes:
    """The bytes of a model that is not a file.

    Raises:
        InvalidModelError: above 2 GB, which protobuf cannot hold.
    """
    if isinstance(model, (bytes, bytearray, memoryview)):
        return bytes(model)
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except ValueError as error:
        raise InvalidModelError(
            f"this ModelProto cannot be serialized ({error}); above 2 GB, save it with external "
            "data (onnx.save_model(..., save_as_external_data=True)) and give its path"
        ) from error


def inputs_of(model: PreparedModel) -> list[tuple[str, list[int | None], np.dtype[Any]]]:
    """Name, shape and dtype of each input, as the model's file states them; None for open sizes.

    Raises:
        UnsupportedModelError: an input is not a tensor, or has no shape, or a type that ONNX has
            not.
    """
    found = []
    for value, shape in inputs_with_sizes(_parse(model.graph)):
        tensor = value.type.tensor_type
        dtype = _dtype_of(tensor.elem_type)
        if not tensor.HasField("shape") or dtype is None:
            raise UnsupportedModelError(
                f"input {value.name!r} is no tensor of a known shape and type"
            )
        fixed = [size if isinstance(size, int) else None for size in shape]
        found.append((value.name, fixed, dtype))
    return found


def inputs_with_sizes(proto: onnx.ModelProto) -> Iterator[tuple[onnx.ValueInfoProto, Sizes]]:
    """Each input that a caller feeds, with its sizes: none if the file states no shape."""
    for value in _inputs_of(proto):
        yield value, [size_of(dim) for dim in value.type.tensor_type.shape.dim]


def size_of(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """An int, a symbol's name or None for any."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None  # Paddle writes -1 for any
    return _symbol(dim)


def _symbol(dim: onnx.TensorShapeProto.Dimension) -> str | None:
    """None for the question mark, which Paddle writes into every dimension that may be any."""
    symbol = dim.dim_param
    if isinstance(symbol, bytes):  # it is no UTF-8; none of its bytes becomes like another
        symbol = symbol.decode(errors="backslashreplace")
    return symbol if symbol not in ("", "?") else None


def sequence_shapes(model: ModelLike, batch_size: BatchSize, length: int) -> Shapes:
    """The `input_shapes` that fix the sequence length of inputs that leave it open.

    An input has an open length if its second dimension is open, and no other but the first.

    Raises:
        ShapeOverrideError: no input has an open length.
        What prepare_model raises.
    """
    prepared = prepare_model(model, batch_size, None)
    shapes: list[list[int] | None] = []
    for _, shape in inputs_with_sizes(_parse(prepared.graph)):
        others = [size for size in shape[2:] if isinstance(size, int)]
        is_open = len(shape) == 2 + len(others) and not isinstance(shape[1], int)
        shapes.append([prepared.batch_size or 1, length, *others] if is_open else None)
    if not any(shapes):
        raise ShapeOverrideError(
            "a sequence length is the second dimension of inputs that leave it open, and only it "
            "and the batch; this model has none: give input_shapes"
        )
    return shapes


def _num_bytes(tensor: onnx.TensorProto) -> int:
    """About: less than a byte an element counts as one, and strings as pointers; of a type that
    there is not, which ONNX Runtime will refuse, none."""
    dtype = _dtype_of(tensor.data_type)
    return 0 if dtype is None else int(math.prod(tensor.dims) * dtype.itemsize)


def _dtype_of(elem_type: int) -> np.dtype[Any] | None:
    """numpy's for one of TensorProto.DataType; None for another number."""
    import onnx

    try:
        return onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    except KeyError:
        return None


def _drop_inputs_that_are_initializers(proto: onnx.ModelProto) -> bool:
    """Models of IR version 3 list their initializers among the inputs although they are constant.
    ONNX Runtime saves such a model with these inputs, and would then ask the caller for them."""
    if proto.ir_version >= 4:
        return False
    wanted = _inputs_of(proto)
    has_dropped = len(wanted) < len(proto.graph.input)
    if has_dropped:
        kept = [*wanted]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        proto.ir_version = 4  # the first in which an initializer need not be an input
    return has_dropped


def _check_path(path: str) -> str:
    if os.path.isdir(path):
        raise ModelNotFoundError(f"{path!r} is a folder; give the ONNX file in it")
    if not os.path.exists(path):
        raise ModelNotFoundError(
            f"no model file at {path!r} (working folder: {working_folder()!r})"
        )
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))  # a pipe has no reader
    except PermissionError as error:  # os.access asks for another user, after seteuid
        raise ModelNotFoundError(f"the model file {path!r} may not be read by this user") from error
    except OSError:  # told better by whoever reads it
        pass
    return path


def _split(model: ModelLike) -> tuple[onnx.ModelProto, LargeWeights]:
    """A model without the bytes of its large initializers; and these."""
    import onnx  # 0.3 s that models used as they are need not pay

    if isinstance(model, (onnx.ModelProto, bytearray, memoryview)):
        model = serialize(model)
    if isinstance(model, (str, bytes)):
        with contextlib.suppress(ValueError, OSError):  # _parse tells what is wrong
            graph, weights = split(model)
            return _parse(graph), weights
    return _parse(model), split(b"")[1]


def _parse(model: ModelLike) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if isinstance(model, str):
            # Protobuf, whatever its suffix.
            proto = onnx.load(model, format="protobuf", load_external_data=False)
        elif isinstance(model, bytes):
            proto = onnx.load_from_string(model)
        else:
            raise OptionError(
                "a model is a path, bytes or an onnx.ModelProto, got " + type(model).__name__
            )
    except DecodeError as error:
        raise InvalidModelError(
            f"{_describe(model)} is not an ONNX file, or is cut off or damaged: {error}"
        ) from error
    except UnicodeDecodeError as error:  # by protobuf in Python, which pip takes without a wheel
        raise InvalidModelError(
            f"{_describe(model)} has text that is not UTF-8, as all text in ONNX files has to be: "
            f"{error}"
        ) from error
    if not proto.HasField("graph"):
        raise InvalidModelError(f"{_describe(model)} is not an ONNX model: it holds no graph")
    if not proto.graph.output:  # of which ONNX Runtime complains at each run
        raise InvalidModelError(f"{_describe(model)} has no outputs, so there is nothing to run")
    for name in _names(proto):
        if not isinstance(name, str):  # of text that is not UTF-8, protobuf gives the bytes
            raise InvalidModelError(
                f"{_describe(model)} has the name {name!r:.80}, which is not UTF-8, as all text in "
                "ONNX files has to be"
            )
    return proto


def _names(proto: onnx.ModelProto) -> Iterator[str | bytes]:
    yield proto.graph.name
    for named in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        yield named.name
    for node in all_nodes(proto):
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield from (attribute.name, attribute.g.name)


def _describe(model: ModelLike) -> str:
    return repr(model) if isinstance(model, str) else "the model that was given as bytes"


def _inputs_of(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller feeds: IR version 3 lists the initializers among them."""
    initializers = {tensor.name for tensor in proto.graph.initializer}
    initializers.update(tensor.values.name for tensor in proto.graph.sparse_initializer)
    return [value for value in proto.graph.input if value.name not in initializers]


def _check_has_batch(proto: onnx.ModelProto, batch_size: int | None) -> None:
    """Without a dimension to hold it, a batch would be counted in the figures, but never run."""
    if batch_size is None or batch_size == 1:
        return
    tensors = [value.type.tensor_type for value in _inputs_of(proto)]
    if all(tensor.HasField("shape") and not tensor.shape.dim for tensor in tensors):
        raise ShapeOverrideError(
            f"batch_size={batch_size} would be the first dimension of the inputs, but no input of "
            "this model has dimensions; leave it at 1"
        )


def _check_windows_fit(proto: onnx.ModelProto, input_shapes: Shapes | None) -> None:
    """Checks, as far as onnx can infer sizes, that convolutions and poolings have an output: ONNX
    Runtime (1.32) divides by zero where they have none, which ends the process."""
    inferred = infer_shapes(proto)
    if inferred is None:
        return
    infos = (*inferred.graph.value_info, *inferred.graph.output)
    sizes = {
        info.name: [
            dim.dim_value
            for dim in info.type.tensor_type.shape.dim[2:]
            if dim.HasField("dim_value")
        ]
        for info in infos
    }
    for node in proto.graph.node:
        output = next(iter(node.output), "")
        if node.op_type in _WINDOWS and min(sizes.get(output, ()), default=1) < 1:
            raise ShapeOverrideError(
                f"input_shapes={input_shapes} leave nothing for {node.op_type} "
                f"{node.name or output!r} to work on; give larger ones"
            )


_WINDOWS = frozenset(("AveragePool", "Conv", "ConvInteger", "LpPool", "MaxPool", "QLinearConv"))


def _wanted_shapes(
    proto: onnx.ModelProto, shapes: list[list[int] | None], batches: Mapping[str, int | None]
) -> dict[str, list[int | None]]:
    """The sizes to fix, by input; None keeps a size as it is. `batches`: first sizes, by input,
    where `shapes` has no shape."""
    wanted: dict[str, list[int | None]] = {}
    fixed: dict[str | None, int] = {}  # by symbol
    inputs = _inputs_of(proto)
    for value, shape in zip(inputs, shapes, strict=True):
        if shape is None:
            continue
        dims = value.type.tensor_type.shape.dim
        if not value.type.HasField("tensor_type"):
            raise ShapeOverrideError(
                f"input {value.name!r} is no tensor; input_shapes has None in its place"
            )
        if value.type.tensor_type.HasField("shape") and len(dims) != len(shape):
            raise ShapeOverrideError(
                f"input {value.name!r} has {len(dims)} dimensions, but input_shapes gives it "
                f"{len(shape)}: {shape}"
            )
        wanted[value.name] = list(shape)
        fixed |= {_symbol(dim): size for dim, size in zip(dims, shape, strict=False)}
    fixed.pop(None, None)
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        if value.name in batches and value.name not in wanted and dims:
            size = fixed.get(_symbol(dims[0]), batches[value.name])
            wanted[value.name] = [size] + [None] * (len(dims) - 1)
    return wanted


def check_shapes(input_shapes: Shapes | None) -> list[list[int] | None] | None:
    """Returns them as lists of plain ints; raises OptionError."""
    if input_shapes is None:
        return None
    try:
        if isinstance(input_shapes, (str, bytes, Mapping)):
            raise TypeError
        shapes = [None if shape is None else list(shape) for shape in input_shapes]
    except TypeError:
        raise OptionError(
            "input_shapes must be a list of shapes in the order of the inputs, such as "
            f"[[1, 3, 320, 320]], got {input_shapes!r}"
        ) from None
    return [
        None if shape is None else [check_integer("a size in input_shapes", n, 1) for n in shape]
        for shape in shapes
    ]


def _one_shape_each(
    shapes: list[list[int] | None] | None, names: list[str]
) -> list[list[int] | None]:
    if shapes is None:
        return [None] * len(names)
    if len(shapes) != len(names):
        raise ShapeOverrideError(
            f"input_shapes has {len(shapes)} shapes, but the model has {len(names)} inputs: "
            + ", ".join(names)
        )
    return shapes


def _fix_shapes(proto: onnx.ModelProto, wanted: dict[str, list[int | None]]) -> tuple[bool, bool]:
    """Writes the sizes into the graph. Returns (changed anything, changed a size it states)."""
    symbols: dict[str, int] = {}
    changed = changed_fixed = False
    for value in proto.graph.input:
        if value.name not in wanted:
            continue
        dims = value.type.tensor_type.shape.dim
        while len(dims) < len(wanted[value.name]):
            dims.add()
        for dim, size in zip(dims, wanted[value.name], strict=True):
            if size is None or (dim.HasField("dim_value") and dim.dim_value == size):
                continue
            symbol = _symbol(dim)
            if symbol and symbols.setdefault(symbol, size) != size:
                raise ShapeOverrideError(
                    f"input {value.name!r}: {symbol!r} cannot be {size} here and "
                    f"{symbols[symbol]} in another input"
                )
            changed = True
            changed_fixed |= isinstance(size_of(dim), int)
            dim.dim_value = size
    # What the graph says of its other values must not contradict the inputs.
    if changed_fixed:
        del proto.graph.value_info[:]
        for value in proto.graph.output:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if (symbol := _symbol(dim)) and symbol in symbols:
                dim.dim_value = symbols[symbol]
    return changed, changed_fixed


def explain_override(
    error: Exception, batch_size: int | None, input_shapes: Shapes | None
) -> ModelError:
    """The error of a model that fails only for the shapes that it was given."""
    return ShapeOverrideError(
        f"the model does not work with batch_size={batch_size}, input_shapes={input_shapes}: its "
        "nodes rely on other sizes. batch_size=None without input_shapes keeps those of its file; "
        f"for yours, export it with dynamic sizes. ({error})"
    )
