"""The command line, as a user types it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from deepsched import Engine, Topology
from deepsched.benchmark import bundled_model, measure
from deepsched.cli import main
from deepsched.cli.files import writing
from deepsched.cli.help import HelpFormatter
from deepsched.cli.program import COMMANDS
from deepsched.models.cache import Cache
from tests.support import models
from tests.support.sysfs_tree import write_machine

# DeepSparse's report lines, in its order; ours are added between and after them.
REPORT = [
    "Original Model Path:",
    "Batch Size:",
    "Scenario:",
    "Throughput (items/sec):",
    "Latency Mean (ms/batch):",
    "Latency Median (ms/batch):",
    "Latency Std (ms/batch):",
    "Iterations:",
]


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
    assert f"Scenario: {scenario}" in lines
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
        (["MLP", "-nstreams", "1000"], "--num-streams must be "),
        (["MLP", "-i", "1,64"], "--input-shapes must look like"),
        (["MLP", "-i", "[" * 9000], "--input-shapes must look like"),
        (["MLP", "-i", "[1,65]"], "rely on other sizes"),
        (["MLP", "-s", "fastest"], "--scheduler must be one of"),
        (["MLP", "-t", "0"], "--seconds must be positive"),
        (["MLP", "-t", "0.1", "-w", "0", "-x", "/nowhere/x.json"], "cannot write --output"),
    ],
)
def test_benchmark_says_what_is_wrong_in_one_line(mlp, capsys, arguments, message):
    arguments = [mlp if argument == "MLP" else argument for argument in arguments]
    assert main(["benchmark", "-q", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


# --- Files that are written ---------------------------------------------------------------------

QUICK = ["-t", "0.05", "-w", "0", "-q"]


def test_results_stay_until_there_are_new_ones(mlp, tmp_path, capsys, monkeypatch):
    """Neither an error nor Ctrl-C in the warm-up takes away what an earlier run has written."""
    files = tmp_path / "out.json", tmp_path / "out.csv"
    for file in files:
        file.write_text("old")
    os.chmod(files[0], 0o640)
    options = [*QUICK, "-x", str(files[0]), "--csv", str(files[1])]
    assert main(["benchmark", mlp, "-nstreams", "1000", *options]) == 2

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("deepsched.cli.benchmark.measure", interrupted)
        assert main(["benchmark", mlp, *options]) == 130
    assert [file.read_text() for file in files] == ["old", "old"]
    assert main(["benchmark", mlp, *options]) == 0
    assert json.loads(files[0].read_text())["benchmark_result"]
    assert files[1].read_text().startswith("engine,")
    assert files[0].stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "out.csv", "out.json"]


def test_results_go_through_a_link_and_into_a_fifo(mlp, tmp_path, capsys):
    link, fifo = tmp_path / "link.json", tmp_path / "fifo"
    link.symlink_to("target.json")
    os.mkfifo(fifo)
    with os.fdopen(os.open(fifo, os.O_RDWR), "rb", buffering=0) as reader:
        options = ["-x", str(link), "--csv", str(fifo)]
        assert main(["benchmark", mlp, *QUICK, *options]) == 0
        assert reader.read(7) == b"engine,"
    assert link.is_symlink()
    assert json.loads((tmp_path / "target.json").read_text())["num_streams"] >= 1


@pytest.fixture
def no_random_names(monkeypatch):
    """Temporary names can be guessed, as all of them could once."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    return (f".{{}}.{os.getpid()}", ".deepsched-guessed")


@pytest.mark.parametrize("option", ["-x", "--csv"])
def test_results_follow_no_planted_link(mlp, tmp_path, capsys, no_random_names, option):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "shared"
    folder.mkdir()
    for name in no_random_names:
        (folder / name.format("out")).symlink_to(victim)
    main(["benchmark", mlp, *QUICK, option, str(folder / "out")])
    assert victim.read_text() == "precious"


def test_two_results_have_temporary_files_of_their_own(tmp_path):
    with (
        writing(str(tmp_path / "out"), "--csv") as one,
        writing(str(tmp_path / "out"), "-x") as two,
    ):
        assert not os.listdir(tmp_path)  # nothing that kill -9 could leave
        one.write("1")
        two.write("2")
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "1"


