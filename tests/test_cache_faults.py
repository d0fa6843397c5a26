"""The cache when something fails: short memory, killed processes, images, network file systems."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from deepsched import Context, Engine, Topology
from deepsched.advice import advise
from deepsched.cli import main
from deepsched.errors import ModelError, ThreadError
from deepsched.models import keys
from deepsched.models.cache import Cache
from deepsched.models.keys import RawModel
from deepsched.models.locations import default_folder
from deepsched.models.prepare import prepare_model
from deepsched.models.rewrites.catalog import RULES, rewrite
from deepsched.models.tag import TAG
from deepsched.scheduling.placement import Placement
from tests.support import models, rewrite_patterns
from tests.support.contexts import two_sessions
from tests.support.models import gemm
from tests.support.plain_onnxruntime import assert_equals_plain
from tests.support.processes import finish, run_python, start_python
from tests.support.users import needs_root


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSCHED_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, and /dev/shm; of processes that are started, the former."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("deepsched.models.locations.SHARED_MEMORY", folder)
    return folder


def compile_into(folder, seed=0):
    """The folder of the entry."""
    with Engine(gemm(seed), None, cache_dir=folder) as engine:
        return Path(engine.compiled.folder)


# --- One process's shortage ---------------------------------------------------------------------


def failing(monkeypatch, error, is_hit=lambda source: source.is_optimized):
    original = Placement.open_session

    def open_session(self, source, stream, save_to, **options):
        if is_hit(source):
            raise error
        return original(self, source, stream, save_to, **options)

    monkeypatch.setattr(Placement, "open_session", open_session)


@pytest.mark.parametrize("error", [ModelError("no memory"), ThreadError("no more threads")])
@pytest.mark.parametrize("hits", ["compiled forms", "all"])
def test_a_good_entry_survives_a_shortage(cache_dir, monkeypatch, error, hits):
    entry = compile_into(cache_dir)
    inode = entry.stat().st_ino
    with monkeypatch.context() as patch:
        failing(patch, error, lambda source: source.is_optimized or hits == "all")
        if hits == "all" or isinstance(error, ThreadError):
            with pytest.raises(type(error), match=str(error)):
                Engine(gemm(), None, cache_dir=cache_dir)
        else:
            with Engine(gemm(), None, cache_dir=cache_dir) as engine:
                assert_equals_plain(engine, gemm())
    with Engine(gemm(), None, cache_dir=cache_dir) as engine:
        assert engine.compiled.was_cached and entry.stat().st_ino == inode


def test_an_entry_is_replaced_once_a_fresh_compile_opens(cache_dir, caplog):
    entry = compile_into(cache_dir)
    cache = Cache(cache_dir)
    cache.clear()
    with cache.stage() as broken:  # its checksums are right
        broken.model.write_bytes(b"no model")
        broken.about = {"model": "m", "batch_size": None, "changed_fixed_sizes": False}
        broken.seal()
        cache.publish(broken, entry.name)
    broken.close()
    for was_cached in (False, True):
        with Engine(gemm(), None, cache_dir=cache_dir) as engine:
            assert engine.compiled.was_cached is was_cached
            assert engine.compiled.folder == str(entry)
            assert_equals_plain(engine, gemm())
    (message,) = caplog.messages
    assert "compiled again" in message


# --- Keys -----------------------------------------------------------------------------------------


def key_of(model=None, options=None):
    return raw_of(model or gemm(), None, None, options or {}).checksum


def raw_of(*arguments):
    return RawModel.of(*arguments, Cache(default_folder()))


def test_the_key_covers_how_a_model_is_compiled(monkeypatch):
    first = key_of()
    assert key_of() == first != key_of(options={"optimizes": False})
    four = raw_of(gemm(), np.int64(4), [[np.int32(4), 256]], {})
    assert four is not None and four == raw_of(gemm(), 4, [[4, 256]], {})
    monkeypatch.setattr(keys, "PREPARATION_VERSION", keys.PREPARATION_VERSION + 1)
    assert key_of() != first


def test_what_is_prepared_is_what_the_version_says():
    """After a change here, raise PREPARATION_VERSION: old entries hold what it was before."""
    found = [
        prepare_model(model.SerializeToString(deterministic=True), batch_size, shapes).source
        for model, batch_size, shapes in (
            (models.identity(), None, None),
            (models.identity(), 4, None),
            (models.identity((3, "n")), 2, [[2, 5]]),
            (models.add_two_inputs(), "auto", None),
            (gemm(size=2, ir_version=3, also_inputs=("w", "b")), 1, None),
        )
    ]
    for make_pattern in rewrite_patterns.EXAMPLES:
        pattern, _ = make_pattern()
        model = pattern.model()
        config = rewrite(model, RULES).config
        found += [model.SerializeToString(deterministic=True), str(config).encode()]
    digest = hashlib.sha256(b"".join(found)).hexdigest()[:16]
    assert (keys.PREPARATION_VERSION, digest) == (7, "4ce7a4c861cd9a60")


def test_run_lengths_hold_on_other_cpus_of_the_same_shape(cache_dir, quiet):
    machine = Topology.synthetic(packages=2, cores_per_l3=2)
    first, second = (Topology(cores) for cores in (machine.cores[:2], machine.cores[2:]))
    for topology in (first, second, machine):
        with Context(topology=topology, num_streams=2, scheduler="elastic", pin="none") as context:
            Engine(gemm(), None, context=context, cache_dir=cache_dir)
        num_kept = len(os.listdir(cache_dir / "v1" / "measured"))
        assert num_kept == (2 if topology is machine else 1)


def test_advice_holds_in_another_cpuset_of_the_same_shape(cache_dir, tmp_path, monkeypatch, quiet):
    path = models.save(models.mlp(), tmp_path)
    machine = Topology.synthetic(packages=2, cores_per_l3=1)
    for core in machine.cores:
        topology = SimpleNamespace(detect=lambda core=core: Topology((core,)))
        monkeypatch.setattr("deepsched.advice.answer_cache.Topology", topology)
        found = advise(path, seconds=0.2, num_cores=1)
        assert found.was_remembered is (core is machine.cores[1])


# --- What killed processes leave ------------------------------------------------------------------

HOLD = """
    import os, signal
    from pathlib import Path
    from deepsched import Engine
    from deepsched.analysis import analyze, profiling
    from deepsched.models import compiled, records
    from tests.support.contexts import two_sessions
    from tests.support.models import gemm, save
    model = save(gemm(), Path(os.environ["TMPDIR"]))
    def hold(*args, **kwargs):
        print("there", flush=True)
        while True:
            signal.pause()
