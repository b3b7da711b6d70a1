"""Runs on disks that are full or read-only. They mount small disks, which only root may do."""

import subprocess
import time
from contextlib import contextmanager, suppress

import pytest
from helpers.faulty_runs import (
    COMMANDS,
    FOLDER,
    RESUME,
    STEPS,
    check_refused,
    check_same,
    draw_inputs,
    find_checkpoints,
    results,
    wait,
    wait_for_checkpoint,
)

pytestmark = [pytest.mark.campaign, pytest.mark.optimized]
MIB = 2**20


def mount(*words):
    subprocess.run(["mount", *words], check=True, capture_output=True)


@contextmanager
def small_disk(folder, *, size=MIB):
    """Mount a file system of this many bytes in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount disks")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    """Fill a disk to its last byte."""
    with suppress(OSError), open(folder / "filling", "ab", buffering=0) as file:
        while True:
            file.write(bytes(512))


def make_read_only(folder):
    """Make a disk read-only, as soon as no file on it is open for writing."""
    while True:
        with suppress(subprocess.CalledProcessError):
            return mount("-o", "remount,ro", str(folder))
        time.sleep(0.001)


def free(folder):
    """Undo ``fill`` or ``make_read_only``."""
    mount("-o", f"remount,rw,size={8 * MIB}", str(folder))
    (folder / "filling").unlink(missing_ok=True)


def to_disk(words):
    """A command whose outputs are in the folder ``disk``."""
    moved = {name: f"disk/{name}" for name in ("out.png", "out.gif", "out")}
    return [moved.get(word, word) for word in words]


def test_a_run_continues_while_the_disk_of_its_checkpoints_is_full(workshop, folder):
    reference = workshop.reference("Adam").results
    draw_inputs(folder)
    place = folder / FOLDER
    with small_disk(place):
        process = workshop.start(COMMANDS["Adam"], folder)
        wait_for_checkpoint(process, 3)
        words = f"cannot write a checkpoint to {FOLDER} (No space left"
        while process.running() and words not in process.log.read_text():
            fill(place)  # again and again: removing an old checkpoint makes room
        code, log = wait(process)
        if words not in log and find_checkpoints(folder)[-1].name.endswith(f"-{STEPS:08}"):
            pytest.skip("all checkpoints were written before the disk was full")
        assert code == 0 and words in log, log
        free(place)
        check_same(folder, reference)
        assert find_checkpoints(folder), "the checkpoints from before are gone"
        assert workshop.run(RESUME, folder).code == 0
        check_same(folder, reference)


def test_a_run_that_cannot_write_does_not_start(workshop, folder):
    draw_inputs(folder)
    with small_disk(folder / FOLDER, size=8192):
        ended = workshop.run(COMMANDS["Adam"], folder)
        check_refused(ended, "cannot write a checkpoint", folder)
    with small_disk(folder / "disk"):
        make_read_only(folder / "disk")
        ended = workshop.run(to_disk(COMMANDS["Adam"]), folder)
        check_refused(ended, "Read-only file system", folder)


@pytest.mark.parametrize(
    "name, spoil", [("coarse to fine", fill), ("batch", fill), ("coarse to fine", make_read_only)]
)
def test_a_result_that_cannot_be_written_is_written_by_resume(workshop, folder, name, spoil):
    reference = workshop.reference(name).results
    draw_inputs(folder)
    disk = folder / "disk"
    with small_disk(disk):
        process = workshop.start(to_disk(COMMANDS[name]), folder)
        if name == "batch":
            while process.running() and not process.stepping():
                time.sleep(0.002)
        else:
            wait_for_checkpoint(process, 5)
        spoil(disk)
        code, log = wait(process)
        assert code == 2 and "cannot write" in log, log
        free(disk)
        assert workshop.run(RESUME, folder).code == 0
        found = {path.removeprefix("disk/"): value for path, value in results(folder).items()}
        for path, value in reference.items():
            if not path.startswith("out_"):  # lost previews are not made again
                assert found[path] == value, path
