"""Models, options and environments that cannot be used: one clear exception each."""

from __future__ import annotations

import inspect
import os
import random
import shutil
import subprocess

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deepsched import Context, Engine, MultiModelEngine, compile_model, errors
from deepsched.benchmark import bundled_model
from tests.support import models
from tests.support.processes import run_python
from tests.support.rewrite_patterns import EXAMPLES
from tests.support.users import OTHER, needs_root


def test_every_error_is_ours_and_a_builtin_too():
    for _, error in inspect.getmembers(errors, inspect.isclass):
        assert issubclass(error, errors.DeepschedError)
        if error not in (errors.DeepschedError, errors.ModelError):
            builtins = (ValueError, TypeError, OSError, RuntimeError, ImportError)
            assert issubclass(error, builtins), error


@pytest.mark.parametrize("batch_size", [1, None])
def test_a_missing_file_is_named(tmp_path, batch_size):
    path = str(tmp_path / "nowhere.onnx")
    with pytest.raises(errors.ModelNotFoundError, match="nowhere.onnx") as caught:
        compile_model(path, batch_size)
    assert isinstance(caught.value, FileNotFoundError)


@needs_root
def test_a_file_may_be_read_if_the_effective_user_may(tmp_path):
    """As in a program with the set-user-ID bit."""
    path = models.save(models.identity(), tmp_path)
    os.chmod(path, 0o600)
    run_python(
        f"""
        import os
        os.setresuid({OTHER}, 0, 0)
        from deepsched import Engine
        Engine({path!r}, num_cores=1, cache_dir=None).close()
        """
    )


@pytest.mark.parametrize("batch_size", [1, None])
def test_a_folder_is_no_model(tmp_path, batch_size):
    with pytest.raises(errors.ModelNotFoundError, match="is a folder"):
        compile_model(tmp_path, batch_size)


@pytest.mark.parametrize("batch_size", [1, None])
@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 1000, b"\xff" * 1000])
def test_bytes_that_are_not_onnx_are_refused(tmp_path, content, batch_size):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    for model in (path, content):
        with pytest.raises(errors.InvalidModelError):
            compile_model(model, batch_size)


@pytest.mark.parametrize("batch_size", [1, None])
def test_a_truncated_model_is_refused(tmp_path, batch_size):
    whole = onnx.load(bundled_model("squeezenet")).SerializeToString()
    rng = random.Random(0)
    for length in [len(whole) - 1, *(rng.randrange(1, len(whole)) for _ in range(5))]:
        path = tmp_path / "model.onnx"
        path.write_bytes(whole[:length])
        with pytest.raises(errors.ModelError):
            compile_model(path, batch_size)


def test_inputs_of_one_name_are_refused():
    model = models.mlp()
    model.graph.input.append(models.tensor("x", [1, 2, 3]))
    for batch_size in (1, 2, None):
        with pytest.raises(errors.InvalidModelError, match="several inputs named 'x'"):
            Engine(model, batch_size)


def test_an_invalid_graph_is_refused():
    unknown = models.make(
        [helper.make_node("Relu", ["nowhere"], ["y"])],
        [models.tensor("x", [1])],
        [models.tensor("y", [1])],
    )
    mistyped = models.make(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        [models.tensor("a", [1]), models.tensor("b", [1], TensorProto.INT64)],
        [models.tensor("y", [1])],
    )
    for model in (unknown, mistyped):
        with pytest.raises(errors.InvalidModelError):
            Engine(model)


def test_unsupported_operators_and_opsets_are_refused():
    operator = models.make(
        [helper.make_node("Teleport", ["x"], ["y"])],
        [models.tensor("x", [1])],
        [models.tensor("y", [1])],
    )
    opset = models.identity([1], opset=999)
    ir_version = models.identity([1], ir_version=999)
    for model in (operator, opset, ir_version):
        with pytest.raises(errors.UnsupportedModelError):
            Engine(model)


@pytest.mark.parametrize("model", [None, 3, ["model.onnx"]])
def test_an_object_that_is_no_model_is_refused(model):
    with pytest.raises(errors.OptionError, match="a model is a path"):
        Engine(model)


@pytest.mark.parametrize("batch_size", [0, -1, 1.0, "1", True])
def test_a_bad_batch_size_is_refused(batch_size):
    with pytest.raises(errors.OptionError, match="batch_size"):
        Engine(models.mlp(), batch_size)


