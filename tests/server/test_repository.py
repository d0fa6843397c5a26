"""Versions come and go: what serves, what takes over, and what a failed load leaves alone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading

import numpy as np
import pytest

from deepsched.errors import OptionError
from deepsched.server.errors import ModelNotFound, NotReady, RequestError
from deepsched.server.inference import Inference
from deepsched.server.repository import LoadError, Repository, Streams, Watcher
from deepsched.server.repository import repository as repository_module
from deepsched.server.repository.folder import Folder
from deepsched.server.repository.pbtxt import read_json
from deepsched.server.repository.sources import Sources
from deepsched.server.repository.watching import is_being_written
from deepsched.server.shared_memory import Regions
from tests.support import models
from tests.support.serving import plus, save, slow_plus

pytestmark = pytest.mark.server

X = np.zeros((1, 4), np.float32)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def running(root, scenario, start=True):
    """Runs `scenario(repository, infer)` in a loop, and closes the repository."""

    async def main():
        streams = Streams({"num_cores": 1, "num_streams": 1, "pin": "none"}, {})
        repository = Repository(Sources([Folder(str(root))]), streams, {"cache_dir": None})
        inference = Inference(repository, Regions())

        async def infer(name="m", version="", x=X, **inputs):
            found = repository.get(name, version)
            (y,) = await inference.run(found, {"x": x, **inputs}, None, 0)
            return float(y.flat[0])

        try:
            if start:
                await repository.start()
            return await scenario(repository, infer)
        finally:
            await repository.close()

    return asyncio.run(asyncio.wait_for(main(), 100))


def states(repository):
    return {(it.name, it.version): it.state for it in repository.index()}


def reason(repository, version):
    (found,) = [it.reason for it in repository.index() if it.version == version]
    return found


def break_model(root, version):
    (root / "m" / version).mkdir(exist_ok=True)
    path = root / "m" / version / "model.onnx"
    path.with_suffix(".new").write_bytes(b"no model")
    os.replace(path.with_suffix(".new"), path)


def test_the_highest_version_serves_and_others_by_number(root):
    for version in (2, 9, 10):
        save(plus(version), root / "m" / str(version))
    (root / "m" / "config.pbtxt").write_text("version_policy { latest { num_versions: 2 } }")

    async def scenario(repository, infer):
        assert repository.is_ready()
        assert repository.versions("m") == ["9", "10"]
        assert await infer() == await infer(version="10") == 10
        assert await infer(version="9") == 9
        with pytest.raises(ModelNotFound, match=r"no version '2'; it has \['9', '10'\]"):
            repository.get("m", "2")
        with pytest.raises(ModelNotFound, match="no model 'n'"):
            repository.get("n")

    running(root, scenario)


def test_a_new_version_takes_over_between_two_requests_and_the_old_one_answers_what_it_has(root):
    save(slow_plus(1), root / "m" / "1")

    async def scenario(repository, infer):
        x = np.zeros((64, 64), np.float32)
        old = repository.get("m")
        old.enter()  # a request that it has, for as long as this test likes
        under_way = asyncio.create_task(infer(x=x, steps=np.int64(10_000)))
        while old.num_under_way < 2:
            await asyncio.sleep(0)
        save(slow_plus(2), root / "m" / "2")
        await repository.load("m", {})
        assert await infer(x=x, steps=np.int64(1)) == 2
        assert await under_way == 1
        assert states(repository)["m", "1"] == "UNLOADING"
        assert old.engine.run([np.int64(1), x])[0][0, 0] == 1
        old.leave()
        while states(repository)["m", "1"] != "UNAVAILABLE":
            await asyncio.sleep(0.01)
        assert old.engine.is_closed

    running(root, scenario)


def test_a_model_that_is_replaced_under_the_same_number_is_opened_anew(root):
    save(plus(1), root / "m" / "1")

    async def scenario(repository, infer):
        assert await infer() == 1
        save(plus(5), root / "m" / "1")
        await repository.load("m", {})
        assert await infer() == 5
        assert states(repository) == {("m", "1"): "READY"}

    running(root, scenario)


def test_a_load_that_fails_leaves_the_old_version_serving_and_says_so(root):
    save(plus(1), root / "m" / "1")

    async def scenario(repository, infer):
        for version in ("2", "1"):
            break_model(root, version)
            with pytest.raises(LoadError, match=f"version {version}: .*model.onnx"):
                await repository.load("m", {})
            assert await infer() == 1
            assert "the last load failed: " in reason(repository, version)
            assert repository.is_ready()
            (root / "m" / "2" / "model.onnx").unlink(missing_ok=True)
        assert states(repository) == {("m", "1"): "READY"}  # of 2 there are no files any more
        save(plus(3), root / "m" / "3")
        await repository.load("m", {})
        assert await infer() == 3

    running(root, scenario)


def test_a_configuration_that_cannot_be_read_leaves_the_old_version_serving(root):
    save(plus(1), root / "m" / "1")

    async def scenario(repository, infer):
        (root / "m" / "config.pbtxt").write_text("max_batch_size: x")
        with pytest.raises(OptionError, match="config.pbtxt"):
            await repository.load("m", {})
        assert await infer() == 1
        assert "config.pbtxt" in reason(repository, "1")

    running(root, scenario)


def test_of_several_versions_those_that_open_serve(root):
    save(plus(1), root / "m" / "1")
    break_model(root, "2")
    (root / "m" / "config.pbtxt").write_text("version_policy { all { } }")

    async def scenario(repository, infer):
        assert await infer() == 1
        assert states(repository) == {("m", "1"): "READY", ("m", "2"): "UNAVAILABLE"}
        with pytest.raises(NotReady, match="version 2 of model 'm' is UNAVAILABLE: .*failed"):
            repository.get("m", "2")

    running(root, scenario)


def test_the_server_is_ready_when_every_model_has_answered(root, monkeypatch):
    save(plus(1), root / "m" / "1")
    save(plus(2), root / "n" / "1")
    may_open = threading.Event()
    open_version = repository_module.open_version

    def held(found, *arguments):
        if found.name == "n":
            assert may_open.wait(30)
        return open_version(found, *arguments)

    monkeypatch.setattr(repository_module, "open_version", held)

    async def scenario(repository, infer):
        starting = asyncio.create_task(repository.start())
        while states(repository).get(("n", "1")) != "LOADING":
            await asyncio.sleep(0.01)
        assert await infer() == 1
        assert not repository.is_ready()
        with pytest.raises(NotReady, match="'n' is LOADING"):
            repository.get("n")
        may_open.set()
        await starting
        assert repository.is_ready()

    running(root, scenario, start=False)


def test_a_model_that_does_not_open_keeps_the_server_from_being_ready(root):
    save(plus(1), root / "m" / "1")
    (root / "n" / "1").mkdir(parents=True)
    (root / "n" / "1" / "model.onnx").write_bytes(b"no model")

    async def scenario(repository, infer):
        assert await infer() == 1
        assert not repository.is_ready()
        save(plus(2), root / "n" / "1")
        await repository.load("n", {})
        assert repository.is_ready()

    running(root, scenario)


def test_unloaded_models_answer_what_they_have_and_can_be_loaded_again(root):
    save(slow_plus(1), root / "m" / "1")

    async def scenario(repository, infer):
        x, steps = np.zeros((64, 64), np.float32), np.int64(100_000)
        long = asyncio.create_task(infer(x=x, steps=steps))
        while not repository.get("m").num_under_way:
            await asyncio.sleep(0)
        await repository.unload("m", {})
        with pytest.raises(ModelNotFound, match="unloaded by request"):
            repository.get("m")
        assert repository.is_ready()
        assert await long == 1
        await repository.load("m", {})
        assert await infer(x=x, steps=np.int64(1)) == 1
        with pytest.raises(ModelNotFound):
            await repository.unload("n", {})

    running(root, scenario)


def test_requests_may_bring_a_configuration_but_name_no_files(root):
    for version in ("1", "2"):
        save(plus(int(version)), root / "m" / version)

    async def scenario(repository, infer):
        config = {"version_policy": {"specific": {"versions": [1]}}, "max_batch_size": 2}
        await repository.load("m", {"config": json.dumps(config)})
        assert await infer() == 1
        assert repository.get("m").max_batch_size == 2
        for config, error in (
            ({"model_operations": {"op_library_filename": ["/lib/libc.so.6"]}}, OptionError),
            ({"output": [{"name": "y", "label_filename": "/etc/passwd"}]}, OptionError),
            ({"default_model_filename": "../../x"}, OptionError),
            ({"version_policy": 3}, OptionError),
        ):
            with pytest.raises(error, match="'config'"):
                await repository.load("m", {"config": json.dumps(config)})
        for option in ("custom_ops", "cache_dir"):
            config = {"parameters": {option: {"string_value": str(root / "there")}}}
            await repository.load("m", {"config": json.dumps(config)})
        assert not (root / "there").exists()
        for parameters in ({"file:1/model.onnx": "AAAA"}, {"path": "/etc/passwd"}):
            with pytest.raises(RequestError, match="load takes"):
                await repository.load("m", parameters)
        with pytest.raises(ModelNotFound):
            await repository.load("../m", {})

    running(root, scenario)


@pytest.mark.parametrize("text", ["[]", "1", 1, "{", '{"input": [{"data_type": 77}]}'])
def test_what_is_no_configuration_is_refused(text):
    with pytest.raises(OptionError, match="configuration as JSON|data_type 77 is none"):
        read_json(text, "m")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('input { name: "z" }', "input 'z', the model has"),
        ('input { name: "x" data_type: TYPE_INT64 }', "says INT64, the model FP32"),
        ('output { name: "y" dims: [ 5 ] } max_batch_size: 4', r"\[-1, 5\].*\[-1, 4\]"),
        ('input { name: "x" dims: [ 4 ] }', r"says \[4\].*model \[-1, 4\]"),
        (
            'model_warmup { name: "w" inputs { key: "x" value { dims: [ 1, 5 ] zero_data: true }}}',
            "input 'x'",
        ),
    ],
)
def test_a_configuration_of_another_model_is_refused(root, config, message):
    save(plus(1), root / "m" / "1")
    (root / "m" / "config.pbtxt").write_text(config)

    async def scenario(repository, infer):
        assert not repository.serving()
        with pytest.raises(LoadError, match=message):
            await repository.load("m", {})

    running(root, scenario)


def test_requests_that_run_together_are_no_more_than_a_batch_may_be(root):
    save(models.mlp(), root / "m" / "1")
    (root / "m" / "config.pbtxt").write_text(
        'max_batch_size: 4 parameters { key: "batching" value { string_value: "16" } }'
    )

    async def scenario(repository, infer):
        engine = repository.get("m").engine
        for move in (False, True):
            if move:
                engine.context.resize(num_cores=1)
            inputs = [np.ones((1, 64), np.float32)]
            assert len(list(engine.map([inputs] * 500, in_flight=200))) == 500
            assert 1 < max(engine.stats().by_batch) <= 4

    running(root, scenario)


def test_a_batch_that_the_model_does_not_take_is_refused(root):
    save(plus(1, batch=1), root / "m" / "1")
    (root / "m" / "config.pbtxt").write_text("max_batch_size: 8")

    async def scenario(repository, infer):
        assert "max_batch_size is 8, but the first dimension" in reason(repository, "1")

    running(root, scenario)


def test_warm_up_requests_are_answered_before_the_model_serves(root):
    save(plus(1), root / "m" / "1")
    (root / "m" / "warmup").mkdir()
    (root / "m" / "warmup" / "x.bin").write_bytes(np.ones((2, 4), np.float32).tobytes())
    (root / "m" / "config.pbtxt").write_text(
        'model_warmup { name: "w" count: 3 inputs { key: "x" '
        'value { data_type: TYPE_FP32 dims: [ 2, 4 ] input_data_file: "x.bin" } } }'
    )

    async def scenario(repository, infer):
        assert repository.get("m").engine.stats().done == 3

    running(root, scenario)


def test_made_up_inputs_that_do_not_fit_are_no_reason_not_to_serve(root, caplog):
    save(models.gather(), root / "m" / "1")  # of an empty x no index can be taken

    async def scenario(repository, infer):
        assert repository.is_ready()

    running(root, scenario)


def test_a_client_that_leaves_does_not_end_the_load_that_it_asked_for(root):
    save(plus(1), root / "m" / "1")

    async def scenario(repository, infer):
        save(plus(2), root / "m" / "2")
        loading = asyncio.create_task(repository.load("m", {}))
        await asyncio.sleep(0)
        loading.cancel()
        while repository.versions("m") != ["2"]:
            await asyncio.sleep(0.01)
        assert await infer() == 2

    running(root, scenario)


def test_a_folder_that_is_gone_fails_the_load_and_not_what_serves(root):
    save(plus(1), root / "m" / "1")

    async def scenario(repository, infer):
        root.rename(root.with_name("elsewhere"))
        for name in ("m", "n"):
            with pytest.raises(LoadError):
                await repository.load(name, {})
        assert await infer() == 1
        assert repository.is_ready()

    running(root, scenario)


# --- watching -------------------------------------------------------------------------------------


def watched(root, scenario):
    async def with_watcher(repository, infer):
        watcher = Watcher(repository, Sources([Folder(str(root))]))
        task = asyncio.create_task(watcher.run())

        async def until(condition):
            while not condition():
                await asyncio.sleep(0.02)
                assert not task.done()

        try:
            await scenario(repository, infer, until)
        finally:
            task.cancel()

    running(root, with_watcher)


def test_a_model_that_is_removed_before_the_first_look_is_taken_out(root):
    save(plus(1), root / "m" / "1")
    save(plus(2), root / "n" / "1")

    async def scenario(repository, infer, until):
        shutil.rmtree(root / "m")
        await until(lambda: not repository.versions("m"))
        assert await infer("n") == 2

    watched(root, scenario)


def test_changed_new_and_removed_models_are_noticed(root):
    save(plus(1), root / "m" / "1")

    async def scenario(repository, infer, until):
        opened = repository.get("m")
        save(plus(2), root / "m" / "1")
        await until(lambda: repository.get("m") is not opened)
        assert await infer() == 2
        save(plus(3), root / "n" / "1")
        await until(lambda: repository.versions("n"))
        assert await infer("n") == 3
        for parent, _, names in os.walk(root / "m", topdown=False):
            for name in names:
                os.unlink(os.path.join(parent, name))
            os.rmdir(parent)
        await until(lambda: not repository.versions("m"))
        assert repository.is_ready()

    watched(root, scenario)


def test_what_has_not_changed_is_not_opened_again(root):
    save(plus(1), root / "m" / "1")

    async def scenario(repository, infer, until):
        opened = repository.get("m")
        save(plus(2), root / "n" / "1")
        await until(lambda: repository.versions("n"))
        assert repository.get("m") is opened

    watched(root, scenario)


def test_a_model_that_is_still_being_written_is_not_loaded(root):
    save(plus(1), root / "m" / "1")
    content = plus(2).SerializeToString()

    async def scenario(repository, infer, until):
        (root / "m" / "2").mkdir()
        path = root / "m" / "2" / "model.onnx"
        with open(path, "wb") as writer:
            writer.write(content[:20])
            writer.flush()
            assert is_being_written(str(path))
            save(plus(5), root / "n" / "1")  # comes later, and is loaded
            await until(lambda: repository.versions("n"))
            assert states(repository).keys() == {("m", "1"), ("n", "1")}
            writer.write(content[20:])
        assert not is_being_written(str(path))
        await until(lambda: repository.versions("m") == ["2"])
        assert await infer() == 2
        assert all(not it.reason.count("failed") for it in repository.index())

    watched(root, scenario)


def test_a_broken_model_is_tried_again_when_it_changes(root):
    save(plus(1), root / "m" / "1")

    async def scenario(repository, infer, until):
        break_model(root, "2")
        await until(lambda: ("m", "2") in states(repository))
        await until(lambda: states(repository)["m", "2"] == "UNAVAILABLE")
        assert await infer() == 1
        save(plus(2), root / "m" / "2")
        await until(lambda: repository.versions("m") == ["2"])

    watched(root, scenario)


def test_a_model_that_was_unloaded_by_request_stays_so(root):
    save(plus(1), root / "m" / "1")
    save(plus(1), root / "n" / "1")

    async def scenario(repository, infer, until):
        await repository.unload("m", {})
        save(plus(2), root / "m" / "1")
        opened = repository.get("n")
        await asyncio.sleep(0)
        save(plus(2), root / "n" / "1")
        await until(lambda: repository.get("n") is not opened)
        assert repository.versions("m") == []

    watched(root, scenario)
