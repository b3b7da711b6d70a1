"""The short form of ``scripts/faults.py``: a process is killed and goes on."""

from collections import Counter

import faults
import faults_computing
import faults_ends
import pytest
from faults_runs import (
    COMMANDS,
    Unexpected,
    check_same,
    check_visible,
    draw_inputs,
    results,
    start,
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Where runs are made."""
    work = tmp_path_factory.mktemp("faults")
    return faults.Workshop(work, work / "cache", {}, faults.Options())


@pytest.mark.slow
def test_killed_once(shop, tmp_path):
    """At a checkpoint, or later: what comes of it is the same."""
    folder, words = tmp_path / "run", COMMANDS["Adam"]
    given = faults.reference("Adam", shop)
    draw_inputs(folder)
    started = start(words, folder, cache=shop.cache)
    faults_ends.reach_checkpoint(started, 2)
    started.process.kill()
    started.process.wait()
    check_visible(folder)
    assert faults_ends.complete(words, folder, given, cache=shop.cache) == "resumed"


@pytest.mark.slow
def test_not_finite_once(shop, tmp_path):
    trial = faults_computing.TRIALS["NaN in the gradient once, Adam"]
    assert trial(tmp_path / "run", cache=shop.cache).endswith("exit 0")


class TestTheChecks:
    """What would show that a promise was not kept does so."""

    def make(self, folder, **files):
        draw_inputs(folder)
        for name, data in files.items():
            (folder / name.replace("_", ".")).write_bytes(data)
        return folder

    def test_what_is_cut_off_is_seen(self, tmp_path):
        whole = (self.make(tmp_path / "a") / "content.png").read_bytes()
        check_visible(self.make(tmp_path / "b", out_png=whole))
        with pytest.raises(Unexpected, match="out.png is not whole"):
            check_visible(self.make(tmp_path / "c", out_png=whole[:-200]))
        with pytest.raises(Unexpected, match="out.json is not whole"):
            check_visible(self.make(tmp_path / "d", out_json=b"{"))

    def test_another_result_is_seen(self, tmp_path):
        one, other = (self.make(tmp_path / name) for name in "ab")
        for folder, image in ((one, "content.png"), (other, "style.png")):
            (folder / "out.png").write_bytes((folder / image).read_bytes())
        check_same(one, results(one))
        with pytest.raises(Unexpected, match="out.png is another one"):
            check_same(one, results(other))
        (one / ".out-12345678.png").touch()
        with pytest.raises(Unexpected, match="left over"):
            results(one)

    def test_a_broken_promise_makes_the_row_say_no(self, shop):
        def trial(folder, rng):
            raise Unexpected("lost")

        row = faults.attempt(shop, faults.Task("fault", trial))
        assert row.wrong == ["fault-0: lost"] and faults._cells(row)[-1] == "no"
        row = faults.attempt(shop, faults.Task("fault", lambda folder, rng: None, 2))
        assert row.wrong == ["only 0 of 2 faults met a run"]

    def test_the_table(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text(f"before\n\n{faults.BEGIN}\nold\n{faults.END}\nafter\n")
        task = faults.Task("SIGKILL", lambda folder, rng: None, 3)
        counts = Counter({"at save": 2, "at steps": 1, "resumed": 1})
        faults.put_table(page, [faults.Row(task, 3, counts, [])])
        assert page.read_text().splitlines() == [
            *("before", "", faults.BEGIN, ""),
            "| fault | how often | what came of it | result as without the fault |",
            "| --- | --- | --- | --- |",
            "| SIGKILL | 3 | 2 at save, 1 at steps, 1 resumed | yes |",
            *("", faults.END, "after"),
        ]


def test_every_part_and_command_has_tasks(shop):
    fake = faults_ends.Reference(faults_ends.Marks(1.0, 2.0), {})
    full = shop._replace(references=dict.fromkeys(COMMANDS, fake))
    tasks = {name: list(part(full)) for name, part in faults.PARTS.items()}
    assert sum(task.wanted for task in tasks["kills"]) >= 50
    assert sum(task.wanted for task in tasks["signals"] if "twice" not in task.fault) >= 25
    names = [task.fault for part in tasks.values() for task in part]
    assert len(set(names)) == len(names)
