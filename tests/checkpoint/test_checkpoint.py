"""Checkpoints are written atomically, the newest two are kept, and damaged ones are skipped."""

import errno
import json
import os

import numpy as np
import pytest

from nst_jax.checkpoint import store
from nst_jax.checkpoint.store import locked
from nst_jax.cli.checkpoints import check_checkpoints
from nst_jax.errors import InputError

COPIES = {"checkpoint-inputs/00.png": b"an image", "checkpoint-inputs/01.jpeg": b""}
NAMES = ["arrays.safetensors", "run.json", "manifest.json"]


def arrays(step):
    return {
        "x": np.full((2, 2), step, np.float32),
        "count": np.array(step),
        "frozen": np.array(True),
    }


def inputs(folder):
    """The input files of a run, outside its folder of checkpoints; one is used twice."""
    place = folder.with_name(f"{folder.name} inputs")
    place.mkdir(exist_ok=True)
    paths = [place / "content.png", place / "style.jpeg"]
    for path, data in zip(paths, COPIES.values()):
        path.write_bytes(data)
    return [*paths, paths[0]]


def save(folder, *steps):
    digests = store.begin(folder, inputs(folder))
    assert {*digests} == {*COPIES}
    for step in steps:
        store.save(folder, {"step": step, "loss": float("nan")}, arrays(step), inputs=digests)
    return digests


def check_loaded(folder, step, *, damaged=0):
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


def test_newest_two_are_kept_and_the_newest_is_loaded(tmp_path):
    save(tmp_path, 0, 1, 2, 3)
    kept = ["checkpoint-00000002", "checkpoint-00000003", "checkpoint-inputs"]
    assert sorted(os.listdir(tmp_path)) == kept
    assert check_loaded(tmp_path, 3).path == tmp_path / "checkpoint-00000003"


def damage(path, how):
    data = path.read_bytes()
    path.unlink()
    if how == "flip":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif how == "cut":
        path.write_bytes(data[:-5])
    elif how == "folder":
        path.mkdir()
    elif how == "pipe":  # reading it would wait forever
        os.mkfifo(path)


@pytest.mark.parametrize("how", ["flip", "cut", "missing", "folder", "pipe"])
@pytest.mark.parametrize("name", NAMES)
def test_damaged_checkpoint_is_skipped(tmp_path, name, how):
    digests = save(tmp_path, 0, 1)
    damage(tmp_path / "checkpoint-00000001" / name, how)
    saved = check_loaded(tmp_path, 0, damaged=1)
    assert saved.damaged[0].startswith("checkpoint-00000001 is damaged (")
    # The next checkpoint is newer than both.
    store.save(tmp_path, {"step": 2, "loss": float("nan")}, arrays(2), inputs=digests)
    check_loaded(tmp_path, 2)


@pytest.mark.parametrize(
    "reader, error",
    [
        ("_is_file", PermissionError(errno.EACCES, "Permission denied")),
        ("file_digest", OSError(errno.EIO, "Input/output error")),
        ("_read_arrays", PermissionError(errno.EACCES, "Permission denied")),
        ("_read_json", MemoryError()),
    ],
)
def test_unreadable_checkpoint_does_not_count_as_damaged(tmp_path, monkeypatch, reader, error):
    """For example a file of another user, or a disk that fails for a while."""
    save(tmp_path, 0, 1)

    def fail(path):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(store, reader, fail)
        with pytest.raises((InputError, MemoryError), match="cannot read .*: make it|^$"):
            store.load(tmp_path)
    check_loaded(tmp_path, 1)


def test_checkpoints_are_ordered_by_number(tmp_path):
    save(tmp_path, 0, 1)
    os.rename(tmp_path / "checkpoint-00000000", tmp_path / "checkpoint-99999999")
    os.rename(tmp_path / "checkpoint-00000001", tmp_path / "checkpoint-100000000")
    store.remove_damaged(check_loaded(tmp_path, 1))
    names = [path.name for path in store.checkpoints(tmp_path)]
    assert names == ["checkpoint-99999999", "checkpoint-100000000"]
    damage(tmp_path / "checkpoint-100000000" / "run.json", "cut")
    store.remove_damaged(check_loaded(tmp_path, 0, damaged=1))
    assert [path.name for path in store.checkpoints(tmp_path)] == names[:1]