@pytest.mark.parametrize(
    ("shapes", "error", "message"),
    [
        ([[1, 64], [1, 64]], errors.ShapeOverrideError, "2 shapes, but the model has 1 inputs"),
        ([[1, 64, 1]], errors.ShapeOverrideError, "has 2 dimensions"),
        ([[1, 65]], errors.ShapeOverrideError, "rely on other sizes"),
        ([[0, 64]], errors.OptionError, "an integer of at least 1, got 0"),
        ([[1, "64"]], errors.OptionError, "an integer of at least 1, got '64'"),
        ([3], errors.OptionError, "list of shapes"),
        (3, errors.OptionError, "list of shapes"),
    ],
)
def test_input_shapes_that_do_not_fit_are_refused(shapes, error, message):
    with pytest.raises(error, match=message):
        Engine(models.mlp(), None, input_shapes=shapes)


def test_batch_size_must_agree_with_input_shapes():
    with pytest.raises(errors.OptionError, match="batch_size=4 contradicts input_shapes"):
        Engine(models.mlp(), 4, input_shapes=[[2, 64]])


def test_a_context_must_be_one():
    with pytest.raises(errors.OptionError, match="context must be a Context"):
        Engine(models.mlp(), context="x")
    with pytest.raises(TypeError, match="context"):
        MultiModelEngine(models.mlp(), 1)


def test_missing_external_data_names_the_model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save_model(
        models.mlp(), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    (tmp_path / "weights").unlink()
    with pytest.raises(errors.ModelError, match=r"model\.onnx"):
        compile_model(path)


def test_sizes_that_fail_in_a_kernel_fail_the_compile():
    """AlexNet's Reshape was exported for one image of 224 x 224."""
    with pytest.raises(errors.ShapeOverrideError, match="batch_size=3"):
        Engine(bundled_model("bvlc_alexnet"), input_shapes=[[3, 3, 64, 64]], batch_size=3)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], r"expected a list of 1 input \('x'\), got 0"),
        ([1, 2], "expected a list of 1 input"),
        ({"z": 1}, r"missing \['x'\], unknown \['z'\]$"),
        ({}, r"\['x'\]; missing \['x'\]$"),
        ({"x": 1, "z": 1}, r"\['x'\]; unknown \['z'\]$"),
        (np.ones((1, 64), np.float32), r"run\(\[x\]\)"),
        (None, "expected a list"),
    ],
)
def test_wrong_inputs_are_refused(inputs, message):
    with Engine(models.mlp()) as engine:
        with pytest.raises(errors.InputError, match=message):
            engine.run(inputs)
        assert engine.run([np.ones((1, 64), np.float32)])[0].shape == (1, 64)


def test_a_wrong_batch_says_to_recompile():
    with (
        Engine(models.mlp()) as engine,
        pytest.raises(
            errors.InputError, match=r"recompile with batch_size=None .*, or batch_size=4"
        ),
    ):
        engine.run([np.ones((4, 64), np.float32)])


def test_a_failing_kernel_leaves_the_engine_usable():
    x = np.arange(3, dtype=np.float32)
    with Engine(models.gather(), None) as engine:
        for _ in range(3):
            with pytest.raises(errors.InferenceError, match="out of data bounds"):
                engine.run([x, np.array([3])])
            assert engine.run([x, np.array([2])])[0].tolist() == [2.0]


@pytest.mark.parametrize(
    "option",
    [
        {"pin": "numa"},
        {"pin": 1},
        {"topology": "laptop"},
        {"queue_capacity": 0},
        {"queue_capacity": 1.5},
        {"queue_capacity": True},
        {"spin": "fast"},
        {"spin": None},
    ],
)
def test_a_contexts_options_are_checked(option):
    with pytest.raises(errors.OptionError, match=next(iter(option))):
        Context(**option)


def fake_onnxruntime(folder, source=None):
    """A package `onnxruntime` that comes first on the path, with a library made of C `source`."""
    capi = folder / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    (folder / "onnxruntime" / "__init__.py").write_text("raise ImportError('not for import')")
    library = capi / "libonnxruntime.so.1.2.3"
    if source is None:
        library.write_bytes(b"not a library")
    elif shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    else:
        (folder / "fake.cpp").write_text(source)
        subprocess.run(["g++", "-shared", "-fPIC", "-o", library, folder / "fake.cpp"], check=True)
    return str(folder)


