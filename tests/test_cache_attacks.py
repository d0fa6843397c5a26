"""The cache deletes what is its own, and believes nobody else; the attacks themselves."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from deepsched import Engine
from deepsched.cli import main
from deepsched.models import compiled
from deepsched.models.cache import Cache
from deepsched.models.tag import TAG
from tests.support import models
from tests.support.contexts import two_sessions
from tests.support.models import gemm
from tests.support.plain_onnxruntime import assert_equals_plain
from tests.support.users import OTHER, attacking, exchange, give_to, needs_root, public

__all__ = ["public"]  # a fixture

KEY = "0123456789abcdef" * 2


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSCHED_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def compile_into(folder, seed=0):
    """The folder of the entry."""
    with Engine(gemm(seed), None, cache_dir=folder) as engine:
        return Path(engine.compiled.folder)


def assert_served_from_memory(folder, caplog):
    """With one warning, which is returned, and right outputs."""
    caplog.clear()
    with (
        caplog.at_level(logging.WARNING, "deepsched"),
        Engine(gemm(), None, cache_dir=folder) as engine,
    ):
        assert engine.compiled.is_shared and engine.compiled.folder is None
        assert_equals_plain(engine, gemm())
    (message,) = caplog.messages
    return message


# --- It touches nothing but its own -------------------------------------------------------------


@pytest.fixture
def repository(cache_dir):
    """A model repository, where somebody's cache_dir points by mistake."""
    files = [cache_dir / "v1" / name / "model.onnx" for name in ("bert", "resnet", KEY)]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("the only copy")
    yield cache_dir
    assert all(file.read_text() == "the only copy" for file in files)


def test_a_folder_that_holds_other_things_is_refused(repository, capsys, caplog):
    message = assert_served_from_memory(repository, caplog)
    assert "'bert', 'resnet'" in message and "folder of its own" in message
    for command in ("list", "clear"):
        assert main(["cache", command]) == 2
        assert "holds" in capsys.readouterr().err


def test_foreign_things_in_a_marked_folder_stay(repository, monkeypatch):
    outside = repository.with_name("outside")
    (outside / "folder").mkdir(parents=True)
    (outside / "file").touch()
    folder = repository / "v1"
    shutil.move(folder, repository / "aside")
    Cache(repository)  # marks it
    shutil.copytree(repository / "aside", folder, dirs_exist_ok=True)
    (folder / "file").touch()
    (folder / ("f" * 32)).touch()
    (folder / ("e" * 32)).symlink_to(outside / "folder")
    (folder / f".staging-{'a' * 16}").symlink_to(outside / "folder")
    (folder / "measured").symlink_to(outside)
    (folder / "external").mkdir()
    (folder / "external" / "notes.json").touch()
    before = sorted(path for path in (*folder.rglob("*"), *outside.rglob("*")))
    monkeypatch.setenv("DEEPSCHED_CACHE_BYTES", "1")
    for seed in range(3):  # each evicts the one before
        compile_into(repository, seed)
    assert [item.kind for item in Cache(repository).list()] == ["model"]
    assert Cache(repository).clear() == 1
    assert sorted(path for path in (*folder.rglob("*"), *outside.rglob("*"))) == before


def test_a_file_in_an_entry_that_is_not_ours_keeps_it(cache_dir):
    folder = compile_into(cache_dir)
    (folder / "notes.txt").touch()
    assert Cache(cache_dir).clear() == 0
    assert (folder / "notes.txt").exists() and (folder / "model.onnx").exists()


def test_a_folder_that_only_looks_like_an_entry_stays(cache_dir):
    folder = Cache(cache_dir).folder / KEY
    (folder / "weights").mkdir(parents=True)
    (folder / "about.json").write_text("{}")
    cache = Cache(cache_dir)
    assert cache.list() == [] and cache.clear() == 0
    assert sorted(os.listdir(folder)) == ["about.json", "weights"]
    (folder / "weights").rmdir()
    assert cache.clear() == 0  # its checksum is not ours


