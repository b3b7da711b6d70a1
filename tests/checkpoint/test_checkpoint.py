"""Checkpoints in a folder: whole or not at all, the newest two, damaged ones passed over."""

import errno
import json
import os
import subprocess
import sys

import filelock
import numpy as np
import pytest

from nst_jax.checkpoint import store
from nst_jax.checkpoint.store import held
from nst_jax.cli.checkpoints import check_checkpoints
from nst_jax.errors import InputError

COPIES = {"checkpoint-inputs/00.png": b"an image", "checkpoint-inputs/01.jpeg": b""}


def arrays(step):
    return {
        "x": np.full((2, 2), step, np.float32),
        "count": np.array(step),
        "frozen": np.array(True),
    }


def inputs(folder):
    """The files that a run reads, outside its folder of checkpoints."""
    place = folder.with_name(f"{folder.name} inputs")
    place.mkdir(exist_ok=True)
    paths = [place / "content.png", place / "style.jpeg"]
    for path, data in zip(paths, COPIES.values()):
        path.write_bytes(data)
    return [*paths, paths[0]]


def save(folder, *steps):
    digest = store.begin(folder, inputs(folder))
    assert {*digest} == {*COPIES}
    for step in steps:
        store.save(folder, {"step": step, "loss": float("nan")}, arrays(step), inputs=digest)


def assert_loaded(folder, step, *, damaged=0):
    saved = store.load(folder)
    assert saved.record["step"] == step and np.isnan(saved.record["loss"])
    assert {*saved.inputs} == {*COPIES}
    assert {name: (folder / name).read_bytes() for name in COPIES} == COPIES
    assert saved.arrays.keys() == arrays(step).keys()
    for name, array in arrays(step).items():
        assert saved.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(saved.arrays[name], array)
    assert len(saved.damaged) == damaged
    return saved


def test_what_is_saved_is_loaded(tmp_path):
    save(tmp_path, 0)
    assert assert_loaded(tmp_path, 0).path == tmp_path / "checkpoint-00000000"


def test_the_newest_two_stay(tmp_path):
    save(tmp_path, 0, 1, 2, 3)
    assert sorted(os.listdir(tmp_path)) == [
        "checkpoint-00000002",
        "checkpoint-00000003",
        "checkpoint-inputs",
    ]
    assert_loaded(tmp_path, 3)


def damage(path, how):
    data = path.read_bytes()
    if how == "flip":
        middle = len(data) // 2
        data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    elif how == "cut":
        data = data[:-5]
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "missing":
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["flip", "cut", "missing", "folder"])
@pytest.mark.parametrize("name", ["arrays.safetensors", "run.json", "manifest.json"])
def test_of_a_damaged_one_the_one_before_is_used(tmp_path, name, how):
    save(tmp_path, 0, 1)
    damage(tmp_path / "checkpoint-00000001" / name, how)
    saved = assert_loaded(tmp_path, 0, damaged=1)
    assert saved.damaged[0].startswith("checkpoint-00000001 is damaged (")
    # The next one saved is newer than both.
    record = {"step": 2, "loss": float("nan")}
    store.save(tmp_path, record, arrays(2), inputs=saved.inputs)
    assert_loaded(tmp_path, 2)


@pytest.mark.parametrize("name", ["arrays.safetensors", "run.json", "manifest.json"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_one_that_cannot_be_read_is_not_damaged(tmp_path, monkeypatch, name, code):
    """A file of another user's, or a disk that fails for a while."""
    save(tmp_path, 0, 1)
    bad, before = tmp_path / "checkpoint-00000001" / name, sorted(os.listdir(tmp_path))
    stat = os.stat

    def fail(path, **options):
        if path == bad:
            raise OSError(code, os.strerror(code), str(path))
        return stat(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", fail)
        message = f"cannot read {bad}: {os.strerror(code)}: make it readable, or try again"
        with pytest.raises(InputError, match=message):
            store.load(tmp_path)
    assert sorted(os.listdir(tmp_path)) == before
    assert_loaded(tmp_path, 1)


@pytest.mark.parametrize("reader", ["file_digest", "_read_json", "_read_arrays"])
@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), MemoryError()])
def test_errors_while_one_is_read_are_not_its_own(tmp_path, monkeypatch, reader, error):
    save(tmp_path, 0, 1)

    def fail(path):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(store, reader, fail)
        with pytest.raises(MemoryError if isinstance(error, MemoryError) else InputError) as caught:
            store.load(tmp_path)
    assert isinstance(error, MemoryError) or "cannot read" in str(caught.value)
    assert_loaded(tmp_path, 1)


def test_numbers_count_not_names(tmp_path):
    save(tmp_path, 0, 1)
    os.rename(tmp_path / "checkpoint-00000000", tmp_path / "checkpoint-99999999")
    os.rename(tmp_path / "checkpoint-00000001", tmp_path / "checkpoint-100000000")
    saved = assert_loaded(tmp_path, 1)
    store.remove_damaged(saved)
    names = [path.name for path in store.checkpoints(tmp_path)]
    assert names == ["checkpoint-99999999", "checkpoint-100000000"]
    damage(tmp_path / "checkpoint-100000000" / "run.json", "cut")
    store.remove_damaged(assert_loaded(tmp_path, 0, damaged=1))
    assert [path.name for path in store.checkpoints(tmp_path)] == names[:1]