def test_a_name_as_long_as_names_can_be_is_written(tmp_path):
    path = tmp_path / ("x" * 255)
    with writing(str(path), "--csv") as file:
        file.write("all")
    assert path.read_text() == "all"


def test_a_model_whose_path_is_not_utf_8_is_reported(mlp, tmp_path, capsys):
    model = tmp_path / os.fsdecode(b"\xff.onnx")
    model.write_bytes(Path(mlp).read_bytes())
    table, export = tmp_path / "out.csv", tmp_path / "out.json"
    options = [*QUICK, "--csv", str(table), "-x", str(export)]
    assert main(["benchmark", str(model), *options]) == 0
    assert r"\udcff.onnx" in capsys.readouterr().out
    assert r"\udcff.onnx" in table.read_text()
    assert json.loads(export.read_text())["orig_model_path"] == str(model)


SIGNALLED = """
import os, signal, sys
from deepsched.cli import {module} as module
plain = module.{function}
def signalled(*args, **options):
    os.kill(os.getpid(), signal.{number})
    signal.pause()
module.{function} = signalled
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_killed_measurement_leaves_no_file(mlp, tmp_path, number):
    script = SIGNALLED.format(module="benchmark", function="measure", number=number)
    folder = tmp_path / "out"
    folder.mkdir()
    done = run_deepsched(["benchmark", mlp, *QUICK, "-x", str(folder / "out.json")], script)
    assert done.returncode == -getattr(signal, number)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_signal_during_the_rename_leaves_no_file(mlp, tmp_path, number):
    script = SIGNALLED.format(module="files", function="os.replace", number=number)
    folder = tmp_path / "out"
    folder.mkdir()
    done = run_deepsched(
        ["topology", "--svg", str(folder / "out.svg")], script, stdout=subprocess.DEVNULL
    )
    assert done.returncode == -getattr(signal, number)
    assert os.listdir(folder) == []


# --- Names that a model's author chose ------------------------------------------------------------

ESCAPE = "\x1b]0;owned\x07"


@pytest.fixture
def hostile(tmp_path):
    """A model whose nodes, inputs and file have names that terminals and spreadsheets obey."""
    model = models.mlp()
    for number, node in enumerate(model.graph.node):
        node.name = ("=cmd()", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1")[number % 6] + ESCAPE
        for index, name in enumerate(node.input):
            if name == "x":
                node.input[index] = ESCAPE
    model.graph.input[0].name = ESCAPE
    return models.save(model, tmp_path, f"{ESCAPE}<b>.onnx")


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze", "MODEL", "-t", "0.05", "-q"],
        ["benchmark", "MODEL", *QUICK],
        ["benchmark", "MODEL", *QUICK, "-i", "[1,3]"],  # an error
        ["trace", "MODEL", "-t", "0.05", "-q"],
        pytest.param(["advise", "MODEL", "-t", "0.5", "-q"], marks=pytest.mark.field),
        ["cache", "list"],
    ],
)
def test_names_reach_the_terminal_escaped(hostile, tmp_path, arguments):
    cache = str(tmp_path / "cache")
    with Engine(hostile, cache_dir=cache):
        pass
    arguments = [hostile if argument == "MODEL" else argument for argument in arguments]
    environment = {**os.environ, "DEEPSCHED_CACHE_DIR": cache}
    done = run_deepsched(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_warnings_reach_the_terminal_escaped():
    script = f"""
import logging
from deepsched.cli import topology
def run(args):
    logging.getLogger("deepsched").warning("input %s", {ESCAPE!r})
