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
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import faults_computing
import faults_ends
import faults_files
import tyro
from faults_ends import Reference
from faults_runs import COMMANDS, Unexpected, draw_inputs, measure, results

from nst_jax.files import atomic_write

BEGIN, END = "<!-- begin: scripts/faults.py -->", "<!-- end: scripts/faults.py -->"
HEAD = ("fault", "how often", "what came of it", "result as without the fault")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Do harm to runs.

    Attributes:
      only: Parts of it.
      kills: How many SIGKILLs at least.
      interrupts: How many SIGINTs; SIGTERMs are a quarter, double signals a sixth of them.
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


class Row(NamedTuple):
    """One row of the table.

    Attributes:
      fault: in words.
      counts: how often what came of it.
      wrong: promises that were not kept.
      equal: whether the result is compared with that of the uninterrupted run.
    """

    fault: str
    counts: Counter[str]
    wrong: list[str]
    equal: bool = True


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
            shop.references[command] = _reference(command, shop)
            print(f"{command}: {shop.references[command].marks.end:.1f} s a run", flush=True)
        rows = []
        for part in options.only:
            for row in PARTS[part](shop):
                rows.append(row)
                print(" | ".join(_cells(row)), flush=True)
                for wrong in row.wrong:
                    print(f"  UNEXPECTED: {wrong}", flush=True)
    print(f"{time.perf_counter() - started:.0f} s")
    if options.write is not None:
        put_table(options.write, rows)
    return 1 if any(row.wrong for row in rows) else 0


def _reference(command: str, shop: Workshop) -> Reference:
    """The uninterrupted run, a second one, for which everything is compiled."""
    for turn in range(2):
        folder = shop.work / f"{command}-{turn}"
        draw_inputs(folder)
        marks = measure(COMMANDS[command], folder, cache=shop.cache)
    return Reference(marks, results(folder))


def attempts(
    shop: Workshop, name: str, trial: Callable[..., Any], *, wanted: int
) -> tuple[list[Any], list[str]]:
    """Try until so many faults are done; each in a folder and with random numbers of its own.

    Args:
      trial: ``(folder, rng)`` to what came of it, or None where there was no fault.
      wanted: how many; a list counts as its length less one.

    Returns:
      What came of them, and what was wrong.
    """
    found: list[Any] = []
    wrong: list[str] = []
    lock, done = threading.Lock(), 0

    def one(number: int) -> None:
        nonlocal done
        if done >= wanted:
            return
        folder = shop.work / f"{name}-{number}"
        rng = random.Random(f"{shop.options.seed} {name} {number}")
        try:
            outcome = trial(folder, rng)
        except Unexpected as error:
            with lock:
                wrong.append(f"{folder.name}: {error}")
                done += 1
            if shop.options.keep is not None:
                shutil.copytree(folder, shop.options.keep / folder.name, dirs_exist_ok=True)
            return
        with lock:
            if outcome:
                found.append(outcome)
                done += len(outcome) - 1 if isinstance(outcome, list) else 1
        shutil.rmtree(folder, ignore_errors=True)

    with ThreadPoolExecutor(shop.options.workers) as pool:
        list(pool.map(one, range(4 * wanted)))
    if done < wanted:
        wrong.append(f"only {done} of {wanted} faults met a run")
    return found, wrong


