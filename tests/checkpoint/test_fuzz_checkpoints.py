"""Resuming damaged or hostile checkpoints gives at most one error, and changes nothing else."""

import json
import random
import shutil
from pathlib import Path

import pytest
from helpers.checkpoints import RECORD, correct_manifest, damage, take_base
from helpers.fuzzing import check_ended, command, listing


@pytest.fixture(autouse=True)
def quiet_process(monkeypatch, tmp_path):
    """Use no weights or cache of the user."""
    monkeypatch.delenv("NST_JAX_WEIGHTS", raising=False)
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))


def check_one(bases, folder, monkeypatch, capsys, number):
    """Resume one damaged checkpoint, check what it leaves, and return the exit code."""
    rng = random.Random(number)
    name = take_base(bases, folder, rng)
    monkeypatch.chdir(folder)
    done = f"{number}: {name}, {damage(Path('ck'), rng)}"
    before = listing(folder)
    ended = None
    try:
        ended = command(["resume", "ck"], capsys)
        check_ended(ended)
    except BaseException as error:
        raise AssertionError(f"{done}: {type(error).__name__}: {error}\n{ended}") from error
    after = listing(folder)
    assert after["victim.txt"] == b"of someone else", done
    outside = {path for path in before if not path.startswith("ck/")}
    changed = {path for path in outside if after.get(path) != before[path]}
    added = {path for path in after if path not in before and not path.startswith("ck/")}
    hidden = [path for path in after if Path(path).name.startswith(".")]
    assert not hidden, f"{done}: {hidden} left behind"
    if ended.code == 2 and name != "batch":
        assert not changed | added, f"{done}: {changed | added} written"
    return ended.code


def check_many(bases, tmp_path, monkeypatch, capsys, numbers):
    wrong, codes = [], []
    for number in numbers:
        folder = tmp_path / f"case{number}"
        try:
            codes.append(check_one(bases, folder, monkeypatch, capsys, number))
        except AssertionError as error:
            wrong.append(f"{error}")
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(folder)
    assert not wrong, f"{len(wrong)} of {len(numbers)}:\n" + "\n".join(wrong)
    assert {0, 2} <= set(codes)  # some are undamaged, or have an undamaged one before them


DEEP = json.loads("[" * 400 + "]" * 400)
HOSTILE = {
    "adam": [
        {"settings": {"style_blend": DEEP}},
        {"arguments": DEEP},
        {"arguments": "stylize"},
        {"arguments": ["batch"]},
        {"arguments": ["stylize", "a\0"]},
        {"directory": 1},
        {"position": {}},
    ],
    "batch": [{"arguments": ["stylize"]}, {"kind": "image"}, {"kind": []}],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_values_are_refused(newest, capsys, name):
    path = newest(name)
    record = json.loads((path / RECORD).read_text())
    for change in HOSTILE[name]:
        (path / RECORD).write_text(json.dumps(record | change))
        correct_manifest(path)
        before = listing(Path())
        ended = command(["resume", "ck"], capsys)
        check_ended(ended)
        refused = ended.code == 2 and "nst-jax: error: ck/checkpoint-" in ended.err
        assert refused and listing(Path()) == before, f"{change!r:.100}: {ended}"


def test_damaged_checkpoints(bases, tmp_path, monkeypatch, capsys):
    check_many(bases, tmp_path, monkeypatch, capsys, range(12))


@pytest.mark.campaign
def test_many_damaged_checkpoints(bases, tmp_path, monkeypatch, capsys):
    check_many(bases, tmp_path, monkeypatch, capsys, range(30, 230))
