"""Damaged checkpoints and images in separate processes."""

import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.checkpoints import bases, damage, take_base  # noqa: F401
from helpers.damage import FORMATS, damaged, image_bytes
from helpers.fuzzing import Ended, check_ended, listing
from helpers.images import smooth_image

from nst_jax.images import save_image


def run(line, folder):
    """Run a command in a process, with a time limit."""
    environment = os.environ | {"NST_JAX_CACHE": str(folder.parent / "cache")}
    environment.pop("NST_JAX_WEIGHTS", None)
    done = subprocess.run(
        [sys.executable, "-m", "nst_jax", *line],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ended(done.returncode, done.stderr)


def image_case(folder, number, weights):
    """A command with a damaged image as content or style."""
    folder.mkdir()
    save_image(folder / "content.png", smooth_image(18, 24, seed=1))
    data = damaged(image_bytes(FORMATS[number % len(FORMATS)]), seed=number)
    (folder / "damaged").write_bytes(data)
    images = ["content.png", "damaged"][:: random.Random(number).choice((1, -1))]
    layers = "--content-layers relu2_1 --style-layers relu1_1 --preset neural-style".split()
    sizes = ["--size", "24", "--steps", "1", "--weights", str(weights), "-o", "out.png"]
    return ["stylize", images[0], "--style", images[1], *layers, *sizes]


def checkpoint_case(folder, number, bases):
    rng = random.Random(number)
    take_base(bases, folder, rng)
    damage(folder / "ck", rng)
    return ["resume", "ck"]


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(2, marks=pytest.mark.slow, id="some"),
        pytest.param(33, marks=pytest.mark.campaign, id="many"),
    ],
)
def test_as_processes(bases, tmp_path, tiny_weights_file, count):
    cases = [(checkpoint_case, number, bases) for number in range(900, 900 + count)]
    cases += [(image_case, number, tiny_weights_file) for number in range(count)]

    def one(numbered):
        number, (make, *given) = numbered
        folder = tmp_path / f"case{number}"
        line = make(folder, *given)
        before = listing(folder)
        ended = run(line, folder)
        try:
            check_ended(ended, parser=True)
            assert not [name for name in listing(folder) if name.split("/")[-1].startswith(".")]
            if ended.code == 2 and "out/" not in " ".join(listing(folder)):
                kept = {path: data for path, data in listing(folder).items() if path[:3] != "ck/"}
                assert kept == {path: data for path, data in before.items() if path[:3] != "ck/"}
        except AssertionError as error:
            return f"{line} {given[0] if make is checkpoint_case else ''}: {error}"
        finally:
            shutil.rmtree(folder)
        return ""

    with ThreadPoolExecutor(2) as pool:
        wrong = [words for words in pool.map(one, enumerate(cases)) if words]
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong)
