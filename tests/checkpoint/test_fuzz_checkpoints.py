"""Checkpoints that are damaged, or made to do harm: one error at most, and nothing else."""

import json
import random
import shutil
from pathlib import Path

import pytest
from faults_files import correct_manifest, edit_arrays
from helpers.checkpoints import ARRAYS, RECORD, bases, damage, newest, take_base  # noqa: F401
from helpers.fuzzing import check_ended, command, listing


@pytest.fixture(autouse=True)
def quiet_process(monkeypatch, tmp_path):
    """Nothing that is set for a whole process, and no weights or cache but this test's."""
    monkeypatch.delenv("NST_JAX_WEIGHTS", raising=False)
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))


def check_one(bases, folder, monkeypatch, capsys, number):
    """Resume one damaged checkpoint."""
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
    own = {path for path in before if not path.startswith("ck/")}
    changed = {path for path in own if after.get(path) != before[path]}
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
    assert {0, 2} <= set(codes)  # some are still whole, or have one before


def put(*place, value):
    """A change of a record: a value at a place."""

    def change(record):
        for key in place[:-1]:
            record = record[key]
        record[place[-1]] = value

    return change


CHOICES = [(0, -1), (0, 10**19), (1, 0), (3, -1), (3, 0), (3, 10**19), (4, "x"), (4, "float32")]
COUNTS = (-1, -(10**400), 2**63, 10**400, True, 1.0, "1")
DEEP = json.loads("[" * 400 + "]" * 400)
POSITIONS = [
    *(put("position", "execution_plan", at, value=value) for at, value in CHOICES),
    *(put("position", "recoveries", value=value) for value in (-1000, 4, 10**400)),
    *(put("position", "free", value=value) for value in COUNTS),
    *(put("position", "step", value=value) for value in (0, 1, "2", None)),
    *(put("position", "timing", value=value) for value in (None, {}, {"steps_s": "1"})),
    put("position", "last_plan", value=[-1, False, False, None, None]),
]
PLANS = [
    *(put("plan", 0, at, value=value) for at, value in CHOICES),
    *(put("plan", 1, at, value=value) for value in COUNTS for at in range(4)),
    *(put("plan", at, value=value) for value in COUNTS for at in (2, 3)),
    put("settings", "style_blend", value=DEEP),
    put("arguments", value=DEEP),
    put("arguments", value="stylize"),
    put("arguments", 0, value="batch"),
    put("arguments", 1, value="a\0"),
    put("directory", value=1),
]
ENDED = [
    put("position", "ended", 0, 1, value=-4),
    put("position", "ended", 0, 2, 0, value=-1),
    put("position", "ended", 0, 0, value=[10, "18"]),
]
CALLS = [put("arguments", 0, value="stylize"), put("kind", value="image"), put("kind", value=[])]
HOSTILE = {"adam": POSITIONS + PLANS, "lbfgs": POSITIONS + ENDED, "batch": CALLS}


def check_foreign(capsys, *, done, words="nst-jax: error: ck/checkpoint-"):
    before = listing(Path())
    ended = command(["resume", "ck"], capsys)
    check_ended(ended)
    assert ended.code == 2 and words in ended.err, f"{done}: {ended}"
    assert listing(Path()) == before


@pytest.mark.parametrize("name", HOSTILE)
def test_values_that_no_run_has(newest, capsys, name):
    path = newest(name)
    text = (path / RECORD).read_text()
    for number, change in enumerate(HOSTILE[name]):
        record = json.loads(text)
        change(record)
        (path / RECORD).write_text(json.dumps(record))
        correct_manifest(path)
        check_foreign(capsys, done=f"{name} {number}")


def test_frames_that_are_none(newest, capsys):
    path = newest("adam")

    def change(arrays):
        (name, frame), *_ = [item for item in arrays.items() if item[0].startswith("frames/")]
        arrays[name] = frame[:-1]

    edit_arrays(path / ARRAYS, change)
    correct_manifest(path)
    check_foreign(capsys, done="frames")


def test_damaged_checkpoints(bases, tmp_path, monkeypatch, capsys):
    check_many(bases, tmp_path, monkeypatch, capsys, range(20))


@pytest.mark.campaign
def test_many_damaged_checkpoints(bases, tmp_path, monkeypatch, capsys):
    check_many(bases, tmp_path, monkeypatch, capsys, range(30, 230))
