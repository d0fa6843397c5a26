"""Custom operators. Libraries that are compiled here have none; that of onnxruntime-extensions, a
package that README's command does not install, is tried by .ci/run."""

from __future__ import annotations

import asyncio
import json
import pickle
import shutil
import subprocess
import sysconfig

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from deepsched import Context, Engine, MultiModelEngine, compile_model
from deepsched.advice import advise
from deepsched.analysis import analyze
from deepsched.cli import main
from deepsched.errors import OptionError, UnsupportedModelError
from deepsched.models.cache import Cache
from tests.support import models
from tests.support.plain_onnxruntime import same_bits

DOMAIN = "ai.onnx.contrib"
WORDS = [np.array(["abc", "de"], dtype=object)]


@pytest.fixture
def build(tmp_path):
    """Compiles a shared library from C."""
    compiler = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])
    if compiler is None:
        pytest.skip("no C compiler")

    def compiled(source, name="ops.so"):
        (tmp_path / "ops.c").write_text(source)
        path = tmp_path / name
        subprocess.run([compiler, "-shared", "-fPIC", "-o", path, tmp_path / "ops.c"], check=True)
        return path

    return compiled


NO_OPERATORS = "void *RegisterCustomOps(void *options, void *api) { return 0; }"


def custom(op_type="StringUpper", domain=DOMAIN):
    """y = x in capital letters, and their number."""
    model = models.make(
        [
            helper.make_node(op_type, ["x"], ["y"], domain=domain),
            helper.make_node("StringLength", ["y"], ["length"], domain=domain),
        ],
        [models.tensor("x", ["n"], TensorProto.STRING)],
        [
            models.tensor("y", ["n"], TensorProto.STRING),
            models.tensor("length", ["n"], TensorProto.INT64),
        ],
    )
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def test_a_library_is_part_of_the_key(build, tmp_path):
    cache_dir = tmp_path / "cache"
    found = []
    library = build(NO_OPERATORS)
    for custom_ops in ([], [library], [str(library)], [build(NO_OPERATORS, "copy.so")]):
        with Engine(models.mlp(), cache_dir=cache_dir, custom_ops=custom_ops) as engine:
            found.append(engine.compiled.was_cached)
    with library.open("ab") as file:
        file.write(b"\0")
    with Engine(models.mlp(), cache_dir=cache_dir, custom_ops=[library]) as engine:
        found.append(engine.compiled.was_cached)
    assert found == [False, False, True, True, False]
    assert len([it for it in Cache(cache_dir).list() if it.kind == "model"]) == 3


def test_a_library_is_found_where_an_engine_is_sent(build, monkeypatch):
    monkeypatch.chdir(build(NO_OPERATORS).parent)
    with Engine(models.mlp(), custom_ops=["ops.so"]) as engine:
        pickled = pickle.dumps(engine)
    monkeypatch.chdir("/")
    pickle.loads(pickled).close()


@pytest.mark.parametrize("options", [{}, {"cache_dir": None}, {"scheduler": "elastic"}])
def test_what_is_no_library_of_operators_is_refused(build, tmp_path, options):
    text = tmp_path / "text.so"
    text.write_text("no library")
    for custom_ops, message in (
        (tmp_path / "nowhere.so", "no file at '.*nowhere.so'"),
        (tmp_path, "no file at"),
        (text, "'.*text.so' is no library of operators .*: "),
        (build("int number;"), "'.*ops.so' is no library of operators .*RegisterCustomOps"),
        (3, "no file at 3"),
    ):
        with pytest.raises(OptionError, match=f"custom_ops: {message}"):
            compile_model(models.mlp(), custom_ops=[custom_ops], **options)
    for custom_ops in ("ops.so", None, {text}, 3):
        with pytest.raises(OptionError, match="custom_ops must be a list of paths"):
            compile_model(models.mlp(), custom_ops=custom_ops, **options)


