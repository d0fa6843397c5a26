"""A folder in Triton's layout, and what its config.pbtxt says."""

from __future__ import annotations

import logging
import os

import pytest

from deepsched.errors import (
    InvalidModelError,
    ModelError,
    ModelNotFoundError,
    OptionError,
    UnsupportedModelError,
)
from deepsched.server.repository.folder import Folder
from deepsched.server.repository.model_options import DeclaredTensor, VersionPolicy
from tests.support.serving import plus, save

pytestmark = pytest.mark.server


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def configured(root, text, name="m"):
    save(plus(1), root / name / "1")
    (root / name / "config.pbtxt").write_text(text)
    return Folder(str(root)).find(name).options


def test_models_and_their_versions_are_found(root):
    for version in ("1", "2", "10"):
        save(plus(1), root / "many" / version)
    save(plus(1), root / "flat", "weights.onnx")
    save(plus(1), root, "single.onnx")
    (root / "many" / "notes").mkdir()
    (root / "many" / "03").mkdir()
    (root / "many" / "4").mkdir()  # no model in it yet
    (root / ".git").mkdir()
    folder = Folder(str(root))
    assert folder.names() == ["flat", "many", "single"]
    many = folder.find("many")
    assert sorted(many.versions, key=int) == ["1", "2", "10"]
    assert many.wanted() == ["10"]
    assert folder.find("flat").versions == {"1": str(root / "flat" / "weights.onnx")}
    assert folder.find("single").versions == {"1": str(root / "single.onnx")}


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "../secret", "/etc", "a/../../secret", "m\0", "sub/m", "%2e%2e", "．．", "M"],
)
def test_a_name_is_looked_up_and_never_a_path(root, name):
    save(plus(1), root / "m" / "1")
    save(plus(1), root.parent / "secret" / "1")
    assert Folder(str(root)).find(name) is None


@pytest.mark.parametrize("what", ["model", "version", "file", "config", "single"])
def test_links_out_of_the_folder_are_refused(root, tmp_path, what):
    secret = tmp_path / "secret"
    save(plus(1), secret / "1")
    save(plus(1), root / "m" / "1")
    (secret / "config.pbtxt").write_text("")
    link, target = {
        "model": (root / "n", secret),
        "version": (root / "m" / "2", secret / "1"),
        "file": (root / "m" / "2" / "model.onnx", secret / "1" / "model.onnx"),
        "config": (root / "m" / "config.pbtxt", secret / "config.pbtxt"),
        "single": (root / "n.onnx", secret / "1" / "model.onnx"),
    }[what]
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target)
    with pytest.raises(InvalidModelError, match="is not in"):
        Folder(str(root)).find("n" if what in ("model", "single") else "m")


def test_links_within_the_folder_are_followed(root):
    """As Kubernetes mounts a volume: a link that is exchanged leads to the current files."""
    save(plus(1), root / "..data" / "m" / "1")
    (root / "m").symlink_to("..data/m")
    assert Folder(str(root)).find("m").wanted() == ["1"]


def test_names_that_cannot_be_asked_for_are_logged_once_and_left_out(root, caplog):
    save(plus(1), root / "good" / "1")
    os.mkdir(os.fsencode(root) + b"/\xff\xfe")
    (root / "new\nline").mkdir()
    folder = Folder(str(root))
    with caplog.at_level(logging.WARNING):
        assert folder.names() == folder.names() == ["good"]
    assert len(caplog.records) == 2


def test_a_folder_without_a_model_says_what_was_expected(root):
    (root / "m" / "1").mkdir(parents=True)
    with pytest.raises(ModelNotFoundError, match=r"expected model\.onnx in .*/m/1/model\.onnx"):
        Folder(str(root)).find("m")


def test_a_configuration_is_read(root):
    for version in ("1", "3"):
        save(plus(1), root / "m" / version, "net.onnx")
    (root / "m" / "names.txt").write_text("cat\ndog\n")
    text = """
        name: "m"  platform: "onnxruntime_onnx"  default_model_filename: "net.onnx"
        max_batch_size: 8
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "names.txt" } ]
        version_policy { all { } }
        instance_group [ { count: 2 kind: KIND_CPU }, { count: 4 kind: KIND_GPU gpus: [ 0 ] } ]
        dynamic_batching {
          priority_levels: 2  default_priority_level: 2  preferred_batch_size: [ 4 ]
          default_queue_policy { default_timeout_microseconds: 250000 }
        }
        parameters { key: "rewrites" value { string_value: "exact" } }
        parameters { key: "shrink_memory" value { string_value: "true" } }
        parameters { key: "cache_dir" value { string_value: "/etc" } }
        parameters { key: "intra_op_thread_count" value { string_value: "4" } }
        optimization { graph { level: 1 } }
        model_warmup { name: "w" batch_size: 2
          inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ] zero_data: true } } }
    """
    options = configured(root, text)
    assert options.engine == {"rewrites": "exact", "shrink_memory": True}
    assert options.version_policy == VersionPolicy(latest=None)
    assert (options.max_batch_size, options.num_instances) == (8, 2)
    assert options.inputs == (DeclaredTensor("x", "FP32", (-1, 4)),)
    assert options.labels == {"y": ("cat", "dog")}
    limits = options.limits
    assert (limits.timeout, limits.may_override) == (0.25, False)
    assert [limits.engine_priority({"priority": level}) for level in (0, 1, 2)] == [0, 1, 0]
    assert options.warm_ups[0].inputs[0].shape == (2, 4)
    assert set(options.unread) == {
        "optimization",
        "instance_group.gpus",
        "dynamic_batching.preferred_batch_size",
        "parameters['cache_dir']",
        "parameters['intra_op_thread_count']",
    }
    assert Folder(str(root)).find("m").wanted() == ["1", "3"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("max_batch_size: eight", OptionError, r"config\.pbtxt: 1:17 : .*eight"),
        ("\n\nno_such_field: 1", OptionError, r"config\.pbtxt: 3:1 : .*no_such_field"),
        (f"instance_group {{ kind: {5 * 10**25} }}", OptionError, r"config\.pbtxt: .*out of range"),
        ('name: "other"', OptionError, "name is 'other', but the folder is 'm'"),
        ("max_batch_size: -1", OptionError, "max_batch_size must be at least 0, got -1"),
        ('backend: "python"', UnsupportedModelError, "runs ONNX models.*'python'"),
        ('platform: "ensemble" ensemble_scheduling { }', UnsupportedModelError, "ensemble"),
        ("sequence_batching { }", UnsupportedModelError, "sequence_batching is not served"),
        ("version_policy { latest { num_versions: 0 } }", OptionError, "at least 1"),
        ('default_model_filename: "../../x.onnx"', OptionError, "must be a name"),
        (
            'output { name: "y" label_filename: "../../../etc/passwd" }',
            InvalidModelError,
            "is not in",
        ),
        ('output { name: "y" label_filename: "1" }', OptionError, "labels in .* cannot be read"),
        ('output { name: "y" label_filename: "a\\000b" }', ModelError, "no name has a NUL"),
        ('model_operations { op_library_filename: "/lib/x.so" }', ModelError, "/lib/x.so"),
        (
            'model_warmup { inputs { key: "x" value { input_data_file: "../../x" } } }',
            ModelError,
            "x",
        ),
    ],
)
def test_a_wrong_configuration_names_its_file_and_field(root, text, error, message):
    with pytest.raises(error, match=message):
        configured(root, text)
