"""Models with external data open where onnxruntime opens them by path, and nowhere else."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from deepsched import Engine
from deepsched.errors import InvalidModelError, ModelError, ModelNotFoundError
from tests.support import models
from tests.support.plain_onnxruntime import plain

ROWS = np.ones((1, 64), np.float32)
WEIGHTS = np.eye(64, dtype=np.float32)
ORT_VERSION = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


def stored_in(name, location):
    tensor = onnx.numpy_helper.from_array(WEIGHTS, name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def product(*locations):
    """x times a matrix from each file."""
    weights, nodes = [], []
    for i, location in enumerate(locations):
        weights.append(stored_in(f"w{i}", location))
        nodes.append(helper.make_node("MatMul", [f"h{i}" if i else "x", f"w{i}"], [f"h{i + 1}"]))
    nodes.append(helper.make_node("Identity", [f"h{len(locations)}"], ["y"]))
    return models.make(
        nodes, [models.tensor("x", ["b", 64])], [models.tensor("y", ["b", 64])], weights
    ).SerializeToString()


def product_in_subgraph(location):
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["product"])],
        "branch",
        [],
        [models.tensor("product", ["b", 64])],
        [stored_in("w", location)],
    )
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    return models.make(
        [helper.make_node("If", ["true"], ["y"], then_branch=body, else_branch=body)],
        [models.tensor("x", ["b", 64])],
        [models.tensor("y", ["b", 64])],
        [true],
    ).SerializeToString()


# By name: whether it opens, the model, where its external data is, and all files: a path's content
# is bytes, or the target of a link.
W = WEIGHTS.tobytes()
LAYOUTS = {
    "beside it": (True, "a/m", {"a/m": product("w"), "a/w": W}),
    "in a folder beside it": (True, "a/m", {"a/m": product("d/w"), "a/d/w": W}),
    "Hugging Face's cache": (
        True,
        "snapshots/1/m",
        {
            "blobs/1": product("w", "d/v"),
            "blobs/2": W,
            "blobs/3": W,
            "snapshots/1/m": "../../blobs/1",
            "snapshots/1/w": "../../blobs/2",
            "snapshots/1/d/v": "../../../blobs/3",
        },
    ),
    "a link to Hugging Face's cache": (
        True,
        "now/m",
        {
            "blobs/1": product("w"),
            "blobs/2": W,
            "snapshots/1/m": "../../blobs/1",
            "snapshots/1/w": "../../blobs/2",
            "now": "snapshots/1",
        },
    ),
    "one file linked, the other beside the link": (
        True,
        "s/m",
        {"blobs/1": product("w", "v"), "blobs/2": W, "s/m": "../blobs/1", "s/w": "../blobs/2"}
        | {"s/v": W},
    ),
    "links to links": (
        True,
        "s/m",
        {"blobs/1": product("w"), "blobs/2": W, "t/m": "../blobs/1", "t/w": "../blobs/2"}
        | {"s/m": "../t/m", "s/w": "../t/w"},
    ),
    "only the model linked": (True, "s/m", {"t/m": product("w"), "s/m": "../t/m", "s/w": W}),
    "a linked folder": (True, "s/m", {"t/m": product("w"), "t/w": W, "s": "t"}),
    "up and back": (True, "a/m", {"a/m": product("../a/w"), "a/w": W}),
    "only the data linked": (False, "s/m", {"s/m": product("w"), "t/w": W, "s/w": "../t/w"}),
    "the data's folder linked": (False, "s/m", {"s/m": product("d/w"), "t/w": W, "s/d": "../t"}),
    "on the way of a link": (
        False,
        "s/m",
        {"u/m": product("w"), "t/m": "../u/m", "t/w": W, "s/m": "../t/m", "s/w": "../t/w"},
    ),
    "beside the link's target, by name": (
        False,
        "s/m",
        {"t/m": product("w"), "t/w": W, "s/m": "../t/m"},
    ),
    "above it": (False, "a/m", {"a/m": product("../w"), "w": W}),
    "in a folder whose name begins alike": (
        False,
        "a/m",
        {"a/m": product("w"), "ab/w": W, "a/w": "../ab/w"},
    ),
    "through a folder that is not there": (False, "a/m", {"a/m": product("no/../w"), "a/w": W}),
    "nowhere": (False, "a/m", {"a/m": product("w")}),
}


def lay_out(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(content) if isinstance(content, str) else path.write_bytes(content)


def answers(model, **options):
    """Whether an engine opens the model; its answer is right then."""
    try:
        with Engine(model, num_cores=1, **options) as engine:
            (y,) = engine.run([ROWS])
    except ModelError as error:
        assert isinstance(error, (InvalidModelError, ModelNotFoundError))
        return False
    assert (y == ROWS).all()
    return True


OPTIONS = {
    "the default batch": {},
    "any batch": {"batch_size": None},
    "shapes": {"input_shapes": [[1, 64]]},
    "no cache": {"cache_dir": None},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_external_data_is_found_where_onnxruntime_finds_it(layout, tmp_path, monkeypatch):
    opens, name, files = LAYOUTS[layout]
    folder = tmp_path / "models"
    lay_out(folder, files)
    path = folder / name
    if ORT_VERSION >= (1, 32):  # older ones do not check where it is, or know no links
        assert opens_plainly(path) is opens
    for options in OPTIONS.values():
        options = {"cache_dir": tmp_path / "cache", **options}
        assert answers(path, **options) is opens, options
        assert answers(path, **options) is opens, f"again, {options}"
    monkeypatch.chdir(folder)
    assert answers(name) is opens
    monkeypatch.chdir(path.parent)
    assert answers(path.name) is opens


def test_links_to_the_data_of_subgraphs_are_followed(tmp_path):
    """onnxruntime takes none there."""
    files = {"blobs/1": product_in_subgraph("w"), "blobs/2": W, "s/m": "../blobs/1"}
    lay_out(tmp_path, {**files, "s/w": "../blobs/2", "outside/w": W, "s/far": "../outside/w"})
    for options in OPTIONS.values():
        assert answers(tmp_path / "s/m", **options)
    (tmp_path / "s/m").unlink()
    (tmp_path / "s/m").write_bytes(product_in_subgraph("far"))
    for options in OPTIONS.values():
        assert not answers(tmp_path / "s/m", **options)


def test_the_old_place_of_data_that_is_in_the_model_by_now_is_not_looked_for(tmp_path):
    """Some tools leave it when they read the data."""
    model = onnx.load_from_string(product("gone"))
    (tensor,) = model.graph.initializer
    tensor.raw_data, tensor.data_location = W, TensorProto.DEFAULT
    (tmp_path / "m").write_bytes(model.SerializeToString())
    assert opens_plainly(tmp_path / "m")
    for options in OPTIONS.values():
        assert answers(tmp_path / "m", **options)


def opens_plainly(path):
    try:
        plain(str(path))
    except Exception:  # onnxruntime's own
        return False
    return True


@pytest.mark.parametrize("name", ["{}/a/w", "{}/w", "w\0", "", ".", "pipe"])
def test_odd_names_of_external_data_are_refused(tmp_path, name):
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "pipe")
    lay_out(tmp_path, {"a/m": product(name.format(tmp_path)), "a/w": W, "w": W})
    for options in OPTIONS.values():
        assert not answers(tmp_path / "a" / "m", **options)


def test_a_cached_model_does_not_read_the_same_data_elsewhere(tmp_path):
    """The cache knows a model by its bytes, and which files it names; not where they are."""
    model = product("w")
    lay_out(tmp_path, {"in/m": model, "in/w": W, "out/m": model, "out/w": "../in/w"})
    assert answers(tmp_path / "in/m", cache_dir=tmp_path / "cache")
    assert not answers(tmp_path / "out/m", cache_dir=tmp_path / "cache")


def test_folders_need_no_utf8_names(tmp_path):
    folder = tmp_path / "model\udcff"
    lay_out(folder, {"m": product("w"), "w": W})
    for options in OPTIONS.values():
        assert answers(folder / "m", **options)


def test_bytes_have_their_data_in_the_working_folder(tmp_path, monkeypatch):
    lay_out(tmp_path, {"a/w": W, "w": W})
    monkeypatch.chdir(tmp_path / "a")
    for options in OPTIONS.values():
        assert answers(product("w"), **options)
        assert not answers(product("../w"), **options)
