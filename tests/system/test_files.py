"""Writing files whole or not at all, and the check before the work."""

import os
import stat
from pathlib import Path

import pytest

from nst_jax.errors import InputError
from nst_jax.system import atomic_write
from nst_jax.system.files import check_writable


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt])
def test_a_failing_write_changes_nothing(tmp_path, old, error):
    path = tmp_path / "image.png"
    if old is not None:
        path.write_text(old)
    before = {file.name: file.read_text() for file in tmp_path.iterdir()}
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("old", [None, "old"])
def test_the_file_appears_at_the_end(tmp_path, old):
    path = tmp_path / "image.png"
    if old is not None:
        path.write_text(old)
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".png"
        temporary.write_text("new")
        assert (path.read_text() if path.exists() else None) == old
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["image.png"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "new") as temporary:
            temporary.write_text("text")
    finally:
        after = os.umask(before)
    assert after == umask  # it is the process's own again
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "é" * 125 + ".png"])
def test_names_as_long_as_the_file_system_takes(tmp_path, name):
    check_writable(tmp_path / name, overwrite=False)
    with atomic_write(tmp_path / name) as temporary:
        temporary.write_text("text")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing/new.png", "missing of new.png does not exist: create it"),
        ("old.png", "old.png exists: choose another output name, or set overwrite"),
        ("folder", "folder is a directory"),
        ("old.png/new.png", "old.png of new.png does not exist"),
        ("/proc/new.png", "folder /proc"),
        ("a" * 252 + ".png", "too long"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, message):
    (tmp_path / "old.png").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message):
        check_writable(tmp_path / name, overwrite=False)
    assert sorted(os.listdir(tmp_path)) == ["folder", "old.png"]


def test_the_check_leaves_no_trace(tmp_path, monkeypatch):
    (tmp_path / "old.png").write_text("old")
    check_writable(tmp_path / "old.png", overwrite=True)
    check_writable(tmp_path / "new.png", overwrite=False)
    monkeypatch.chdir(tmp_path)
    check_writable(Path("new.png"), overwrite=False)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"old.png": "old"}


def test_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *a: (done.append("fsync"), fsync(*a))[1])
    monkeypatch.setattr(os, "replace", lambda *a: (done.append("replace"), replace(*a))[1])
    with atomic_write(tmp_path / "new") as temporary:
        temporary.write_text("text")
    assert done == ["fsync", "replace"]