def test_a_folder_of_an_older_version_is_taken_over(cache_dir):
    entry = compile_into(cache_dir)
    folder = entry.parent
    (folder / TAG).unlink()
    for name in ("external", "measured", f".staging-{'a' * 8}"):
        (folder / name).mkdir(exist_ok=True)
    (folder / f".advice-{'b' * 32}.json").touch()
    with Engine(gemm(), None, cache_dir=cache_dir) as engine:
        assert engine.compiled.was_cached
    text = (folder / TAG).read_text()
    assert text.startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    (folder / TAG).write_text(text.replace("deepsched", "another program"))
    (folder / "target").mkdir()
    with pytest.raises(FileExistsError):
        Cache(cache_dir)


def test_what_replaces_an_open_cache_is_not_touched(cache_dir):
    for seed in range(2):
        compile_into(cache_dir, seed)
    cache = Cache(cache_dir)
    shutil.copytree(cache_dir / "v1", cache_dir / "theirs")
    exchange(cache_dir / "v1", cache_dir / "theirs")
    assert len(cache.list()) == 2 and cache.clear() == 2
    assert len(Cache(cache_dir).list()) == 2
    assert os.listdir(cache_dir / "theirs") == [TAG]


# --- Others cannot give it anything ---------------------------------------------------------------


@needs_root
def test_an_exchanged_folder_serves_nobody_elses_model(public):
    cache_dir, evil = public / "cache", public / "evil"
    good = compile_into(cache_dir)
    bad = compile_into(evil, seed=1)
    bad.rename(bad.with_name(good.name))
    cache_dir.chmod(0o777)
    shutil.move(evil / "v1", cache_dir / "evil")
    give_to(cache_dir / "evil")
    with attacking(lambda: exchange(cache_dir / "v1", cache_dir / "evil")):
        for _ in range(30):
            with Engine(gemm(), None, cache_dir=cache_dir) as engine:
                assert_equals_plain(engine, gemm())
                assert engine.compiled.folder is None


@needs_root
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_no_ancestor_can_be_exchanged(public, depth, caplog):
    """`depth`: how far above the cache the folder is that others may write to."""
    cache_dir = public / "a" / "b"
    compile_into(cache_dir)
    folder = [cache_dir, cache_dir.parent, public][depth]
    folder.chmod(0o777)
    assert f"others may write to {folder}; chmod go-w" in assert_served_from_memory(
        cache_dir, caplog
    )


@pytest.mark.parametrize(
    ("members", "primary", "is_refused"),
    [
        ([], ["me"], False),
        (["me"], [], False),
        (["me", "eve"], [], True),
        ([], ["me", "eve"], True),
    ],
)
def test_a_folder_may_be_writable_for_a_group_of_one(
    cache_dir, monkeypatch, members, primary, is_refused
):
    """As umask 002 makes folders where each user has such a group."""
    uids = {"me": os.geteuid(), "eve": OTHER}
    users = {
        name: SimpleNamespace(pw_uid=uid, pw_gid=7 if name in primary else 8)
        for name, uid in uids.items()
    }
    monkeypatch.setattr("pwd.getpwall", lambda: list(users.values()))
    monkeypatch.setattr("pwd.getpwnam", users.__getitem__)
    monkeypatch.setattr("grp.getgrgid", lambda gid: SimpleNamespace(gr_mem=members))
    monkeypatch.setattr("os.fstat", with_gid(os.fstat, 7))
    cache_dir.mkdir()
    cache_dir.chmod(0o775)
    if is_refused:
        with pytest.raises(PermissionError, match="others may write"):
            Cache(cache_dir)
    else:
        assert Cache(cache_dir).list() == []


def with_gid(fstat, gid):
    def changed(fd):
        found = fstat(fd)
        return os.stat_result([*found[:5], gid, *found[6:]])

    return changed


