"""Atomic writes, and the checks of output paths."""

import os
import stat

import pytest

from nst_jax.errors import InputError
from nst_jax.system import atomic_write
from nst_jax.system.files import check_writable


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_write_changes_nothing(tmp_path, old, error):
    path = tmp_path / "image.png"
    if old is not None:
        path.write_text(old)
    before = {file.name: file.read_text() for file in tmp_path.iterdir()}
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == before


def test_file_is_replaced_after_its_bytes_are_on_the_disk(tmp_path, monkeypatch):
    path, calls, fsync, replace = tmp_path / "image.png", [], os.fsync, os.replace
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda *a: (calls.append("fsync"), fsync(*a))[1])
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replace(*a))[1])
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".png"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["image.png"]
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "new") as temporary:
            temporary.write_text("text")
    finally:
        after = os.umask(before)
    assert after == umask  # reading the umask has restored it
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "é" * 125 + ".png"])
def test_longest_names_of_the_file_system(tmp_path, name):
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
def test_paths_that_cannot_be_written(tmp_path, name, message):
    (tmp_path / "old.png").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message):
        check_writable(tmp_path / name, overwrite=False)
    check_writable(tmp_path / "old.png", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["folder", "old.png"]