def kills(shop: Workshop) -> Iterator[Row]:
    """SIGKILL at any moment, of every kind of run."""
    each = -(-shop.options.kills // len(COMMANDS))
    for name, reference in shop.references.items():
        trial = partial(_kill, shop, name, reference)
        found, wrong = attempts(shop, f"kill {name}", trial, wanted=each)
        moments = Counter(moment for outcome in found for moment in outcome[:-1])
        ends = Counter(outcome[-1] for outcome in found)
        moments = Counter({f"at {moment}": count for moment, count in moments.items()})
        yield Row(f"SIGKILL, {name}", moments + ends, wrong)


def _kill(
    shop: Workshop, name: str, reference: Reference, folder: Path, rng: random.Random
) -> list[str]:
    return faults_ends.kill(name, folder, reference, rng, cache=shop.cache)


def signals(shop: Workshop) -> Iterator[Row]:
    """Requests to stop at any moment."""
    import signal

    total, names = shop.options.interrupts, list(COMMANDS)
    for words, number, twice, wanted in (
        ("SIGINT", signal.SIGINT, False, total),
        ("SIGTERM", signal.SIGTERM, False, -(-total // 4)),
        ("SIGINT twice", signal.SIGINT, True, -(-total // 6)),
    ):

        def trial(folder: Path, rng: random.Random) -> str | None:
            name = rng.choice(names)
            return faults_ends.stop(
                *(name, folder, shop.references[name], rng),
                cache=shop.cache,
                number=number,
                twice=twice,
            )

        found, wrong = attempts(shop, words, trial, wanted=wanted)
        yield Row(words, Counter(found), wrong)


def computing(shop: Workshop) -> Iterator[Row]:
    """Numbers that are not finite, and memory that does not suffice."""
    for words, trial in faults_computing.TRIALS.items():
        given = partial(_without_random, partial(trial, cache=shop.cache))
        found, wrong = attempts(shop, words, given, wanted=1)
        yield Row(words, Counter(found), wrong, equal=False)


def _without_random(trial: Callable[..., Any], folder: Path, rng: random.Random) -> Any:
    del rng
    return trial(folder)


def files(shop: Workshop) -> Iterator[Row]:
    """Disks and files."""
    adam, coarse = shop.references["Adam"], shop.references["coarse to fine"]
    given = {"cache": shop.cache}
    plain: dict[str, tuple[Callable[..., Any], int, bool]] = {}
    for name in faults_files.DAMAGED:
        damaged = partial(faults_files.newest_damaged, name=name)
        plain[f"{name} of the newest checkpoint damaged"] = (damaged, 4, True)
    plain["all checkpoints damaged"] = (faults_files.all_damaged, 1, False)
    for words, (trial, wanted, equal) in plain.items():

        def any_damage(folder: Path, rng: random.Random) -> str:
            return trial(folder, adam, rng, **given)

        found, wrong = attempts(shop, words, any_damage, wanted=wanted)
        yield Row(words, Counter(found), wrong, equal=equal)
    others: dict[str, tuple[Callable[..., Any], Reference, bool]] = {
        "resume with other weights": (faults_files.other_weights, adam, False),
        "resume by another version": (faults_files.other_version, adam, False),
        "compiled programs cut off": (faults_files.programs_cut, adam, True),
        "checkpoints removed meanwhile": (faults_files.checkpoints_lost, adam, True),
    }
    if faults_files.can_mount(shop.work):
        full, read_only = faults_files.fill, faults_files.make_read_only
        disk, batch = faults_files.output_disk, shop.references["batch"]
        others |= {
            "disk of the checkpoints full": (faults_files.checkpoints_disk_full, adam, True),
            "the same, from the start": (faults_files.checkpoints_disk_full_before, adam, False),
            "disk of previews and output full": (partial(disk, spoil=full), coarse, True),
            "the same, without checkpoints": (partial(disk, spoil=full, kept=False), coarse, True),
            "the same, of a batch": (partial(disk, spoil=full, name="batch"), batch, True),
            "outputs' disk becomes read-only": (partial(disk, spoil=read_only), coarse, True),
            "outputs' disk is read-only": (faults_files.read_only_before, adam, False),
        }
    else:
        print("full and read-only disks are left out: this user may not mount any")
    for words, (trial, reference, equal) in others.items():
        given_trial = partial(trial, reference=reference, **given)
        found, wrong = attempts(shop, words, partial(_without_random, given_trial), wanted=1)
        yield Row(words, Counter(found), wrong, equal=equal)


PARTS: dict[str, Callable[[Workshop], Iterator[Row]]] = {
    "kills": kills,
    "signals": signals,
    "computing": computing,
    "files": files,
}


def _cells(row: Row) -> tuple[str, ...]:
    """A row of the table as texts; of kills the moments are counted, not the runs."""
    ends = ("resumed", "anew")
    moments = row.counts if not any(end in row.counts for end in ends) else None
    count = sum(row.counts.values())
    if moments is None:
        count -= sum(row.counts[end] for end in ends)
    came = ", ".join(
        f"{number} {words}" if count > 1 else words for words, number in row.counts.most_common()
    )
    equal = "no" if row.wrong else "yes" if row.equal else ""
    return row.fault, str(count), came or "-", equal or "-"


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