topology.run = run
"""
    done = run_deepsched(["topology"], script, capture_output=True, text=True)
    assert done.stderr == "input \\x1b]0;owned\\x07\n"


def test_names_are_no_formulas_in_csv(hostile, tmp_path, capsys):
    path = tmp_path / "out.csv"
    options = ["-t", "0.05", "-q", "--rewrites", "none", "--csv", str(path)]
    assert main(["analyze", hostile, *options]) == 0
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    names = {row["name"] for row in rows}
    assert r"'=cmd()\x1b]0;owned\x07" in names
    assert not [name for name in names if name[0] in "=+-@\t\r" or "\x1b" in name]


def test_names_make_valid_svg(hostile, tmp_path, capsys):
    path = tmp_path / "out.svg"
    assert main(["trace", hostile, "-t", "0.05", "-q", "--svg", str(path)]) == 0
    titles = [it.text for it in ElementTree.parse(path).iter() if it.tag.endswith("title")]
    assert any(r"\x1b]0;owned\x07<b>" in title for title in titles)


@pytest.mark.parametrize("option", ["-x", "--csv"])
def test_a_full_device_is_said_in_one_line_beside_the_results(mlp, capsys, option):
    assert main(["benchmark", mlp, *QUICK, option, "/dev/full"]) == 2
    out, err = capsys.readouterr()
    assert "items/sec" in out
    assert err.count("\n") == 1
    assert "'/dev/full': No space left on device" in err


def test_dev_stdout_is_what_the_report_is_printed_to(mlp, tmp_path):
    """If that is a file, neither writes over the other."""
    file = tmp_path / "both"
    with file.open("w") as out:
        run_deepsched(["benchmark", mlp, *QUICK, "-x", "/dev/stdout"], stdout=out)
    text = file.read_text()
    exported, _, printed = text.partition("\n}")
    assert json.loads(exported + "}")["benchmark_result"]
    assert "items/sec" in printed


def test_one_file_for_two_results_is_refused(mlp, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options in (["-x", "a", "--csv", f"{tmp_path}/a"], ["--csv", "b", "-x", "./b"]):
        assert main(["benchmark", mlp, *QUICK, *options]) == 2
        assert "both name" in capsys.readouterr().err
    assert main(["trace", mlp, "-o", "a", "--svg", "a"]) == 2


# --- Readers, terminals and Ctrl-C --------------------------------------------------------------


def run_deepsched(arguments, script="", **options):
    """`deepsched` as a process of its own; `script` runs before."""
    code = f"import sys\nfrom deepsched.cli import main\n{script}\nsys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], check=False, **options)


def on_terminal(arguments, width, **environment):
    """What `deepsched` shows on a terminal of this width."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, width, 0, 0))
    environment = {**os.environ, **environment}
    environment.pop("COLUMNS", None)
    done = run_deepsched(arguments, stdin=end, stdout=end, stderr=end, env=environment, timeout=60)
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError), os.fdopen(terminal, "rb", 0) as file:  # EIO is its end
        while piece := file.read(4096):
            shown += piece
    text = shown.decode().replace("\r\n", "\n")
    assert done.returncode == 0, text
    return text


@pytest.mark.parametrize(
    "arguments",
    [
        ["benchmark", "MLP", *QUICK, "--json"],
        ["benchmark", "MLP", *QUICK, "--sweep", "callers=1"],
        ["topology", "--json"],
        ["topology"],
        ["trace", "MLP", "-t", "0.05", "-q"],
        ["cache", "list"],
        ["cache", "path"],
    ],
)
def test_a_reader_that_leaves_is_no_error(mlp, tmp_path, arguments):
    export = tmp_path / "out.json"
    arguments = [mlp if argument == "MLP" else argument for argument in arguments]
    if arguments[0] == "benchmark":
        arguments += ["-x", str(export)]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        done = run_deepsched(arguments, stdout=out, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert arguments[0] != "benchmark" or json.loads(export.read_text())


def test_what_the_terminal_cannot_show_is_a_question_mark(mlp):
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run_deepsched(
        ["trace", mlp, "-t", "0.05", "-q"], env=ascii_only, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "?" in done.stdout


INTERRUPTED = """
import itertools, os, signal
from deepsched.cli import {command} as command
calls, plain = itertools.count(1), command.{function}
def at_the_second(*args, **options):
    if next(calls) == 2:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()  # until it has come
    return plain(*args, **options)
command.{function} = at_the_second
"""


@pytest.mark.parametrize(
    ("arguments", "function", "shown"),
    [
        (["benchmark", *QUICK], "measure", "single_stream"),
        (["trace", "MLP", "-t", "0.05", "-q"], "Engine", "single_stream"),
    ],
)
def test_ctrl_c_before_the_second_measurement_shows_the_first(mlp, arguments, function, shown):
    arguments = [mlp if argument == "MLP" else argument for argument in arguments]
    script = INTERRUPTED.format(command=arguments[0], function=function)
    done = run_deepsched(arguments, script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "deepsched: interrupted\n")
    assert shown in done.stdout


def test_the_cache_lists_names_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DEEPSCHED_CACHE_DIR", str(tmp_path / "cache"))
    model = models.save(models.mlp(), tmp_path, "m[b]:x:[red].onnx")
    with Engine(model):
        pass
    assert main(["cache", "list"]) == 0
    assert "m[b]:x:[red].onnx" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 200])