OLD = """
extern "C" {
struct Base { const void* (*get_api)(unsigned); const char* (*get_version)(); };
static const void* get_api(unsigned) { return nullptr; }
static const char* get_version() { return "%s"; }
static const Base base = {get_api, get_version};
const Base* OrtGetApiBase() { return &base; }
}
"""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "cannot load"),
        ("int nothing;", "does not export OrtGetApiBase"),
        (OLD % "1.31.9", "onnxruntime 1.31.9 .* is too old"),
        (OLD % "1.99.0", "onnxruntime 1.99.0 .* is too old"),
    ],
)
def test_an_unusable_onnxruntime_says_what_to_install(tmp_path, source, message):
    path = os.pathsep.join([fake_onnxruntime(tmp_path, source), os.getcwd()])
    out = run_python(
        f"""
        import re, deepsched
        from tests.support import models
        try:
            deepsched.Engine(models.identity(), None)
        except ImportError as error:
            assert type(error).__name__ == "OrtImportError", error
            assert re.search({message!r}, str(error)), error
            print("told")
        """,
        PYTHONPATH=path,
    )
    assert out == "told\n"


def test_no_onnxruntime_at_all_says_what_to_install():
    out = run_python(
        """
        import sys, deepsched
        from tests.support import models
        sys.path_importer_cache.clear()
        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name: None if name == "onnxruntime" else find(name)
        try:
            deepsched.Engine(models.identity(), None)
        except ImportError as error:
            assert "pip install 'onnxruntime>=" in str(error), error
            print("told")
        """,
    )
    assert out == "told\n"


def test_onnxruntimes_python_package_is_not_imported():
    out = run_python(
        """
        import sys, deepsched, numpy
        from tests.support import models
        with deepsched.Engine(models.identity(), None) as engine:
            engine.run([numpy.ones(1, "f")])
        assert not [name for name in sys.modules if name.startswith("onnxruntime")]
        print("clean")
        """,
    )
    assert out == "clean\n"


def test_sizes_too_small_for_a_convolution_raise():
    with pytest.raises(errors.ShapeOverrideError, match="leave nothing for .*give larger ones"):
        compile_model(bundled_model("squeezenet"), input_shapes=[[1, 3, 20, 20]])
    with compile_model(bundled_model("squeezenet"), input_shapes=[[1, 3, 64, 64]]) as engine:
        assert engine.run(engine.generate_random_inputs())


def _renamed(what, name):
    """An MLP with a name that is not UTF-8; protobuf does not let one be set."""
    model = models.mlp()
    setattr(what(model), "dim_param" if what is _batch else "name", "?" * len(name))
    found = model.SerializeToString()
    assert found.count(b"?" * len(name)) == 1
    return found.replace(b"?" * len(name), name)


def _batch(model):
    return model.graph.input[0].type.tensor_type.shape.dim[0]


@pytest.mark.parametrize(
    "what",
    [
        lambda model: model.graph,
        lambda model: model.graph.node[0],
        lambda model: model.graph.input[0],
        lambda model: model.graph.initializer[0],
    ],
)
def test_names_that_are_not_utf8_are_refused(what):
    with pytest.raises(errors.InvalidModelError, match=r"has the name b'\\xb2\\xe2.*not UTF-8"):
        Engine(_renamed(what, "测试".encode("gbk")), cache_dir=None)


def test_a_name_that_is_not_utf8_is_refused_without_protobufs_native_code():
    out = run_python(
        """
        import deepsched
        from tests.support import models
        content = models.identity().SerializeToString().replace(b"Identity", b"Ident\\xb2ty")
        try:
            deepsched.Engine(content, None)
        except deepsched.errors.InvalidModelError as error:
            print("not UTF-8" in str(error))
        """,
        PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python",
    )
    assert out == "True\n"


def test_a_size_whose_symbol_is_not_utf8_is_any_size():
    with Engine(_renamed(_batch, "数".encode("gbk") * 4), 3, cache_dir=None) as engine:
        assert engine.input_shapes[0][0] == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda graph: graph.node[0].ClearField("input"),
        lambda graph: graph.node[0].ClearField("output"),
        lambda graph: setattr(graph.initializer[0], "data_type", 2**31 - 1),
        lambda graph: graph.initializer[0].ClearField("dims"),
        lambda graph: graph.ClearField("output"),
        lambda graph: setattr(graph.input[0].type.tensor_type, "elem_type", 99),
    ],
)
@pytest.mark.parametrize("example", EXAMPLES[1:])  # those with constants
def test_a_graph_that_contradicts_itself_is_refused_or_runs(spoil, example):
    model = example()[0].model()
    spoil(model.graph)
    try:
        engine = Engine(model, cache_dir=None, batching="off")
    except errors.ModelError:
        return
    engine.close()