def test_an_operator_without_its_library_says_how_to_load_it(build):
    for custom_ops in ([], [build(NO_OPERATORS)]):
        with pytest.raises(UnsupportedModelError, match=r"StringUpper.*custom_ops=\[path\]"):
            Engine(custom(), custom_ops=custom_ops)


def test_the_commands_take_libraries(build, tmp_path, mlp, capsys):
    library = str(build(NO_OPERATORS))
    for command in ("benchmark", "trace", "analyze", "advise"):
        assert main([command, mlp, "-q", "--custom-ops", library, "--custom-ops", "nowhere"]) == 2
        assert capsys.readouterr().err == "deepsched: custom_ops: no file at 'nowhere'\n"
    options = ["-q", "-t", "0.05", "--json", "-s", "single_stream", "--custom-ops", library]
    assert main(["trace", mlp, *options]) == 0
    assert main(["benchmark", mlp, "-w", "0", *options]) == 0


# --- With onnxruntime-extensions ----------------------------------------------------------------


@pytest.fixture(scope="session")
def extensions():
    """The path of the library."""
    package = pytest.importorskip(
        "onnxruntime_extensions", reason="needs: pip install onnxruntime-extensions"
    )
    return package.get_library_path()


def expected(model, library, inputs):
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, dict(zip(["x"], inputs, strict=True)))


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "memory"])
@pytest.mark.parametrize("scheduler", ["single_stream", "multi_stream", "elastic"])
def test_extensions_give_what_onnxruntime_gives(extensions, tmp_path, scheduler, cache):
    cache_dir = tmp_path / "cache" if cache else None
    for was_cached in (False, cache):
        with compile_model(
            custom(), None, scheduler=scheduler, cache_dir=cache_dir, custom_ops=[extensions]
        ) as engine:
            assert engine.compiled.is_shared and engine.compiled.was_cached is was_cached
            y = engine.run(WORDS)
            same_bits(y, expected(custom(), extensions, WORDS))
            same_bits(engine.submit(WORDS).result(10), y)
            same_bits(asyncio.run(run_async(engine)), y)
            for outputs in engine.map([WORDS] * 3):
                same_bits(outputs, y)


async def run_async(engine):
    return await engine.run_async(WORDS)


def test_engines_with_and_without_extensions_share_a_context(extensions):
    with Context() as context:
        plain = Engine(models.mlp(), context=context)
        ours = MultiModelEngine(custom(), None, context, custom_ops=[extensions])
        assert ours.run(WORDS)[0].tolist() == ["ABC", "DE"]
        ours.close()
        assert len(plain.run(plain.generate_random_inputs())) == 1
        with pytest.raises(UnsupportedModelError):
            Engine(custom(), context=context)


def test_an_operator_that_no_library_has(extensions):
    with pytest.raises(UnsupportedModelError, match="NoSuchOperator"):
        Engine(custom("NoSuchOperator"), custom_ops=[extensions])


def test_extensions_are_measured_profiled_and_advised(extensions, tmp_path, capsys):
    model = models.save(custom(), tmp_path)
    analysis = analyze(model, seconds=0.2, num_cores=1, custom_ops=[extensions])
    assert {it.op_type for it in analysis.types} == {"StringUpper", "StringLength"}
    advice = advise(model, seconds=0.2, num_cores=1, callers=1, custom_ops=[extensions])
    line = advice.compile_line(model)
    with eval(line, {"compile_model": compile_model}) as engine:
        assert engine.run(engine.generate_random_inputs())[0].tolist() == ["A"]
    options = ["-t", "0.2", "-w", "0", "--json", "-q", "--custom-ops", extensions]
    for engine in ("deepsched", "onnxruntime", "onnxruntime:per_stream"):
        assert main(["benchmark", model, "-e", engine, "-s", "multi_stream", *options]) == 0
        assert json.loads(capsys.readouterr().out)
