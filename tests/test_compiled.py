"""The compiled form: right whatever happens to the cache, shared, and never in the way."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import resource
import shutil
import tempfile
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deepsched import Context, Engine, Topology
from deepsched.cli import main
from deepsched.errors import InvalidModelError, OptionError
from deepsched.models.cache import Cache
from deepsched.models.folders import open_trusted
from deepsched.models.keys import RawModel
from deepsched.models.records import read_record, write_record
from deepsched.models.tag import TAG
from tests.support import models
from tests.support.contexts import two_sessions
from tests.support.models import gemm
from tests.support.plain_onnxruntime import assert_equals_plain, plain
from tests.support.processes import finish, start_python

F = TensorProto.FLOAT
SHM = Path("/dev/shm")


def branches(seed=0):
    """An If with weights in both of its subgraphs."""
    rng = np.random.default_rng(seed)

    def branch(name):
        weights = rng.standard_normal((256, 256)).astype(np.float32)
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", name], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", F, ["n", 256])],
            [numpy_helper.from_array(weights, name)],
        )

    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["is_positive"]),
            helper.make_node(
                "If", ["is_positive"], ["y"], then_branch=branch("a"), else_branch=branch("b")
            ),
        ],
        "branches",
        [helper.make_tensor_value_info("x", F, ["n", 256])],
        [helper.make_tensor_value_info("y", F, ["n", 256])],
        [numpy_helper.from_array(np.float32(0), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantized(seed=0):
    """MatMul between QuantizeLinear and DequantizeLinear, which ONNX Runtime fuses."""
    weights = np.random.default_rng(seed).integers(-127, 127, (256, 256)).astype(np.int8)
    constants = {
        "w": weights,
        "sx": np.float32(0.05),
        "zx": np.uint8(128),
        "sw": np.float32(0.01),
        "zw": np.int8(0),
        "sy": np.float32(0.5),
    }
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"]),
            helper.make_node("MatMul", ["xd", "wd"], ["product"]),
            helper.make_node("QuantizeLinear", ["product", "sy", "zx"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "sy", "zx"], ["y"]),
        ],
        "quantized",
        [helper.make_tensor_value_info("x", F, ["n", 256])],
        [helper.make_tensor_value_info("y", F, ["n", 256])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def odd_sizes(seed=0):
    """Weights and what kernels pack them into end off the 64 bytes that vector loads rely on."""
    rng = np.random.default_rng(seed)
    sizes = [67, 91, 33, 77]
    return models.make(
        [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(3)],
        [models.tensor("x0", ["n", sizes[0]])],
        [models.tensor("x3", ["n", sizes[3]])],
        [
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), f"w{i}")
            for i, shape in enumerate(pairwise(sizes))
        ],
    )


KINDS = {
    "weights inside": gemm(),
    "odd sizes": odd_sizes(),
    "IR version 3": gemm(ir_version=3, also_inputs=("w", "b")),
    "overridable": gemm(also_inputs=("w",)),
    "subgraphs": branches(),
    "quantized": quantized(),
    "no weights": models.make(
        [helper.make_node("Relu", ["x"], ["y"])],
        [models.tensor("x", ["n"])],
        [models.tensor("y", ["n"])],
    ),
}


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"


# --- It is right --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_and_cached_models_give_what_onnxruntime_gives(kind, cache_dir):
    model = KINDS[kind]
    for was_cached in (False, True):
        with Engine(model, None, cache_dir=cache_dir) as engine:
            assert engine.compiled.was_cached is was_cached
            assert engine.compiled.is_shared and engine.compiled.why_not == ""
            assert engine.input_names == [info.name for info in plain(model).get_inputs()]
            assert_equals_plain(engine, model)


def test_shapes_and_batches_have_entries_of_their_own(cache_dir):
    model = gemm()
    for batch in (1, 4, None):
        with Engine(model, batch, cache_dir=cache_dir) as engine:
            assert not engine.compiled.was_cached
            assert_equals_plain(engine, model)
    with Engine(model, 1, input_shapes=[[4, 256]], cache_dir=cache_dir) as engine:
        assert engine.batch_size == 4
    with Engine(model, 4, cache_dir=cache_dir) as engine:
        assert engine.compiled.was_cached and engine.batch_size == 4


def test_a_model_file_that_changes_is_compiled_again(tmp_path, cache_dir):
    path = tmp_path / "model.onnx"
    for seed in (0, 1, 0):
        onnx.save(gemm(seed), path)
        with Engine(path, cache_dir=cache_dir) as engine:
            assert_equals_plain(engine, str(path))
    assert sum(item.kind == "model" for item in Cache(cache_dir).list()) == 2


def test_external_data_counts_as_content(tmp_path, cache_dir):
    path = tmp_path / "model.onnx"
    for seed, was_cached in ((0, False), (1, False), (0, True)):
        (tmp_path / "weights.bin").unlink(missing_ok=True)
        onnx.save(
            gemm(seed), path, save_as_external_data=True, location="weights.bin", size_threshold=0
        )
        for batch in (None, 2):
            with Engine(path, batch, cache_dir=cache_dir) as engine:
                assert engine.compiled.was_cached is was_cached
                assert_equals_plain(engine, str(path))


@pytest.mark.parametrize("name", ["../secret", "/dev/zero", "linked"])
def test_external_data_elsewhere_is_not_read(tmp_path, cache_dir, name):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(4 * 256 * 256))
    model = gemm()
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=name)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    if name == "linked":
        (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidModelError, match="outside its folder"):
        Engine(folder / "model.onnx", None, cache_dir=cache_dir)
    assert Cache(cache_dir).list() == []


def test_what_is_no_file_has_no_hash(tmp_path, cache_dir):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError):
            Cache(cache_dir).hash_file(path)


# --- It is shared -------------------------------------------------------------------------------


def test_eight_streams_map_the_weights_once(cache_dir):
    machine = Topology.synthetic(packages=1, cores_per_l3=16)
    memories = []
    for num_streams in (1, 8):  # of 16 and of 2 cores
        with Context(topology=machine, num_streams=num_streams, pin="none") as context:
            engine = Engine(gemm(size=1024), None, context=context, cache_dir=cache_dir)
            assert_equals_plain(engine, gemm(size=1024))
            list(engine.map([engine.generate_random_inputs()] * 100))
            memories.append(engine.memory())
            assert len(engine.memory().activations) == num_streams
    one, eight = memories
    assert one.weights_shared >= 4 * 1024 * 1024
    assert eight.weights_shared <= 1.25 * one.weights_shared
    assert eight.weights_private < 0.1 * one.weights_shared


def test_without_a_cache_nothing_is_left_on_disk():
    left_before = {*SHM.glob("deepsched-*"), *Path(tempfile.gettempdir()).glob("deepsched-*")}
    with two_sessions() as context:
        engine = Engine(gemm(), context=context, cache_dir=None)
        assert engine.compiled.is_shared and engine.compiled.folder is None
        assert engine.compiled.why_not == "" and engine.compiled.num_copies == 1
        assert {*SHM.glob("deepsched-*"), *Path(tempfile.gettempdir()).glob("deepsched-*")} == (
            left_before
        )
        assert_equals_plain(engine, gemm())


# --- Whatever happens to the cache ----------------------------------------------------------------


@pytest.fixture(scope="module")
def good_entry(tmp_path_factory):
    """A cache folder with one entry; to be copied, not used."""
    folder = tmp_path_factory.mktemp("good")
    with Engine(gemm(), None, cache_dir=folder):
        pass
    return folder


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_entry_is_rebuilt(good_entry, data):
    with tempfile.TemporaryDirectory() as name:
        folder = shutil.copytree(good_entry, Path(name, "cache"))
        (info,) = Cache(folder).list()
        files = sorted((folder / "v1" / info.key).iterdir())
        file = data.draw(st.sampled_from(files))
        content = bytearray(file.read_bytes())
        position = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[position] ^= data.draw(st.integers(1, 255))
        else:
            del content[position:]
        file.write_bytes(content)
        with Engine(gemm(), None, cache_dir=folder) as engine:
            assert_equals_plain(engine, gemm())
            assert engine.compiled.was_cached is (file.name == "checked.json")
        with Engine(gemm(), None, cache_dir=folder) as engine:
            assert engine.compiled.was_cached
            assert_equals_plain(engine, gemm())


def test_damage_after_the_first_use_is_noticed(cache_dir):
    for _ in range(3):
        with Engine(gemm(), None, cache_dir=cache_dir) as engine:
            folder = Path(engine.compiled.folder)
        threading.Event().wait(0.2)  # files this young are not taken as checked
    assert (folder / "checked.json").exists()
    weights = bytearray((folder / "weights").read_bytes())
    weights[12345] ^= 64
    (folder / "weights").write_bytes(weights)
    with Engine(gemm(), None, cache_dir=cache_dir) as engine:
        assert not engine.compiled.was_cached
        assert_equals_plain(engine, gemm())


COMPILE = """
    from deepsched import Engine
    from tests.support.models import gemm
    from tests.support.plain_onnxruntime import assert_equals_plain
    with Engine(gemm(), None, cache_dir={folder!r}) as engine:
        assert_equals_plain(engine, gemm())