@pytest.mark.parametrize("how", ["flip", "cut", "missing", "folder"])
def test_where_none_is_whole(tmp_path, how):
    save(tmp_path, 0, 1)
    damage(tmp_path / "checkpoint-inputs" / "00.png", how)
    with pytest.raises(InputError, match="no checkpoint in .* is whole: checkpoint-00000001 is"):
        store.load(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "inputs"])
def test_where_nothing_was_saved(tmp_path, kind):
    folder = tmp_path / "run"
    if kind == "file":
        folder.touch()
    elif kind != "missing":
        folder.mkdir()
    if kind == "inputs":
        store.begin(folder, inputs(folder))
    with pytest.raises(InputError, match="nothing was saved in .*: begin the run anew"):
        store.load(folder)


@pytest.mark.parametrize(
    "record, writer",
    [({"versions": {"nst_jax": "0.0.7"}}, "nst_jax 0.0.7"), ({}, "another nst_jax")],
)
def test_another_format_is_refused(tmp_path, record, writer):
    save(tmp_path, 0)
    folder = tmp_path / "checkpoint-00000000"
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    (folder / "run.json").write_text(json.dumps(record))
    message = f"was written by {writer} in format 1, which this one, of format 2, does not read"
    with pytest.raises(InputError, match=message):
        store.load(tmp_path)


def test_inputs_that_cannot_be_copied(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(InputError, match="cannot write a checkpoint to .*No such file"):
        store.begin(folder, [tmp_path / "gone.png"])
    assert os.listdir(folder) == []


@pytest.mark.parametrize("stage", ["_write_arrays", "file_digest", "_to_disk"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_one_that_cannot_be_written_leaves_those_before(tmp_path, monkeypatch, stage, error):
    save(tmp_path, 0, 1)
    before = sorted(os.listdir(tmp_path))

    def fail(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(store, stage, fail)
        with pytest.raises(type(error)):
            store.save(tmp_path, {"step": 2}, arrays(2), inputs={})
    assert sorted(os.listdir(tmp_path)) == before
    assert_loaded(tmp_path, 1)


def test_a_full_disk_has_its_number(tmp_path):
    """Whose writer has errors of its own."""
    with pytest.raises(OSError) as caught:
        store._write_arrays(tmp_path / "missing" / "a.safetensors", arrays(0))
    assert caught.value.errno == errno.ENOENT and "missing" in caught.value.filename


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path):
    save(tmp_path, 0, 1)
    (tmp_path / "checkpoint-inputs.safetensors").touch()  # of format 1
    for name in (".checkpoint-abcd1234", "checkpoint-x", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    store.remove_unfinished(tmp_path)
    assert not (tmp_path / ".checkpoint-abcd1234").exists()
    assert_loaded(tmp_path, 1)
    store.clear(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-x", "notes"]


def test_folders_are_checked_before_any_work(tmp_path):
    check = check_checkpoints
    check(None, None, overwrite=False)
    check(tmp_path / "new", 5, overwrite=False)
    assert not (tmp_path / "new").exists()
    save(tmp_path, 0)
    check(tmp_path, None, overwrite=True)
    (tmp_path / "file").touch()
    for folder, every, match in (
        (None, 5, "needs a folder: give --checkpoint DIR"),
        (tmp_path / "new", 0, "checkpoint_every is 0: expected 1 or more"),
        (tmp_path / "file", None, "is no folder"),
        (tmp_path / "a" / "b", None, "a does not exist: create it first"),
        (tmp_path, None, "holds the checkpoints of a run: go on with it by 'nst-jax resume"),
    ):
        with pytest.raises(InputError, match=match):
            check(folder, every, overwrite=False)


def test_a_pipe_is_not_waited_for(tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    digest = store.begin(first)
    path = store.save(first, {"step": 1}, {}, inputs=digest)
    newest = store.save(first, {"step": 2}, {}, inputs=digest)
    for name in ("manifest.json", "run.json", "arrays.safetensors"):
        (newest / name).unlink()
        os.mkfifo(newest / name)
        saved = store.load(first)
        assert saved.path == path and "is no file" in saved.damaged[0]


def test_one_run_at_a_time(tmp_path):
    folder = tmp_path / "kept"
    with held(folder):
        # Locks of one process know each other; another process sees them just as well.
        code = "import sys; from pathlib import Path; from nst_jax.checkpoint.store import held\n"
        code += "with held(Path(sys.argv[1])): pass"
        line = [sys.executable, "-c", code, str(folder)]
        ended = subprocess.run(line, capture_output=True, text=True)
        assert ended.returncode == 1 and "another run has the checkpoints in" in ended.stderr
    assert subprocess.run(line).returncode == 0
    assert os.listdir(folder) == []
    with held(None):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write a checkpoint to"):
        with held(tmp_path / "file" / "kept"):
            pass


@pytest.mark.parametrize("resumed", [False, True])
def test_what_to_do_about_a_folder(tmp_path, monkeypatch, resumed):
    """Who goes on with a run cannot choose another folder."""
    for error, words in (
        (PermissionError(errno.EACCES, "Permission denied"), "cannot write a checkpoint to .*"),
        (filelock.Timeout("lock"), "another run has the checkpoints in"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(filelock.FileLock, "acquire", fail)
        with pytest.raises(InputError, match=words) as caught:
            with held(tmp_path, resumed=resumed):
                pass
        assert ("choose another folder" in str(caught.value)) is not resumed
