"""Do harm to runs of the command line, and check that none is lost and no result another one.

Usage:
  python scripts/faults.py                                 everything, some ten minutes on 2 cores
  python scripts/faults.py --only kills --kills 10         a part of it
  python scripts/faults.py --write docs/reliability.md     put the table into the page

The exit code is 1 where a promise was not kept. What needs a small disk of its own is left out
where the user may not mount one.
"""

import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import faults_computing
import faults_disks
import faults_ends
import faults_files
import tyro
from faults_ends import Reference
from faults_runs import COMMANDS, Unexpected, draw_inputs, measure, results

from nst_jax.system import atomic_write

BEGIN, END = "<!-- begin: scripts/faults.py -->", "<!-- end: scripts/faults.py -->"
HEAD = ("fault", "how often", "what came of it", "result as without the fault")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Do harm to runs.

    Attributes:
      only: Parts of it.
      kills: How many SIGKILLs at least.
      interrupts: How many SIGINTs; SIGTERMs are half, double signals a sixth of them.
      seed: Of the random moments and damages.
      workers: How many runs at the same time.
      write: A page whose table to replace.
      keep: Keep the folders of what failed here.
    """

    only: tuple[Literal["kills", "signals", "computing", "files"], ...] = (
        *("kills", "signals", "computing", "files"),
    )
    kills: int = 60
    interrupts: int = 20
    seed: int = 0
    workers: int = 2
    write: Path | None = None
    keep: Path | None = None


class Task(NamedTuple):
    """One row of the table.

    Attributes:
      fault: in words.
      trial: ``(folder, rng)`` to what came of it, in words or of kills a list of such; None where
        no fault met the run.
      wanted: how many faults; a list counts as its length less one, which is how it was completed.
      equal: whether the result is compared with that of the uninterrupted run.
    """

    fault: str
    trial: Callable[[Path, random.Random], Any]
    wanted: int = 1
    equal: bool = True


class Row(NamedTuple):
    """What came of a task: how many faults there were, how often what, and what was wrong."""

    task: Task
    faults: int
    counts: Counter[str]
    wrong: list[str]


class Workshop(NamedTuple):
    """Where runs are made, and what of."""

    work: Path
    cache: Path
    references: dict[str, Reference]
    options: Options


def main(options: Options) -> int:
    """Do everything that is asked for; the exit code."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        work = Path(name)
        shop = Workshop(work, work / "cache", {}, options)
        for command in COMMANDS:
            shop.references[command] = reference(command, shop)
            print(f"{command}: {shop.references[command].marks.end:.1f} s a run", flush=True)
        tasks = [task for part in options.only for task in PARTS[part](shop)]
        rows = []
        with ThreadPoolExecutor(options.workers) as pool:
            for row in pool.map(partial(attempt, shop), tasks):
                rows.append(row)
                print(" | ".join(_cells(row)), flush=True)
                for wrong in row.wrong:
                    print(f"  UNEXPECTED: {wrong}", flush=True)
    print(f"{time.perf_counter() - started:.0f} s")
    if options.write is not None:
        put_table(options.write, rows)
    return 1 if any(row.wrong for row in rows) else 0


def reference(command: str, shop: Workshop) -> Reference:
    """The uninterrupted run: the second one, for which everything is compiled."""
    folder = shop.work
    for turn in range(2):
        folder = shop.work / f"{command}-{turn}"
        draw_inputs(folder)
        marks = measure(COMMANDS[command], folder, cache=shop.cache)
    return Reference(marks, results(folder))


def attempt(shop: Workshop, task: Task) -> Row:
    """Do a task; each trial has a folder and random numbers of its own."""
    row = Row(task, 0, Counter(), [])
    for number in range(4 * task.wanted):
        folder = shop.work / f"{task.fault}-{number}"
        rng = random.Random(f"{shop.options.seed} {folder.name}")
        try:
            outcome = task.trial(folder, rng)
        except Unexpected as error:
            row.wrong.append(f"{folder.name}: {error}")
            if shop.options.keep is not None:
                shutil.copytree(folder, shop.options.keep / folder.name, dirs_exist_ok=True)
            outcome = ["failed"]
        outcomes = outcome if isinstance(outcome, list) else [outcome] if outcome else []
        row.counts.update(outcomes)
        met = len(outcomes) - (isinstance(outcome, list) and len(outcomes) > 1)
        row = row._replace(faults=row.faults + met)
        shutil.rmtree(folder, ignore_errors=True)
        if row.faults >= task.wanted:
            return row
    row.wrong.append(f"only {row.faults} of {task.wanted} faults met a run")
    return row