"""

LEAVES = {
    "a compile in memory": """
        compiled._open_compiled = hold
        Engine(model, None, context=two_sessions(), cache_dir=None)
    """,
    "a compile": """
        compiled._open_compiled = hold
        Engine(model, None)
    """,
    "a profile": """
        profiling._repeat = hold
        target = profiling.ProfilingTarget(model, None, None, None, None, True)
        profiling.profile(target, 1, profiling.RunBudget(1, 1, 1, 0.0))
    """,
    "an analysis": """
        profiling._repeat = hold
        analyze(model, None, cache_dir=None)
    """,
    "a record": """
        records.os.rename = hold
        from deepsched.models.cache import Cache
        from deepsched.models.locations import default_folder
        Cache(default_folder()).remember_measurement("a" * 32, "advice", "m", None, 0.0, 1)
    """,
}


def left(cache_dir, temporary):
    """Files and folders that are there only while something works."""
    return [
        *temporary.glob("deepsched-*"),
        *cache_dir.rglob(".staging-*"),
        *cache_dir.rglob(".tmp-*"),
    ]


@pytest.mark.parametrize(
    ("what", "sweeper"),
    [
        *((what, "start") for what in LEAVES),
        *(
            pytest.param(what, "clear", marks=[] if what == "a compile" else [pytest.mark.field])
            for what in LEAVES
        ),
    ],
)
def test_a_killed_process_leaves_nothing_for_long(cache_dir, temporary, what, sweeper):
    code = textwrap.dedent(HOLD) + textwrap.dedent(LEAVES[what])
    in_temporary = "import deepsched.models.locations as l; from pathlib import Path\n" + (
        f"l.SHARED_MEMORY = Path({str(temporary)!r})\n"
    )
    sweep = {
        "start": "from deepsched import Engine; from tests.support.models import identity, save\n"
        "import tempfile; Engine(save(identity(), Path(tempfile.gettempdir()))).close()",
        "clear": "from deepsched.cli import main; main(['cache', 'clear'])",
    }[sweeper]
    process = start_python(in_temporary + code)
    try:
        assert process.stdout.readline() == "there\n"
        there = set(left(cache_dir, temporary))
        run_python(in_temporary + sweep)
        # It lives. What it has done with already, and not yet removed, may go.
        assert left(cache_dir, temporary) and set(left(cache_dir, temporary)) <= there
    finally:
        process.kill()
        finish(process)
    run_python(in_temporary + sweep)
    assert left(cache_dir, temporary) == []


def test_only_what_is_marked_is_swept_from_the_temporary_folder(cache_dir, temporary, capsys):
    uid = os.geteuid()
    theirs = [f"deepsched-{uid}-results", f"deepsched-{uid}-{'a' * 16}", f"deepsched-{uid + 1}-b"]
    for name in theirs:
        (temporary / name).mkdir()
        (temporary / name / "thesis.tex").touch()
    old, marked = (temporary / f"deepsched-{uid}-{name}" for name in ("b" * 8, "c" * 16))
    old.mkdir()
    (old / "weights").touch()  # as versions before left them
    compile_into(cache_dir)
    marked.mkdir()
    shutil.copy(cache_dir / "v1" / TAG, marked / TAG)
    (marked / "run.json").touch()
    assert main(["cache", "clear"]) == 0
    assert "2 temporary folders" in capsys.readouterr().out
    assert sorted(os.listdir(temporary)) == sorted(theirs)


# --- Entries that cannot be removed -------------------------------------------------------------


@pytest.fixture
def stuck(cache_dir, monkeypatch):
    """As in an image's layer that is read-only: nothing can be removed from the cache."""

    def refusing(function):
        def call(path, *args, **kwargs):
            fd = kwargs.get("dir_fd", kwargs.get("src_dir_fd"))
            if fd is not None and Path(os.readlink(f"/proc/self/fd/{fd}")).is_relative_to(
                cache_dir
            ):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return function(path, *args, **kwargs)

        return call

    for name in ("rename", "unlink"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


def test_a_damaged_entry_that_stays_is_told_at_each_start(cache_dir, request, caplog):
    weights = compile_into(cache_dir) / "weights"
    weights.write_bytes(weights.read_bytes()[:-1])
    request.getfixturevalue("stuck")
    for _ in range(2):
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING, "deepsched"),
            Engine(gemm(), None, cache_dir=cache_dir) as engine,
        ):
            assert_equals_plain(engine, gemm())
            assert engine.compiled.is_shared and engine.compiled.folder is None
        (message,) = caplog.messages
        assert "is damaged, and cannot be removed" in message


