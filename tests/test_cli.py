"""The command line, as a user types it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from deepsched import Engine, Topology
from deepsched.benchmark import bundled_model, measure
from deepsched.cli import main
from tests import models
from tests.sysfs_tree import write_machine

# DeepSparse's report lines, in its order; ours are added between and after them.
REPORT = [
    "Original Model Path:", "Batch Size:", "Scenario:", "Throughput (items/sec):",
    "Latency Mean (ms/batch):", "Latency Median (ms/batch):", "Latency Std (ms/batch):",
    "Iterations:",
]  # fmt: skip


@pytest.fixture
def mlp(tmp_path):
    return models.save(models.mlp(), tmp_path)


@pytest.mark.parametrize("scenario", ["sync", "async", "elastic"])
def test_benchmark_prints_deepsparses_lines_and_exports_its_keys(mlp, tmp_path, capsys, scenario):
    export = tmp_path / "result.json"
    options = ["-b", "2", "-i", "[2,64]", "-ncores", "1", "-t", "0.2", "-w", "0", "-q"]
    assert main(["benchmark", mlp, "-s", scenario, "-x", str(export), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    positions = [next(i for i, line in enumerate(lines) if line.startswith(p)) for p in REPORT]
    assert positions == sorted(positions)
    result = json.loads(export.read_text())
    assert "mlp" in result["engine"] or "model" in result["engine"]
    assert not result["interrupted"]
    assert result["batch_size"] == 2
    assert result["num_cores"] == 1
    assert result["scenario"] == scenario
    numbers = result["benchmark_result"]
    assert numbers["iterations"] > 0
    assert numbers["items_per_sec"] == pytest.approx(
        2 * numbers["iterations"] / numbers["seconds_ran"]
    )
    assert numbers["median"] <= numbers["90.0%"] <= numbers["99.0%"] <= numbers["99.9%"]


def test_benchmark_without_a_model_compares_both_schedulers(tmp_path, capsys):
    export = tmp_path / "result.json"
    assert main(["benchmark", "-t", "0.3", "-w", "0", "-q", "-x", str(export)]) == 0
    out = capsys.readouterr().out
    assert "single_stream" in out
    assert "multi_stream" in out
    reports = json.loads(export.read_text())["measurements"]
    assert {report["model_path"] for report in reports} == {bundled_model()}
    assert {(r["scheduler"], r["benchmark_result"]["callers"]) for r in reports} >= {
        ("single_stream", 1),
        ("multi_stream", 1),
    }


@pytest.mark.parametrize("model", ["MLP", None])
def test_an_interrupted_benchmark_says_so(mlp, tmp_path, capsys, monkeypatch, model):
    def measure_interrupted(*args, **kwargs):
        return dataclasses.replace(measure(*args, **kwargs), is_interrupted=True)

    monkeypatch.setattr("deepsched.cli.benchmark.measure", measure_interrupted)
    export = tmp_path / "result.json"
    arguments = [mlp] if model else []
    options = ["-t", "0.2", "-w", "0", "-q", "-x", str(export)]
    assert main(["benchmark", *arguments, *options]) == 130
    assert "Interrupted" in capsys.readouterr().out
    result = json.loads(export.read_text())
    assert result["interrupted"]
    assert len(result.get("measurements", [result])) == 1  # the rest is not measured


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.onnx"], "no model file at 'nowhere.onnx'"),
        (["MLP", "-nstreams", "1000"], "num_streams must be between 1 and"),
        (["MLP", "-i", "1,64"], "--input_shapes must look like"),
        (["MLP", "-i", "[1,65]"], "rely on other sizes"),
        (["MLP", "-s", "fastest"], "scheduler must be one of"),
        (["MLP", "-t", "0"], "--time must be positive"),
        (["MLP", "-t", "0.1", "-w", "0", "-x", "/nowhere/x.json"], "cannot write --export_path"),
    ],
)
def test_benchmark_says_what_is_wrong_in_one_line(mlp, capsys, arguments, message):
    arguments = [mlp if argument == "MLP" else argument for argument in arguments]
    assert main(["benchmark", "-q", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_topology_shows_this_machine_and_its_streams(capsys):
    assert main(["topology"]) == 0
    out = capsys.readouterr().out
    machine = Topology.detect()
    assert f"{len(machine.cores)} usable cores" in out
    assert "stream 0: CPUs" in out


def test_topology_of_a_made_up_machine_tells_what_is_unwise(capsys):
    assert main(["topology", "--synthetic", "2:1:1:8", "--num_streams", "3"]) == 0
    out = capsys.readouterr().out
    assert "stream 1: CPUs 6-10" in out
    assert "note (straddles_packages): " in out


def test_topology_as_json(capsys):
    assert main(["topology", "--synthetic", "1:1:2:2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [stream["cpus"] for stream in data["streams"]] == [[0, 1], [2, 3]]
    assert data["warnings"] == []
    assert data["forbidden_cpus"] == []


def test_topology_as_json_explains_each_warning(capsys):
    assert main(["topology", "--synthetic", "2:1:1:2", "--num-streams", "1", "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning["kind"] == "straddles_packages"
    assert "Choose num_streams" in warning["explanation"]


def test_topology_takes_flags_with_hyphens_and_with_underscores(capsys):
    outputs = []
    for sign in "-_":
        flags = [
            f"--num{sign}cores",
            "6",
            f"--num{sign}streams",
            "3",
            f"--threads{sign}per{sign}core",
        ]
        assert main(["topology", "--synthetic", "1:1:1:8:2", *flags, "2"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert "stream 2: CPUs 4-5, 12-13" in outputs[0]


def test_topology_of_a_large_machine_fits_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["topology", "--synthetic", "2:1:1:64:2", "--num-streams", "2"]) == 0
    picture = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert max(map(len, picture)) <= 80
    assert len(picture) < 40
    words = " ".join(picture).replace(",", " ").split()
    assert set(words) >= {str(cpu) for cpu in range(256)}


def test_topology_tells_forbidden_and_offline_cpus(tmp_path, capsys):
    tree = write_machine(tmp_path, Topology.synthetic(packages=2, cores_per_l3=2))
    tree.set_online([0, 1, 2])  # not 3
    tree.add_mount("cgroup2", "/sys/fs/cgroup")
    tree.write("proc/self/cgroup", "0::/job")
    tree.write("sys/fs/cgroup/job/cpuset.cpus.effective", "1-2")
    assert main(["topology", "--sysfs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forbidden_cpus"] == [0, 3]
    assert main(["topology", "--sysfs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "forbidden  0  s0  1" in out
    assert "offline  3" in out


def test_topology_draws_a_file(tmp_path, capsys):
    file = tmp_path / "machine.svg"
    assert main(["topology", "--synthetic", "2:1:1:4", "--svg", str(file)]) == 0
    assert file.read_text().startswith("<svg ")
    assert main(["topology", "--svg", str(tmp_path / "nowhere" / "x.svg")]) == 2
    assert "cannot write --svg" in capsys.readouterr().err


@pytest.mark.parametrize("machine", [["--synthetic", "a:b"], ["--sysfs", "/nowhere"]])
def test_topology_of_a_machine_that_cannot_be_read(machine, capsys):
    assert main(["topology", *machine]) == 2
    assert machine[1] in capsys.readouterr().err


def test_the_module_prints_a_diagnosis_as_json():
    done = subprocess.run(
        [sys.executable, "-m", "deepsched"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    report = json.loads(done.stdout)
    assert report["onnxruntime_library"]["version"] == report["packages"]["onnxruntime"]
    assert report["streams"]


def test_measure_reports_requests_longer_than_the_time_given():
    model = models.spin()
    with Engine(model, None) as engine:
        steps = np.array(20_000, np.int64)
        inputs = [steps, np.zeros((64, 64), np.float32)]
        result = measure(engine.run, inputs, seconds=1e-6, warmup_seconds=0.0)
    assert result.iterations == 1
    assert result.latencies_ms[0] == pytest.approx(result.seconds * 1e3)


def test_measure_counts_what_every_caller_did_and_raises_what_it_raised():
    calls = []
    result = measure(calls.append, 1, callers=3, seconds=0.05, warmup_seconds=0.0, batch_size=4)
    assert len(calls) - 3 <= result.iterations <= len(calls)  # three were under way at the end
    assert result.items_per_sec == pytest.approx(4 * result.iterations / result.seconds)
    assert result.seconds == pytest.approx(0.05)
    with pytest.raises(ZeroDivisionError):
        measure(lambda x: 1 // x, 0, callers=2, seconds=5)