"""


def test_several_processes_may_compile_at_once(cache_dir):
    code = COMPILE.format(folder=str(cache_dir))
    processes = [start_python(code) for _ in range(4)]
    for process in processes:
        _, err = finish(process)
        assert process.returncode == 0, err
    assert len(Cache(cache_dir).list()) == 1
    assert not list((cache_dir / "v1").glob(".staging-*"))


@pytest.mark.field
def test_a_process_killed_at_any_moment_leaves_no_wrong_entry(cache_dir):
    # In one process: forked children compile again and again, each killed at another moment.
    code = f"""
        import os, random, signal, time
        from pathlib import Path
        from deepsched import Engine
        from deepsched.models.cache import Cache
        from tests.support.models import gemm
        from tests.support.plain_onnxruntime import assert_equals_plain
        rng = random.Random(0)
        num_killed = 0
        for _ in range(40):
            pid = os.fork()
            if pid == 0:
                while True:
                    with Engine(gemm(), None, cache_dir={str(cache_dir)!r}):
                        pass
                    Cache(Path({str(cache_dir)!r})).clear()
            time.sleep(rng.uniform(0, 0.2))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            num_killed += os.WTERMSIG(status) == signal.SIGKILL
            with Engine(gemm(), None, cache_dir={str(cache_dir)!r}) as engine:
                assert_equals_plain(engine, gemm())
        print(num_killed)
    """
    out, err = finish(start_python(code.replace("\n        ", "\n")), timeout=110)
    assert out.strip() == "40", err
    cache = Cache(cache_dir)
    cache.clear()
    assert os.listdir(cache.folder) == [TAG]  # what they left is swept


def test_entries_in_use_stay_and_the_others_go_least_lately_used_first(cache_dir, monkeypatch):
    with Engine(gemm(0), None, cache_dir=cache_dir) as engine:
        size = Cache(cache_dir).list()[0].num_bytes
        monkeypatch.setenv("DEEPSCHED_CACHE_BYTES", str(int(2.5 * size)))
        for seed in (1, 2, 3):
            with Engine(gemm(seed), None, cache_dir=cache_dir):
                pass
        # 0 was used first, and is in use: 1 and 2 went.
        assert_equals_plain(engine, gemm(0))
        seeds = [seed for seed in range(4) if is_cached(gemm(seed), cache_dir)]
        assert seeds[0] == 0 and len(seeds) <= 3
    with Engine(gemm(5), None, cache_dir=cache_dir):
        assert len(Cache(cache_dir).list()) == 2


def is_cached(model, cache_dir):
    """Looks, and compiles nothing."""
    cache = Cache(cache_dir)
    options = {"optimizes": True, "rewrites": "fast", "batching": "auto"}
    raw = RawModel.of(model, None, None, options, cache)
    entry = raw.find(cache)
    if entry is not None:
        entry.close()
    return entry is not None


def remember(cache, name, age_s):
    key = name * 32
    cache.remember_measurement(key, "advice", "model.onnx", None, 0.0, {"some": "answer"})
    path = cache.folder / "measured" / f"{key}.json"
    used = path.stat().st_mtime - age_s
    os.utime(path, (used, used))


def test_least_recently_used_measurements_are_evicted_first(cache_dir, monkeypatch):
    monkeypatch.setattr("deepsched.models.cache._MAX_COUNT", 3)
    cache = Cache(cache_dir)
    for age_s, key in ((30, "a"), (20, "b"), (10, "c")):
        remember(cache, key, age_s)
    assert cache.measurement("a" * 32) == {"some": "answer"}  # used now
    with Engine(gemm(), None, cache_dir=cache_dir):
        remember(cache, "d", 0)
    kept = sorted(item.key for item in cache.list() if item.kind == "advice")
    assert kept == [name * 32 for name in "acd"]
    assert is_cached(gemm(), cache_dir)  # models have a bound of their own


def test_measurements_count_in_the_size_of_the_cache(cache_dir, monkeypatch):
    cache = Cache(cache_dir)
    remember(cache, "a", 10)
    with Engine(gemm(), None, cache_dir=cache_dir):
        pass
    num_bytes = sum(item.num_bytes for item in cache.list())
    files = [path for path in cache_dir.rglob("*") if path.is_file() and path.name != TAG]
    assert num_bytes == sum(path.stat().st_size for path in files)
    monkeypatch.setenv("DEEPSCHED_CACHE_BYTES", str(num_bytes))
    remember(Cache(cache_dir), "b", 0)
    assert cache.measurement("a" * 32) is None and cache.measurement("b" * 32) is not None
    assert is_cached(gemm(), cache_dir)


def test_what_was_just_stored_is_not_evicted(cache_dir, monkeypatch):
    """Else a model larger than the bound would be measured at each start."""
    monkeypatch.setenv("DEEPSCHED_CACHE_BYTES", "1")
    cache = Cache(cache_dir)
    with Engine(gemm(), None, cache_dir=cache_dir):
        remember(cache, "a", 10)
        remember(cache, "b", 0)
    assert [item.kind for item in cache.list()] == ["advice", "model"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=5,
)


@given(value=json_values, data=st.data())
def test_a_record_is_read_as_written_or_found_damaged(value, data):
    with tempfile.TemporaryDirectory() as folder:
        path, opened = Path(folder, "record.json"), open_trusted(Path(folder))
        write_record(opened, path.name, value)
        assert read_record(opened, path.name) == value
        content = bytearray(path.read_bytes())
        position = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[position] ^= data.draw(st.integers(1, 255))
        else:
            del content[position:]
        path.write_bytes(content)
        with pytest.raises(ValueError):
            read_record(opened, path.name)


@contextlib.contextmanager
def small_files():
    """As a full disk: writing more than 10 bytes to a file fails. Of this process: pytest's own
    output may be a file as well."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_record_that_does_not_fit_leaves_no_file(tmp_path):
    folder = open_trusted(tmp_path)
    with pytest.raises(OSError), small_files():
        write_record(folder, "record.json", "some")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_is_interrupted_keeps_the_old_record(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    folder = open_trusted(tmp_path)
    write_record(folder, "record.json", "old")
    monkeypatch.setattr("deepsched.models.records.os.rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_record(folder, "record.json", "new")
    assert os.listdir(tmp_path) == ["record.json"]
    assert read_record(folder, "record.json") == "old"


def test_files_of_a_killed_writer_are_swept(cache_dir):
    cache = Cache(cache_dir)
    remember(cache, "a", 0)
    left, written = (cache.folder / "measured" / f".tmp-{name * 16}" for name in "ab")
    left.touch()
    with open(written, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as a living writer
        Cache(cache_dir)
        assert written.exists() and not left.exists()
    Cache(cache_dir)
    assert not written.exists()


def test_an_engine_outlives_its_entry(cache_dir):
    with Engine(gemm(), None, cache_dir=cache_dir) as engine:
        assert Cache(cache_dir).clear() == 0
        shutil.rmtree(cache_dir)  # by force
        assert_equals_plain(engine, gemm())


@pytest.mark.parametrize("trouble", ["not a folder", "others may write"])
def test_a_cache_that_cannot_be_used_costs_a_warning_only(tmp_path, trouble, caplog):
    folder = tmp_path / "cache"
    if trouble == "not a folder":
        folder.write_text("")
    else:
        (folder / "v1").mkdir(parents=True)
        (folder / "v1").chmod(0o777)
    with caplog.at_level(logging.WARNING, "deepsched"), Engine(gemm(), cache_dir=folder) as engine:
        assert engine.compiled.is_shared and engine.compiled.folder is None
        assert str(folder) in engine.compiled.why_not
        assert_equals_plain(engine, gemm())
    assert len(caplog.records) == 1 and str(folder) in caplog.text


def test_where_nothing_can_be_written_each_stream_has_its_own_weights(cache_dir):
    out, err = finish(
        start_python(
            f"""
            import logging, resource
            logging.basicConfig()
            from deepsched import Engine
            from tests.support.contexts import two_sessions
            from tests.support.models import gemm
            from tests.support.plain_onnxruntime import assert_equals_plain
            # As a full disk: every file ends after so many bytes, in memory too.
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            with two_sessions() as context:
                engine = Engine(gemm(), None, context=context, cache_dir={str(cache_dir)!r})
                assert_equals_plain(engine, gemm())
                compiled = engine.compiled
                assert not compiled.is_shared and compiled.why_not, compiled
            print("fine")
            """
        )
    )
    assert out.strip() == "fine", err
    assert err.count("WARNING") == 1 and "weights of its own" in err
    assert Cache(cache_dir).list() == []


def test_the_files_are_the_users_alone(cache_dir):
    old = os.umask(0)
    try:
        with Engine(gemm(), None, cache_dir=cache_dir) as engine:
            folder = Path(engine.compiled.folder)
            for path in (folder, folder.parent):
                assert path.stat().st_mode & 0o077 == 0
            for path in folder.iterdir():
                assert path.stat().st_mode & 0o077 == 0
    finally:
        os.umask(old)


def test_a_folder_may_be_named_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Engine(gemm(), cache_dir="default") as engine:
        assert Path(engine.compiled.folder).is_relative_to("default")
    assert (tmp_path / "default" / "v1").is_dir()


@pytest.mark.parametrize("wrong", ["", 3, b""])
def test_a_cache_dir_is_a_path_or_none(wrong):
    with pytest.raises(OptionError, match="cache_dir"):
        Engine(gemm(), cache_dir=wrong)


# --- On the command line --------------------------------------------------------------------------


def test_the_cache_command_shows_and_clears_measurements(cache_dir, monkeypatch, capsys, quiet):
    monkeypatch.setenv("DEEPSCHED_CACHE_DIR", str(cache_dir))
    with Engine(gemm(), None, scheduler="elastic", cache_dir=cache_dir):
        pass
    foreign = cache_dir / "v1" / ".advice-notes.json"
    foreign.touch()
    (cache_dir / "v1" / f".advice-{32 * 'a'}.json").touch()  # as versions before wrote them
    assert main(["cache", "list", "--json"]) == 0
    measured, compiled = sorted(json.loads(capsys.readouterr().out), key=lambda it: it["num_bytes"])
    assert (compiled["kind"], measured["kind"]) == ("model", "run lengths")
    assert measured["model"] == compiled["model"] and not measured["is_in_use"]
    assert main(["cache", "list"]) == 0
    out = capsys.readouterr().out
    assert "run lengths" in out
    assert out.splitlines()[-1].startswith("1 models, 1 measurements, ")
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "removed 2\n"
    assert sorted(os.listdir(Cache(cache_dir).folder)) == [foreign.name, TAG]


def test_the_cache_command(cache_dir, monkeypatch, capsys):
    monkeypatch.setenv("DEEPSCHED_CACHE_DIR", str(cache_dir))
    assert main(["cache", "path"]) == 0
    assert capsys.readouterr().out.strip() == str(cache_dir)
    with Engine(gemm(), None, cache_dir=cache_dir):
        assert main(["cache", "list", "--json"]) == 0
        (info,) = json.loads(capsys.readouterr().out)
        assert info["is_in_use"] and info["num_bytes"] > 256 * 1024
        assert main(["cache", "clear"]) == 0
        assert capsys.readouterr().out == "removed 0; 1 in use\n"
    assert main(["cache", "list"]) == 0
    out = capsys.readouterr().out
    assert info["key"][:8] in out and "any" in out
    assert out.splitlines()[-1].startswith("1 models, ")
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "removed 1\n"
    monkeypatch.setenv("DEEPSCHED_CACHE_BYTES", "plenty")
    assert main(["cache", "list"]) == 2
    assert "plenty" in capsys.readouterr().err