def test_what_cannot_be_removed_is_not_called_removed(cache_dir, request, capsys):
    compile_into(cache_dir)
    request.getfixturevalue("stuck")
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out.startswith("removed 0; 1 cannot be removed from ")


OVERLAY = """
    cd {folder}
    mkdir upper work mounted
    mount -t overlay overlay -o lowerdir=cache,upperdir=upper,workdir=work mounted || exit 77
    PYTHONPATH={root} {python} - <<'END'
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from deepsched import Engine
from deepsched.models.cache import Cache
from tests.support.contexts import two_sessions
from tests.support.models import gemm
from tests.support.plain_onnxruntime import assert_equals_plain
weights = next(Path("mounted/v1").glob("*/weights"))
try:
    os.rename(weights.parent, "mounted/v1/other")
    sys.exit(77)  # this overlayfs can
except OSError:
    pass
weights.write_bytes(weights.read_bytes()[:-1])
for was_cached in (False, True):
    with Engine(gemm(), None, cache_dir="mounted") as engine:
        assert engine.compiled.was_cached is was_cached and engine.compiled.folder
        assert_equals_plain(engine, gemm())
cache = Cache(Path("mounted"))
assert (cache.clear(), cache.list()) == (1, [])
END
"""


@needs_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare here")
def test_entries_of_an_image_are_replaced_and_removed(cache_dir):
    compile_into(cache_dir)
    code = OVERLAY.format(folder=cache_dir.parent, root=os.getcwd(), python=sys.executable)
    # overlayfs needs upperdir on a file system that is none itself: a tmpfs.
    ran = subprocess.run(
        ["unshare", "-m", "bash", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode == 77 or "unshare failed" in ran.stderr:
        pytest.skip(f"no overlayfs to try it on: {ran.stderr}")
    assert ran.returncode == 0, ran.stderr


# --- File systems of several machines -----------------------------------------------------------


@pytest.mark.parametrize(
    ("magic", "name"), [(0x6969, "NFS"), (0x65735546, "FUSE"), (0xFE534D42, "SMB")]
)
def test_a_folder_of_several_machines_is_not_used(
    cache_dir, monkeypatch, caplog, capsys, magic, name
):
    monkeypatch.setattr("deepsched.models.folders._file_system", lambda fd: magic)
    with (
        caplog.at_level(logging.WARNING, "deepsched"),
        two_sessions() as context,
    ):
        engine = Engine(gemm(), None, context=context, cache_dir=cache_dir)
        assert_equals_plain(engine, gemm())
        assert engine.compiled.folder is None
    (message,) = caplog.messages
    assert name in message and "each stream has weights of its own" in message
    assert not (cache_dir / "v1").exists()
    assert main(["cache", "list"]) == 2
    err = capsys.readouterr().err
    assert name in err and "DEEPSCHED_CACHE_DIR" in err


def test_the_kernel_tells_the_file_system():
    from deepsched.models.folders import _file_system, open_trusted

    fd = os.open("/proc", os.O_RDONLY)
    try:
        assert _file_system(fd) == 0x9FA0  # PROC_SUPER_MAGIC
    finally:
        os.close(fd)
    with pytest.raises(FileNotFoundError):
        open_trusted(Path("/no/such/folder"))


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR])
def test_a_shortage_leaves_a_good_entry_alone(tmp_path, monkeypatch, code):
    model = models.save(models.mlp(), tmp_path)
    cache_dir = tmp_path / "cache"
    with Engine(model, cache_dir=cache_dir):
        pass
    (item,) = [it for it in Cache(cache_dir).list() if it.kind == "model"]

    def refused(self, name, *args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr("deepsched.models.folders.Folder.open_file", refused)
        with contextlib.suppress(OSError):
            Cache(cache_dir).find(item.key)
    with Engine(model, cache_dir=cache_dir) as engine:
        assert engine.compiled.was_cached


def test_external_values_of_sparse_constants_are_part_of_the_key(tmp_path):
    values = onnx.numpy_helper.from_array(np.array([7], np.float32), "v")
    indices = onnx.numpy_helper.from_array(np.array([1], np.int64), "i")
    sparse = onnx.helper.make_sparse_tensor(values, indices, [2])
    node = onnx.helper.make_node("Constant", [], ["c"], sparse_value=sparse)
    add = onnx.helper.make_node("Add", ["x", "c"], ["y"])
    model = models.make([node, add], [models.tensor("x", [2])], [models.tensor("y", [2])])
    stored = model.graph.node[0].attribute[0].sparse_tensor.values
    stored.ClearField("raw_data")
    stored.data_location = onnx.TensorProto.EXTERNAL
    entry = stored.external_data.add()
    entry.key, entry.value = "location", "../secret"
    with pytest.raises(ModelError):
        Engine(models.save(model, tmp_path), None, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("suffix", [".json", ".textproto", ".onnxtxt"])
def test_a_models_suffix_does_not_matter(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(models.mlp().SerializeToString())
    with Engine(path, cache_dir=None) as engine:
        assert len(engine.run([np.ones((1, 64), np.float32)])) == 1


FIRST_RUN = """
    import numpy as np, os, sys, tempfile
    {before}
    from deepsched import Engine
    with Engine({path!r}) as engine:
        engine.run([np.ones((1, 64), np.float32)])
    {after}
    print("fine")
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')", ""),
        (
            "def refused(): raise FileNotFoundError('no usable temporary directory')\n"
            "tempfile.gettempdir = refused",
            "",
        ),
        ("", "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"),
    ],
    ids=["no working folder", "no temporary folder", "no telemetry"],
)
def test_an_engine_starts_without(tmp_path, monkeypatch, before, after):
    folder = Path(tempfile.mkdtemp(prefix="deepsched-test-"))
    folder.chmod(0o755)
    try:
        path = models.save(models.mlp(), folder)
        monkeypatch.chdir(tmp_path)
        code = textwrap.dedent(FIRST_RUN).format(before=before, after=after, path=path)
        root = str(Path(__file__).parent.parent)
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.stdout.strip() == "fine", ran.stderr
    finally:
        shutil.rmtree(folder)


def test_a_user_without_a_home_gets_no_folder_named_tilde(tmp_path, monkeypatch, caplog):
    for name in ("HOME", "XDG_CACHE_HOME", "DEEPSCHED_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as without a passwd entry
    monkeypatch.chdir(tmp_path)
    with Engine(models.save(models.mlp(), tmp_path), None) as engine:
        assert len(engine.run([np.ones((1, 64), np.float32)])) == 1
    assert "no home folder" in caplog.text
    assert os.listdir(tmp_path) == ["model.onnx"]
