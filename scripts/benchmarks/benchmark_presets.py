"""Time a step of one preset against a step of another, in turn in one process.

    python scripts/benchmarks presets                   the default preset against fast
    python scripts/benchmarks presets --model vgg19 --size 512 --steps 2 \
        --content photo.jpg --style painting.jpg
"""

import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import tyro

from nst_jax.config import DEFAULT_PRESET, get_preset
from nst_jax.errors import InputError
from nst_jax.images import load_image
from nst_jax.optim import run
from nst_jax.system import keep_freed_memory, set_threads
from nst_jax.transfer import check_inputs, make_problem
from nst_jax.transfer.problem import start
from nst_jax.weights import find_weights, load_weights

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time a step of one preset against a step of another.

    Attributes:
      preset: The preset to time.
      against: The preset to compare with.
      model: vgg19 or vgg19-slim; by default as the command line chooses.
      size: Longer side in pixels.
      content: Content image.
      style: Style image.
      rounds: Rounds; each preset is timed once in a round.
      steps: Steps in a round.
    """

    preset: str = DEFAULT_PRESET
    against: str = "fast"
    model: Literal["vgg19", "vgg19-slim"] | None = None
    size: int = 384
    content: Path = IMAGES / "demo_content.jpg"
    style: Path = IMAGES / "demo_style.jpg"
    rounds: int = 9
    steps: int = 10


def main(options: Options) -> int:
    """Measure; print the seconds of a step and the median of the ratios of all rounds."""
    path = find_weights(model=options.model)
    if path is None:
        raise InputError("no weights found: set NST_JAX_WEIGHTS or run 'nst-jax weights fetch'")
    weights = load_weights(path)
    content, style = (load_image(p, size=options.size) for p in (options.content, options.style))
    takes, states, seconds = {}, {}, {}
    for name in (options.preset, options.against):
        config = get_preset(name).config
        inputs = check_inputs(content, [style], config=config)
        problem = make_problem(weights.variables, inputs, config=config)
        given = {"variables": problem.variables, "targets": problem.targets}
        takes[name] = partial(run, problem.solver, num_steps=options.steps, **given)
        initial = problem.initial(config, None, None)
        state = start(problem.solver, initial, problem.variables, problem.targets)
        states[name] = jax.block_until_ready(takes[name](state))[0]  # compiles
        seconds[name] = []
    for _ in range(options.rounds):
        for name, take in takes.items():
            started = time.perf_counter()
            states[name] = jax.block_until_ready(take(states[name]))[0]
            seconds[name].append((time.perf_counter() - started) / options.steps)
    print(f"{weights.info.name}, {content.shape[1]}x{content.shape[0]} px, seconds per step:")
    for name, found in seconds.items():
        low, high = min(found), max(found)
        print(f"  {name:24}{statistics.median(found):8.4f} ({low:.4f} to {high:.4f})")
    pairs = zip(seconds[options.preset], seconds[options.against], strict=True)
    ratios = [ours / theirs for ours, theirs in pairs]
    print(
        f"  ratio {statistics.median(ratios):.3f}, the median of {options.rounds} rounds "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )
    return 0


if __name__ == "__main__":
    set_threads()  # as the command does
    keep_freed_memory()
    try:
        sys.exit(main(tyro.cli(Options)))
    except InputError as error:
        sys.exit(f"benchmarks: error: {error}")
