"""Runs that are ended by SIGKILL or asked to stop at random moments, and then completed."""

import random
import re
import signal
import time

import pytest
from helpers.faulty_runs import (
    COMMANDS,
    FOLDER,
    RESUME,
    check_same,
    check_visible,
    draw_inputs,
    find_checkpoints,
    python_never_started,
    results,
    wait,
)

MOMENTS = ("any", "steps", "save", "writing")


def reach(process, reference, moment, rng):
    """Wait for a random time within a phase of a run; whether the process still runs."""
    written = process.folder / "out" if (process.folder / "out").is_dir() else process.folder
    # Files that are being written have names that begin with a dot.
    hidden = {"save": (process.folder / FOLDER, ".checkpoint-"), "writing": (written, ".")}
    match moment:
        case "any":
            time.sleep(rng.uniform(0, 0.9 * reference.seconds))
        case "steps":
            while process.running() and not process.stepping():
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.3 * reference.seconds))
        case _:
            place, prefix = hidden[moment]
            seen, wanted, last = 0, rng.randint(1, 12 if moment == "save" else 1), set()
            while process.running() and seen < wanted:
                names = {path.name for path in place.glob(f"{prefix}*")}
                seen, last = seen + len(names - last), names
                time.sleep(0.0002)
            time.sleep(rng.uniform(0, 0.004))
    return process.running()


def check_killed(workshop, name, folder, rng):
    """Kill a run one to three times, also while it is resumed, then complete it; the kills."""
    draw_inputs(folder)
    killed, reference = 0, workshop.reference(name)
    for _ in range(rng.choice((1, 1, 2, 3))):
        words = RESUME if find_checkpoints(folder) else COMMANDS[name]
        process = workshop.start(words, folder)
        if not reach(process, reference, rng.choice(MOMENTS), rng):
            assert wait(process).code == 0
            break
        process.kill()
        killed += 1
        check_visible(folder)
    if killed:
        workshop.complete(name, folder)
    return killed


@pytest.mark.campaign
@pytest.mark.optimized
@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_run_can_be_completed(workshop, tmp_path, name, seed):
    """About 75 kills in all; a run that ends before it is killed is tried again."""
    rng = random.Random(f"{seed} {name}")
    tries = range(4)
    assert any(check_killed(workshop, name, tmp_path / str(number), rng) for number in tries)


@pytest.mark.slow
def test_a_run_that_was_killed_at_a_checkpoint_is_resumed(workshop, folder):
    workshop.killed_run(folder, checkpoints=2)
    check_visible(folder)
    workshop.complete("Adam", folder)


def check_stopped(workshop, name, folder, rng, *, number):
    """Ask a run to stop, check what it leaves, and complete it; False if it had already ended."""
    draw_inputs(folder)
    reference = workshop.reference(name)
    process = workshop.start(COMMANDS[name], folder)
    if not reach(process, reference, rng.choice(MOMENTS[:3]), rng):
        wait(process)
        return False
    stepped = process.stepping()
    process.popen.send_signal(number)
    ended = wait(process)
    check_visible(folder)
    found = results(folder)
    if found == reference.results:  # it was at its last step, or later
        assert ended.code in (0, 128 + number, -number), ended
        return True
    # Before the program handles signals they end Python.
    early = not stepped and (ended.code == -number or python_never_started(ended.log))
    assert early or ended.code == 128 + number, ended
    if not found:
        assert not stepped, ended
    else:
        assert find_checkpoints(folder)
        if name == "batch":
            images = {key: value for key, value in found.items() if key.endswith(".png")}
            assert all(reference.results[key] == value for key, value in images.items())
        else:
            record, whole = found["out.json"], reference.results["out.json"]
            assert record["status"] in ("stopped", "done")
            losses = record["history"]["total"]
            assert losses == whole["history"]["total"][: len(losses)]
            newest = (find_checkpoints(folder)[-1] / "run.json").read_text()
            assert re.search(r'"step": (\d+)', newest)[1] == str(record["steps"])
    workshop.complete(name, folder)
    return True


@pytest.mark.campaign
@pytest.mark.optimized
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_asked_to_stop_can_be_completed(workshop, tmp_path, name, seed):
    number = signal.SIGTERM if seed == 4 else signal.SIGINT
    rng = random.Random(f"{seed} {name} {number}")
    folders = (tmp_path / str(attempt) for attempt in range(4))
    assert any(check_stopped(workshop, name, one, rng, number=number) for one in folders)


def test_the_checks_see_what_is_incomplete_or_different(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, image in ((one, "content.png"), (other, "style.png")):
        draw_inputs(folder)
        (folder / "out.png").write_bytes((folder / image).read_bytes())
    check_visible(one)
    check_same(one, results(one))
    with pytest.raises(AssertionError, match="out.png differs"):
        check_same(one, results(other))
    (one / ".out-12345678.png").touch()
    with pytest.raises(AssertionError, match="left over"):
        results(one)
    (other / "out.png").write_bytes((other / "out.png").read_bytes()[:-200])
    with pytest.raises(AssertionError, match="out.png is incomplete"):
        check_visible(other)