def test_the_cache_list_has_a_line_for_each_item(tmp_path, width):
    model = models.save(models.mlp(), tmp_path, f"{'long-' * 12}name.onnx")
    cache = str(tmp_path / "cache")
    with Engine(model, cache_dir=cache) as engine:
        engine.run(engine.generate_random_inputs())
    out = on_terminal(["cache", "list"], width, DEEPSCHED_CACHE_DIR=cache)
    header, *items, blank, _ = out.splitlines()
    assert (header.split()[0], blank) == ("model", "")
    assert len(items) == len(Cache(Path(cache)).list())
    for line in items:
        assert len(line) <= width
        assert line.startswith(model if width == 200 else model[:5])
        assert model[-10:] + "  " in line


def test_topology_shows_this_machine_and_its_streams(capsys):
    assert main(["topology"]) == 0
    out = capsys.readouterr().out
    machine = Topology.detect()
    assert f"{len(machine.cores)} usable cores" in out
    assert "stream 0: CPUs" in out


def test_topology_of_a_made_up_machine_tells_what_is_unwise(capsys):
    assert main(["topology", "--synthetic", "2:1:1:8", "--num-streams", "3"]) == 0
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


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ("", "--synthetic must look like 2:1:4:8:2, got ''"),
        ("99999:1:1:1:1", "up to 8192 hardware threads"),
        ("64:8:8:64:2", "has 524288"),
    ],
)
def test_topology_refuses_machines_that_cannot_be(capsys, machine, message):
    assert main(["topology", "--synthetic", machine]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.timeout(30)
def test_topology_of_the_largest_machine_takes_seconds(tmp_path, capsys):
    """Each core was asked for the kinds of all: a minute."""
    file = tmp_path / "machine.svg"
    assert main(["topology", "--synthetic", "8192:1:1:1:1", "--svg", str(file)]) == 0
    assert "8192 usable cores" in capsys.readouterr().out


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


def test_the_report_has_what_a_bug_report_needs(capsys):
    assert main(["report"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["onnxruntime_library"]["version"] == report["packages"]["onnxruntime"]
    assert report["streams"]
    assert report["diagnosis"]["checks"]


def test_the_module_is_the_command_line():
    command = ["topology", "--synthetic", "1:1:2:2", "--json"]
    outputs = [
        subprocess.run(
            [sys.executable, *start, *command], capture_output=True, text=True, check=True
        ).stdout
        for start in (["-m", "deepsched"], ["-c", "from deepsched.cli import main; main()"])
    ]
    assert outputs[0] == outputs[1] != ""


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
    assert result.seconds == pytest.approx(0.05, rel=0.2)  # from the first answer to the last
    with pytest.raises(ZeroDivisionError):
        measure(lambda x: 1 // x, 0, callers=2, seconds=5)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_the_terminal_and_loses_no_word(command, capsys, monkeypatch):
    texts = {}
    for width in (80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        with pytest.raises(SystemExit):
            main([command, "-h"])
        texts[width] = capsys.readouterr().out
    too_wide = [line for line in texts[80].splitlines() if len(line) > 80]
    assert all(line.startswith("  deepsched ") for line in too_wide)  # examples are to be copied
    # argparse wraps the help of options at hyphens.
    words = {width: texts[width].partition("exit codes")[2].split() for width in texts}
    assert words[80] == words[200]
    assert "exit codes:\n  0    " in texts[80]


def test_definitions_go_on_below_their_meaning():
    formatter = HelpFormatter("prog", width=40)
    text = (
        "Words before that, long enough.\n\n  name   unit  a meaning that is too long for it\n"
        + (
            " " * 15
            + "and its end\n  b      s     short\n\n  deepsched x --y z that is left as it is\n"
        )
    )
    assert formatter._fill_text(text, 40, "") == (
        "Words before that, long enough.\n\n"
        "  name   unit  a meaning that is too\n"
        "               long for it and its end\n"
        "  b      s     short\n\n"
        "  deepsched x --y z that is left as it is"
    )