@needs_root
def test_a_folder_of_ours_in_a_sticky_one_is_safe(public, caplog):
    public.chmod(0o1777)
    entry = compile_into(public / "ours")
    assert entry.parent.stat().st_mode & 0o777 == 0o700
    theirs = public / "theirs"
    compile_into(theirs)
    os.chown(theirs, OTHER, OTHER)
    assert "another user" in assert_served_from_memory(theirs, caplog)


@needs_root
def test_another_users_link_is_not_followed(public, capsys, monkeypatch, caplog):
    public.chmod(0o1777)
    ours = public / "ours"
    compile_into(ours)
    link = public / "link"
    link.symlink_to(ours)
    os.lchown(link, OTHER, OTHER)
    assert f"{link} belongs to another user" in assert_served_from_memory(link, caplog)
    monkeypatch.setenv("DEEPSCHED_CACHE_DIR", str(link))
    assert main(["cache", "clear"]) == 2
    assert len(Cache(ours).list()) == 1
    os.lchown(link, 0, 0)  # our own is
    with Engine(gemm(), None, cache_dir=link) as engine:
        assert engine.compiled.was_cached


def test_a_link_in_place_of_v1_is_refused(tmp_path, cache_dir, monkeypatch, caplog):
    target = compile_into(tmp_path / "target").parent
    cache_dir.mkdir()
    (cache_dir / "v1").symlink_to(target)
    assert f"'{cache_dir / 'v1'}'" in assert_served_from_memory(cache_dir, caplog)
    assert main(["cache", "clear"]) == 2
    assert len(Cache(tmp_path / "target").list()) == 1


def give_away(path):
    os.chown(path, OTHER, -1)


def open_to_all(path):
    path.chmod(0o777)


@needs_root
@pytest.mark.parametrize("change", [give_away, open_to_all])
@pytest.mark.parametrize("what", ["", "about.json", "model.onnx", "weights"])
def test_what_another_user_may_change_is_not_opened(cache_dir, what, change):
    change(compile_into(cache_dir) / what)
    with Engine(gemm(), None, cache_dir=cache_dir) as engine:
        assert not engine.compiled.was_cached
        assert_equals_plain(engine, gemm())


def test_a_link_in_an_entry_is_not_followed(tmp_path, cache_dir):
    entry = compile_into(cache_dir)
    (entry / "weights").rename(tmp_path / "weights")
    (entry / "weights").symlink_to(tmp_path / "weights")
    with Engine(gemm(), None, cache_dir=cache_dir) as engine:
        assert not engine.compiled.was_cached
        assert_equals_plain(engine, gemm())
    assert (tmp_path / "weights").exists()


