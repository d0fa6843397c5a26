"""The command line of `deepsched serve`: what works as documented, and what is said of mistakes."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
import pytest

from deepsched import Topology
from deepsched.machine.leases import holders
from tests.support.processes import run_python
from tests.support.serving import body, plus, save, serving, slow_plus

pytestmark = pytest.mark.server


def fails(*arguments):
    """The message of a command that cannot serve."""
    ended = subprocess.run(
        [sys.executable, "-m", "deepsched", "serve", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2, ended
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stderr


def test_without_the_extra_it_says_what_to_install():
    out = run_python(
        """
        import contextlib, io, sys
        sys.modules["uvloop"] = None
        from deepsched.cli import main
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = main(["serve", "model.onnx"])
        print(code, said.getvalue())
        """
    )
    assert out.startswith("2 deepsched: deepsched serve needs uvloop")
    assert "pip install 'deepsched[serve]'" in out


def test_mistakes_are_named_and_exit_with_2(tmp_path):
    good = save(plus(1), tmp_path, "m.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    ports = ("--port", 0, "--grpc-port", 0)
    assert "no model to serve" in fails()
    assert "there is no missing.onnx" in fails("missing.onnx")
    assert "no model can be served: broken: " in fails(broken, *ports)
    assert "--port must be int <= 65535, got 70000" in fails(good, "--port", 70000)
    assert "--lame-duck must be float >= 0.0, got -1.0" in fails(good, "--lame-duck", -1)
    assert "unrecognized arguments: --grcp-port" in fails(good, "--grcp-port", 1)
    assert "did you mean --grpc-port" in fails(good, "--grcp-port", 1)
    assert "--scheduler must be" in fails(good, "--scheduler", "best", *ports)
    assert "'no.such.host' has no address" in fails(good, "--host", "no.such.host")
    assert "192.0.2.1 is no address of this machine" in fails(good, "--host", "192.0.2.1")
    assert "missing.yaml cannot be read" in fails("--config", "missing.yaml")
    config = tmp_path / "models.yaml"
    config.write_text("models:\n  a:\n    paht: m.onnx\n")
    assert f"{config}, line 3: unknown option 'paht'" in fails("--config", config)


def test_a_broken_model_does_not_keep_others_from_serving_but_the_server_from_being_ready(tmp_path):
    save(plus(1), tmp_path / "models", "good.onnx")
    (tmp_path / "models" / "broken.onnx").write_bytes(b"no model")
    with (
        serving(tmp_path / "models", "--lame-duck", 0, ready=False) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        while client.get("/v2/models/good/ready").status_code != 200:
            assert server.process.poll() is None
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/models/broken/ready").status_code == 503
        index = client.post("/v2/repository/index").json()
        (broken,) = [it for it in index if it["name"] == "broken"]
        assert (broken["state"], "failed" in broken["reason"]) == ("UNAVAILABLE", True)
        save(plus(2), tmp_path / "models", "broken.onnx")
        assert client.post("/v2/repository/models/broken/load").status_code == 200
        assert client.get("/v2/health/ready").status_code == 200


def test_models_with_cores_of_their_own_run_on_no_others(tmp_path):
    save(plus(1), tmp_path, "a.onnx")
    save(plus(2), tmp_path, "b.onnx")
    config = tmp_path / "models.yaml"
    config.write_text(
        """
        lame_duck: 0
        scheduler: single_stream
        models:
          shared: a.onnx
          alone: {path: b.onnx, num_cores: 1, scheduler: single_stream}
        """
    )
    with serving("--config", config) as server, httpx.Client(base_url=server.url) as client:
        for name, value in (("shared", 1), ("alone", 2)):
            answer = client.post(f"/v2/models/{name}/infer", json=body([0, 0, 0, 0]))
            assert answer.json()["outputs"][0]["data"] == [value] * 4


@pytest.fixture
def lease_dir(tmp_path, monkeypatch):
    """Cores that no other test has."""
    folder = tmp_path / "leases"
    folder.mkdir()
    monkeypatch.setenv("DEEPSCHED_LEASE_DIR", str(folder))
    monkeypatch.setattr("deepsched.machine.leases._books", {})
    return folder


needs_two_cores = pytest.mark.skipif(len(Topology.detect().cores) < 2, reason="needs two cores")


@needs_two_cores
def test_servers_with_leases_have_cores_of_their_own(tmp_path, lease_dir):
    model = save(plus(1), tmp_path, "m.onnx")
    options = ("--lease", "--num-cores", 1, "--lame-duck", 0)
    with serving(model, *options) as one:
        with serving(model, *options) as other:
            found = {it.pid: it.cpus for it in holders() if it.is_lease}
            assert found.keys() == {one.process.pid, other.process.pid}
            assert set(found[one.process.pid]).isdisjoint(found[other.process.pid])
            most = len(Topology.detect().cores)
            said = fails(model, "--lease", "--num-cores", most, "--port", 0, "--grpc-port", 0)
            assert f"process {one.process.pid} " in said and f"process {other.process.pid} " in said
            assert "Each slows the others down" not in other.output
        with serving(model, *options, "--lease-timeout", 30) as third:  # after a kill -9
            assert third.process.pid in {it.pid for it in holders() if it.is_lease}


@needs_two_cores
def test_models_with_cores_of_their_own_lease_them_where_the_server_leases(tmp_path, lease_dir):
    save(plus(1), tmp_path, "a.onnx")
    save(plus(2), tmp_path, "b.onnx")
    config = tmp_path / "models.yaml"
    config.write_text(
        """
        lame_duck: 0
        cores: lease
        num_cores: 1
        models: {shared: a.onnx, alone: {path: b.onnx, num_cores: 1}}
        """
    )
    with serving("--config", config) as server, httpx.Client(base_url=server.url) as client:
        for name, value in (("shared", 1), ("alone", 2)):
            answer = client.post(f"/v2/models/{name}/infer", json=body([0, 0, 0, 0]))
            assert answer.json()["outputs"][0]["data"] == [value] * 4
        (holder,) = holders()
        machine = Topology.detect()
        held = [core for core in machine.cores if not set(core.cpus).isdisjoint(holder.cpus)]
        assert holder.is_lease and len(held) == 2


def test_a_folder_with_everything_that_triton_takes_is_served(tmp_path):
    for version in ("1", "3"):
        save(plus(int(version)), tmp_path / "net" / version, "net.onnx")
    (tmp_path / "net" / "names.txt").write_text("cat\ndog\ncow\nowl\n")
    (tmp_path / "net" / "config.pbtxt").write_text(
        """
        name: "net" backend: "onnxruntime" default_model_filename: "net.onnx" max_batch_size: 2
        input { name: "x" data_type: TYPE_FP32 dims: 4 }
        output { name: "y" data_type: TYPE_FP32 dims: 4 label_filename: "names.txt" }
        version_policy: { specific: { versions: [ 1, 3 ] } }
        instance_group { count: 2 kind: KIND_CPU }
        optimization { graph { level: 1 } }
        """
    )
    options = ("--watch", "--lame-duck", 0)
    with serving(tmp_path, *options) as server, httpx.Client(base_url=server.url) as client:
        lines = [it for it in server.lines if it.endswith("leaves out optimization")]
        assert len(lines) == 2  # one for each version, though they are watched
        assert client.get("/v2/models/net").json()["versions"] == ["1", "3"]
        path = "/v2/models/net/versions/1/infer"
        asked = {**body([1, 5, 2, 3]), "outputs": [{"name": "y"}]}
        asked["outputs"][0]["parameters"] = {"classification": 1}
        answer = client.post(path, json=asked).json()
        assert answer["outputs"][0]["data"] == ["6.000000:1:dog"]
        config = client.get("/v2/models/net/config").json()
        assert config["max_batch_size"] == 2
        refused = client.post(path, json=body(list(range(12))))
        assert refused.status_code == 400
        assert "max_batch_size" in refused.json()["error"]


@pytest.mark.parametrize(
    "name",
    [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e",
        "%00",
        "m%00.onnx",
        "%c3%28",
        "%ef%bc%8e%ef%bc%8e",
        "a" * 3000,
        "%0d%0aset-cookie:x",
    ],
)
@pytest.mark.parametrize("verb", ["load", "unload"])
def test_names_in_requests_lead_nowhere(paths_server, name, verb):
    answer = httpx.post(f"{paths_server.url}/v2/repository/models/{name}/{verb}")
    assert answer.status_code in (400, 404), answer.text
    assert "root:" not in answer.text
    index = httpx.post(f"{paths_server.url}/v2/repository/index").json()
    assert [it["name"] for it in index] == ["m"]


@pytest.fixture(scope="module")
def paths_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paths")
    save(plus(1), folder / "models" / "m" / "1")
    with serving(folder / "models", "--lame-duck", 0) as server:
        yield server


def test_a_load_may_name_no_file(paths_server):
    for parameters in (
        {"config": json.dumps({"default_model_filename": "/etc/passwd"})},
        {"config": json.dumps({"model_operations": {"op_library_filename": ["/lib/x.so"]}})},
        {"file:1/model.onnx": "/etc/passwd"},
    ):
        answer = httpx.post(
            f"{paths_server.url}/v2/repository/models/m/load", json={"parameters": parameters}
        )
        assert answer.status_code == 400, answer.text
    answer = httpx.post(f"{paths_server.url}/v2/models/m/infer", json=body([0, 0, 0, 0]))
    assert answer.json()["outputs"][0]["data"] == [1] * 4


def test_a_models_timeout_holds_for_requests_that_ask_for_none_in_every_protocol(tmp_path):
    save(slow_plus(1), tmp_path, "m.onnx")
    config = tmp_path / "models.yaml"
    config.write_text("lame_duck: 0\nmodels: {m: {path: m.onnx, timeout: 0.2}}")
    x = [[0.0] * 64] * 64
    steps = {"name": "steps", "datatype": "INT64", "shape": [], "data": [10**9]}
    v2 = {"inputs": [steps, {"name": "x", "datatype": "FP32", "shape": [64, 64], "data": x}]}
    with serving("--config", config) as server, httpx.Client(base_url=server.url) as client:
        answers = [
            client.post("/v2/models/m/infer", json=v2),
            client.post("/v1/models/m:predict", json={"inputs": {"steps": 10**9, "x": x}}),
        ]
        assert [it.status_code for it in answers] == [504, 504], [it.text for it in answers]
        v2["parameters"] = {"timeout": 60_000_000}
        steps["data"] = [10]
        assert client.post("/v2/models/m/infer", json=v2).status_code == 200
