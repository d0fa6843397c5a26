"""models.yaml and the command line: what is read, and what is said of mistakes."""

from __future__ import annotations

from itertools import pairwise

import pytest

from deepsched.errors import ModelNotFoundError, OptionError
from deepsched.server.assembly import assemble
from tests.support.serving import plus, save

pytestmark = pytest.mark.server


ALIASES = "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 8)}]\n" for old, new in pairwise("abcdefgh")
)


def written(folder, text):
    path = folder / "models.yaml"
    path.write_text(text)
    return str(path)


def test_a_file_gives_settings_models_and_their_options(tmp_path):
    save(plus(1), tmp_path / "a", "one.onnx")
    save(plus(2), tmp_path / "a", "two.onnx")
    save(plus(3), tmp_path / "b" / "7")
    config = written(
        tmp_path,
        """
        port: 9000
        lame_duck: 0.5
        scheduler: multi_stream
        num_streams: 2
        queue_capacity: 64
        rewrites: exact
        models:
          simple: a/one.onnx
          two:
            versions: {1: a/one.onnx, 2: a/two.onnx}
            version_policy: all
            rewrites: none
            max_batch_size: 8
            timeout: 0.25
          folder: {path: b}
        """,
    )
    assembly = assemble([], config, {"port": 9001})
    assert (assembly.settings.port, assembly.settings.lame_duck) == (9001, 0.5)
    assert assembly.streams == {
        "scheduler": "multi_stream",
        "num_streams": 2,
        "queue_capacity": 64,
    }
    assert assembly.engine == {"rewrites": "exact"}
    assert assembly.sources.names() == ["simple", "two", "folder"]
    two = assembly.sources.find("two")
    assert two.wanted() == ["1", "2"]
    assert two.options.engine == {"rewrites": "none"}
    assert (two.options.max_batch_size, two.options.limits.timeout) == (8, 0.25)
    assert assembly.sources.find("folder").wanted() == ["7"]
    assert assembly.sources.find("simple").versions["1"] == str(tmp_path / "a" / "one.onnx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {a: b.onnx", r"models\.yaml, line 1: "),
        ("- a", "expected a mapping"),
        ("\nprot: 80", r"line 2: unknown option 'prot'; did you mean 'port'"),
        ("port: many", r"line 1: port must be int, got 'many'"),
        ("\nport: 99999", r"line 2: port must be .*65535.*, got 99999"),
        ("lame_duck: -1", r"line 1: lame_duck must be .*>= 0.*, got -1"),
        ("grace: .inf", r"line 1: grace must be .*<= 1000000.*, got inf"),
        ("keep_alive: .nan", r"line 1: keep_alive must be .*, got nan"),
        ("header_timeout: 0", r"line 1: header_timeout must be .*> 0.*, got 0"),
        ("max_body_bytes: 4294967296", r"line 1: max_body_bytes must be .*<= 2147483647, got 42"),
        ("max_connections: 0", r"line 1: max_connections must be .*>= 1, got 0"),
        ("models:\n  a: {path: x, timeout: .inf}", r"line 2: timeout must be .*, got inf"),
        ("models:\n  a: {pth: x}", r"line 2: unknown option 'pth'; did you mean 'path'"),
        ("models:\n  a: {rewrites: none}", "line 2: model 'a' needs either path or versions"),
        ("models:\n  a:\n    path: 3", "line 3: path must be str, got 3"),
        (
            "models:\n  a:\n    path: x\n    version_policy: newest",
            "line 4: version_policy is not possible: .*'newest'",
        ),
        ("models:\n  a/b: x", "line 2: 'a/b' cannot be a model's name: it has a slash"),
        ("models:\n  7: x", "line 2: 7 cannot be a model's name: it is no text"),
        ("models:\n  a: x\n  a: y", "line 3: 'a' is there twice"),
        ("models: [a]", "line 1: models must be a mapping"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: " + "[" * 9000, "nested too deeply"),
        ("a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n" + ALIASES, "at most 100000 values"),
        ("? [a, b]\n: c", "line 1: a key must be one word"),
        ("a: \x0b", "special characters are not allowed"),
        ("a: 2001-99-99", "a value is not of its type: .*month must be in"),
        ("a: !!bool b", "a value is not of its type: .*'b'"),
        ("models:\n  a:\n    versions: {0: x}", r"line 3: versions must be int >= 1"),
    ],
)
def test_a_mistake_in_the_file_names_its_line(tmp_path, text, message):
    save(plus(1), tmp_path, "m.onnx")
    with pytest.raises(OptionError, match=message):
        assemble([str(tmp_path / "m.onnx")], written(tmp_path, text), {})


def test_models_of_the_command_line_have_the_names_of_their_files_or_given_ones(tmp_path):
    save(plus(1), tmp_path / "a", "net.v2.onnx")
    save(plus(2), tmp_path / "b" / "3")
    save(plus(3), tmp_path / "repository" / "c" / "1")
    assembly = assemble(
        [
            str(tmp_path / "a" / "net.v2.onnx"),
            f"other={tmp_path / 'a' / 'net.v2.onnx'}",
            f"versions={tmp_path / 'b'}",
            str(tmp_path / "repository"),
        ],
        None,
        {},
    )
    assert assembly.sources.names() == ["net.v2", "other", "versions", "c"]
    assert assembly.sources.find("versions").wanted() == ["3"]


@pytest.mark.parametrize(
    ("models", "error", "message"),
    [
        ([], OptionError, "no model to serve"),
        (["missing.onnx"], ModelNotFoundError, "there is no missing.onnx"),
        (["a=missing"], ModelNotFoundError, "there is no missing"),
        (["m.onnx", "m.onnx"], OptionError, "two models are named 'm'"),
        (["../m=m.onnx"], OptionError, "'../m' cannot be a model's name"),
        (["m.onnx", "."], OptionError, "two models are named 'm'"),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path, monkeypatch, models, error, message):
    monkeypatch.chdir(tmp_path)
    save(plus(1), tmp_path, "m.onnx")
    with pytest.raises(error, match=message):
        assemble(models, None, {})


def test_instance_groups_on_cpus_set_the_streams_unless_the_user_does(tmp_path):
    save(plus(1), tmp_path / "m" / "1")
    (tmp_path / "m" / "config.pbtxt").write_text("instance_group { count: 2 kind: KIND_CPU }")
    streams = assemble([str(tmp_path)], None, {}).streams
    assert streams["scheduler"] == "multi_stream"
    assert 1 <= streams["num_streams"] <= 2
    assert assemble([str(tmp_path)], None, {"scheduler": "elastic"}).streams == {
        "scheduler": "elastic"
    }