def test_folders_are_made_for_this_user_alone(tmp_path):
    old = os.umask(0)
    try:
        compile_into(tmp_path / "a" / "b")
    finally:
        os.umask(old)
    for folder in ("a", "a/b", "a/b/v1"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700


@needs_root
def test_temporary_files_are_not_where_others_could_change_them(public, monkeypatch):
    monkeypatch.setattr("deepsched.models.locations.SHARED_MEMORY", public)
    monkeypatch.setattr("tempfile.tempdir", str(public))
    model = models.save(gemm(), public)
    public.chmod(0o777)
    with two_sessions() as context:
        engine = Engine(model, None, context=context, cache_dir=None)
        assert not engine.compiled.is_shared and "others may write" in engine.compiled.why_not
    public.chmod(0o1777)  # as /tmp and /dev/shm are
    with two_sessions() as context:
        engine = Engine(model, None, context=context, cache_dir=None)
        assert engine.compiled.is_shared


# --- A model that changes while it is compiled ------------------------------------------------


def save(seed, path):
    """Replaces the file by one rename."""
    onnx.save(gemm(seed), path.with_name("new"))
    os.replace(path.with_name("new"), path)


def save_weights(seed, path):
    """The model with external data; `path` stays as it is, byte for byte."""
    folder = path.with_name(f"seed{seed}")
    folder.mkdir(exist_ok=True)
    (folder / "weights.bin").unlink(missing_ok=True)  # onnx appends to it
    onnx.save(
        gemm(seed),
        folder / path.name,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    if not path.exists():
        shutil.copy(folder / path.name, path)
    assert path.read_bytes() == (folder / path.name).read_bytes()
    os.replace(folder / "weights.bin", path.with_name("weights.bin"))


def injected(monkeypatch, name, before=None, after=None):
    """Calls `before` and `after` the first call of a function of `compiled`."""
    original = getattr(compiled, name)
    hooks = {"before": before, "after": after}

    def wrapper(*args, **options):
        if hook := hooks.pop("before", None):
            hook()
        result = original(*args, **options)
        if hook := hooks.pop("after", None):
            hook()
        return result

    monkeypatch.setattr(compiled, name, wrapper)


@pytest.mark.parametrize("name", ["prepare_model", "_compile"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("save", [save, save_weights])
def test_a_replaced_model_is_not_kept_under_anothers_key(
    tmp_path, cache_dir, monkeypatch, name, when, save
):
    path = tmp_path / "model.onnx"
    save(0, path)
    with monkeypatch.context() as patch:
        injected(patch, name, **{when: lambda: save(1, path)})
        with Engine(path, None, cache_dir=cache_dir) as engine:
            assert_equals_plain(engine, str(path))
            assert engine.compiled.folder is not None  # tried again
    for seed in (0, 1, 0):
        save(seed, path)
        with Engine(path, None, cache_dir=cache_dir) as engine:
            assert_equals_plain(engine, str(path))


def test_a_model_that_is_put_back_after_the_compile_is_noticed(tmp_path, cache_dir, monkeypatch):
    path, aside = tmp_path / "model.onnx", tmp_path / "aside"
    save(0, path)

    def swap():
        path.rename(aside)
        save(1, path)

    with monkeypatch.context() as patch:
        injected(patch, "_compile", before=swap, after=lambda: aside.replace(path))
        with Engine(path, None, cache_dir=cache_dir) as engine:
            assert_equals_plain(engine, str(path))
    with Engine(path, None, cache_dir=cache_dir) as engine:
        assert_equals_plain(engine, str(path))


def test_a_model_that_never_rests_is_served_uncached(tmp_path, cache_dir, monkeypatch, caplog):
    path = tmp_path / "model.onnx"
    save(0, path)
    num_tries = 0
    original = compiled.prepare_model

    def changing(*args, **options):
        nonlocal num_tries
        num_tries += 1
        save(num_tries, path)
        return original(*args, **options)

    monkeypatch.setattr(compiled, "prepare_model", changing)
    with (
        caplog.at_level(logging.WARNING, "deepsched"),
        Engine(path, None, cache_dir=cache_dir, batching="off") as engine,
    ):
        assert_equals_plain(engine, str(path))
        assert "changed while it was compiled, 3 times" in engine.compiled.why_not
    assert num_tries == 4  # the last one for the form in memory
    assert len(caplog.messages) == 1
    assert Cache(cache_dir).list() == []


@pytest.mark.field
@pytest.mark.parametrize("save", [save, save_weights])
def test_replacements_in_a_loop_leave_right_entries(tmp_path, cache_dir, save):
    path = tmp_path / "model.onnx"
    save(0, path)

    def replace():
        for seed in (1, 0):
            save(seed, path)

    with attacking(replace, uid=None):
        for _ in range(20):
            with Engine(path, None, cache_dir=cache_dir):
                pass
    for seed in (0, 1):
        save(seed, path)
        with Engine(path, None, cache_dir=cache_dir) as engine:
            assert_equals_plain(engine, str(path))