def kills(shop: Workshop) -> Iterator[Task]:
    """SIGKILL at any moment, of every kind of run."""
    each = -(-shop.options.kills // len(COMMANDS))
    for name, given in shop.references.items():
        trial = partial(_kill, name=name, reference=given, cache=shop.cache)
        yield Task(f"SIGKILL, {name}", trial, each)


def _kill(folder: Path, rng: random.Random, **given: Any) -> list[str]:
    *moments, end = faults_ends.kill(folder=folder, rng=rng, **given) or [""]
    return [*(f"at {moment}" for moment in moments), end] if end else []


def signals(shop: Workshop) -> Iterator[Task]:
    """Requests to stop at any moment."""
    total, names = shop.options.interrupts, list(COMMANDS)
    for name in names:
        trial = partial(_stop, shop=shop, names=[name], number=signal.SIGINT)
        yield Task(f"SIGINT, {name}", trial, -(-total // len(names)))
    for words, number, twice, wanted in (
        ("SIGTERM", signal.SIGTERM, False, -(-total // 2)),
        ("SIGINT twice", signal.SIGINT, True, -(-total // 6)),
    ):
        trial = partial(_stop, shop=shop, names=names, number=number, twice=twice)
        yield Task(words, trial, wanted)


def _stop(
    folder: Path, rng: random.Random, *, shop: Workshop, names: list[str], **given: Any
) -> str | None:
    name = rng.choice(names)
    return faults_ends.stop(name, folder, shop.references[name], rng, cache=shop.cache, **given)


def computing(shop: Workshop) -> Iterator[Task]:
    """Numbers that are not finite, and memory that does not suffice."""
    for words, trial in faults_computing.TRIALS.items():
        yield Task(words, _plain(partial(trial, cache=shop.cache)), equal=False)


def files(shop: Workshop) -> Iterator[Task]:
    """Disks and files."""
    adam, batch = ({"reference": shop.references[name]} for name in ("Adam", "batch"))
    coarse = {"reference": shop.references["coarse to fine"]}
    adam, batch, coarse = ({"cache": shop.cache} | given for given in (adam, batch, coarse))
    for name in faults_files.DAMAGED:
        damaged = partial(faults_files.newest_damaged, name=name, **adam)
        yield Task(f"{name} of the newest checkpoint damaged", damaged, 4)
    yield Task("all checkpoints damaged", partial(faults_files.all_damaged, **adam), equal=False)
    for words, trial, equal in (
        ("resume with other weights", faults_files.other_weights, False),
        ("resume by another version", faults_files.other_version, False),
        ("resume of a run at work", faults_files.two_at_a_time, True),
        ("compiled programs in the cache cut off", faults_files.programs_cut, True),
        ("checkpoints removed amid the run", faults_files.checkpoints_lost, True),
    ):
        yield Task(words, _plain(partial(trial, **adam)), equal=equal)
    if not faults_disks.can_mount(shop.work):
        print("full and read-only disks are left out: this user may not mount any")
        return
    disk, full, read_only = faults_disks.output_disk, faults_disks.fill, faults_disks.make_read_only
    for words, trial, equal in (
        ("checkpoints' disk full amid the run", partial(faults_disks.disk_full, **adam), True),
        ("checkpoints' disk full before", partial(faults_disks.disk_full_before, **adam), False),
        ("outputs' disk full amid the run", partial(disk, spoil=full, **coarse), True),
        ("... without checkpoints", partial(disk, spoil=full, kept=False, **coarse), True),
        ("... of a batch", partial(disk, spoil=full, name="batch", **batch), True),
        ("outputs' disk read-only amid the run", partial(disk, spoil=read_only, **coarse), True),
        ("outputs' disk read-only before", partial(faults_disks.read_only_before, **adam), False),
    ):
        yield Task(words, _plain(trial), equal=equal)


def _plain(trial: Callable[..., Any]) -> Callable[[Path, random.Random], Any]:
    """A trial without random numbers."""
    return lambda folder, rng: trial(folder)


PARTS: dict[str, Callable[[Workshop], Iterator[Task]]] = {
    "kills": kills,
    "signals": signals,
    "computing": computing,
    "files": files,
}


def _cells(row: Row) -> tuple[str, ...]:
    """A row of the table as texts."""
    came = [f"{count} {words}" for words, count in row.counts.most_common()]
    came = list(row.counts) if row.counts.total() == 1 else came
    equal = "no" if row.wrong else "yes" if row.task.equal else "-"
    return row.task.fault, str(row.faults), ", ".join(came) or "-", equal


def put_table(path: Path, rows: list[Row]) -> None:
    """Replace a page's table."""
    lines = [HEAD, ("---",) * len(HEAD), *map(_cells, rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    before, rest = path.read_text("utf-8").split(BEGIN)
    _, after = rest.split(END)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