def test_damaged_copy_of_an_input_damages_all_checkpoints(tmp_path):
    save(tmp_path, 0, 1)
    damage(tmp_path / "checkpoint-inputs" / "00.png", "flip")
    match = "no checkpoint in .* is undamaged: checkpoint-00000001 is .*: start a new run"
    with pytest.raises(InputError, match=match):
        store.load(tmp_path)


def test_folders_without_checkpoints(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    store.begin(tmp_path / "begun", inputs(tmp_path))
    for name in ("missing", "file", "empty", "begun"):
        with pytest.raises(InputError, match=f"nothing was saved in .*{name}.*: start a new run"):
            store.load(tmp_path / name)


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
    match = f"was written by {writer} in format 1: expected format 2; resume with that nst_jax"
    with pytest.raises(InputError, match=match):
        store.load(tmp_path)


def test_inputs_that_cannot_be_copied(tmp_path):
    with pytest.raises(InputError, match="cannot write a checkpoint to .*No such file"):
        store.begin(tmp_path, [tmp_path / "gone.png"])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "stage, error",
    [
        ("_write_arrays", OSError(errno.ENOSPC, "No space left")),
        ("file_digest", KeyboardInterrupt()),
        ("_fsync", OSError(errno.ENOSPC, "No space left")),
    ],
)
def test_failed_write_leaves_earlier_checkpoints(tmp_path, monkeypatch, stage, error):
    save(tmp_path, 0, 1)
    before = sorted(os.listdir(tmp_path))

    def fail(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(store, stage, fail)
        with pytest.raises(type(error)):
            store.save(tmp_path, {"step": 2}, arrays(2), inputs={})
    assert sorted(os.listdir(tmp_path)) == before
    check_loaded(tmp_path, 1)


def test_errors_of_safetensors_become_os_errors(tmp_path):
    with pytest.raises(OSError) as caught:
        store._write_arrays(tmp_path / "missing" / "a.safetensors", arrays(0))
    assert caught.value.errno == errno.ENOENT and "missing" in caught.value.filename


def test_only_leftovers_of_killed_runs_are_removed(tmp_path):
    save(tmp_path, 0, 1)
    (tmp_path / "checkpoint-inputs.safetensors").touch()  # format 1
    for name in (".checkpoint-abcd1234", "checkpoint-x", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    store.remove_unfinished(tmp_path)
    assert not (tmp_path / ".checkpoint-abcd1234").exists()
    check_loaded(tmp_path, 1)
    store.clear(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-x", "notes"]


def test_folders_are_checked_before_the_run(tmp_path):
    check_checkpoints(None, None, overwrite=False)
    check_checkpoints(tmp_path / "new", 5, overwrite=False)
    assert not (tmp_path / "new").exists()
    save(tmp_path, 0)
    check_checkpoints(tmp_path, None, overwrite=True)
    (tmp_path / "file").touch()
    for folder, every, match in (
        (None, 5, "requires a folder: add --checkpoint DIR"),
        (tmp_path / "new", 0, "checkpoint_every is 0: expected 1 or more"),
        (tmp_path / "file", None, "is not a folder"),
        (tmp_path / "a" / "b", None, "a does not exist: create it first"),
        (tmp_path, None, "contains the checkpoints of a run: resume it with 'nst-jax resume"),
    ):
        with pytest.raises(InputError, match=match):
            check_checkpoints(folder, every, overwrite=False)


@pytest.mark.parametrize("resumed, advice", [(False, "choose another folder"), (True, "resume fr")])
def test_folder_is_locked_for_one_run(tmp_path, resumed, advice):
    folder = tmp_path / "run"
    with locked(folder):
        with pytest.raises(InputError, match="another run has the checkpoints in .*: wait until"):
            with locked(folder, resumed=resumed):
                pass
    with locked(folder), locked(None):
        pass
    assert os.listdir(folder) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"cannot write a checkpoint to .*{advice}"):
        with locked(tmp_path / "file" / "run", resumed=resumed):
            pass
