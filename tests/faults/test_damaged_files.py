"""Runs whose checkpoints or cached programs are damaged or removed."""

import random
import shutil

import pytest
from helpers.faulty_runs import (
    COMMANDS,
    FOLDER,
    RESUME,
    check_same,
    draw_inputs,
    find_checkpoints,
    results,
    wait,
    wait_for_checkpoint,
)

pytestmark = [pytest.mark.campaign, pytest.mark.optimized]


def damage(path, kind, rng):
    """Flip a bit of a file, cut it off, empty or remove it."""
    data = bytearray(path.read_bytes())
    if kind == "remove":
        return path.unlink()
    if kind == "bit":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data[: {"bit": len(data), "cut": rng.randrange(len(data))}.get(kind, 0)])


@pytest.mark.parametrize("kind", ["bit", "cut", "empty", "remove"])
@pytest.mark.parametrize("name", ["arrays.safetensors", "run.json", "manifest.json"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(workshop, folder, name, kind):
    rng = random.Random(f"{name} {kind}")
    workshop.killed_run(folder, checkpoints=rng.randint(3, 9))
    damage(find_checkpoints(folder)[-1] / name, kind, rng)
    code, log = workshop.run(RESUME, folder)
    assert code == 0 and "is damaged (" in log and "from the one before" in log, log
    check_same(folder, workshop.reference("Adam").results)


def test_damaged_programs_in_the_cache_are_compiled_again(workshop, folder):
    reference = workshop.reference("Adam")
    draw_inputs(folder)
    cache = folder.with_name("cache")
    shutil.copytree(workshop.cache, cache)
    programs = [path for path in cache.rglob("*-cache") if path.is_file()]
    assert programs
    for path in programs:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert workshop.run(COMMANDS["Adam"], folder, cache=cache).code == 0
    check_same(folder, reference.results)


def test_a_run_continues_without_its_removed_checkpoints(workshop, folder):
    draw_inputs(folder)
    process = workshop.start(COMMANDS["Adam"], folder)
    wait_for_checkpoint(process, 4)
    while (folder / FOLDER).exists():
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
    code, log = wait(process)
    assert code == 0 and "cannot write a checkpoint" in log, log
    assert results(folder) == workshop.reference("Adam").results
