"""Compare a run from coarse to fine with a run at one scale that takes the same time.

    python scripts/benchmarks scales --content a.jpg b.jpg --style c.jpg d.jpg -o sheet.png

Each content image is stylized with the style image at the same position, first from coarse to fine,
then at one scale until its steps have taken as many seconds (without compilation). The losses at
the full size are printed, and a numbered sheet with both images is written for each pair.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from nst_jax.config import Config, get_preset
from nst_jax.images import contact_sheet, load_image, save_image
from nst_jax.transfer import Progress, Result, stylize
from nst_jax.weights import find_weights, load_weights


class Clock:
    """A callback that adds up the seconds of the steps and stops at a limit."""

    def __init__(self, limit: float = float("inf")):
        self.limit, self.seconds, self.before = limit, 0.0, 0

    def __call__(self, progress: Progress) -> bool:
        self.seconds += progress.seconds_per_step * (progress.step - self.before)
        self.before = progress.step
        return self.seconds < self.limit


def compare(run, config: Config) -> tuple[Result, Result, float]:
    """The results from coarse to fine and at one scale, and the seconds of either."""
    clock = Clock()
    coarse = run(config=config, callback=clock)
    one = {"min_size": None, "scale_factor": Config().pyramid.scale_factor, "scale_steps": ()}
    alone = config.but(steps=100_000, **one)
    fine = run(config=alone, callback=Clock(clock.seconds))
    return coarse, fine, clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--content", nargs="+", required=True)
    parser.add_argument("--style", nargs="+", required=True)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--min-size", type=int, default=256)
    parser.add_argument("--scale-factor", type=float, default=2.0)
    parser.add_argument("--scale-steps", type=int, nargs="*", default=[100, 60])
    parser.add_argument("--steps", type=int, default=30, help="steps of the last scale")
    parser.add_argument("--preset", default="neural-style")
    parser.add_argument("--model", choices=["vgg19", "vgg19-slim"])
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()

    found = find_weights(model=options.model)
    if found is None:
        parser.error("no weights on this machine: run 'nst-jax weights fetch'")
    weights = load_weights(found)
    config = get_preset(options.preset).config.but(
        steps=options.steps,
        min_size=options.min_size,
        scale_factor=options.scale_factor,
        scale_steps=tuple(options.scale_steps),
    )
    print(f"{weights.info.name}, {options.preset}, {options.size} px")
    print(
        f"{'pair':<40} {'seconds':>8} {'coarse to fine':>15} {'one scale':>11} {'steps':>6} ratio"
    )
    for number, files in enumerate(zip(options.content, options.style, strict=True), start=1):
        content, style = (load_image(path, size=options.size) for path in files)
        run = partial(stylize, weights.variables, content, [style])
        coarse, fine, seconds = compare(run, config)
        name = ", ".join(Path(path).stem for path in files)
        print(
            f"{name:<40} {seconds:>8.1f} {coarse.loss:>15.4g} {fine.loss:>11.4g} "
            f"{len(fine.history.loss):>6} {coarse.loss / fine.loss:.2f}",
            flush=True,
        )
        sheet = contact_sheet(
            [np.asarray(coarse.image), np.asarray(fine.image)],
            labels=[f"{name}: coarse to fine", f"one scale, {seconds:.0f} s"],
            columns=2,
        )
        save_image(options.output.with_stem(f"{options.output.stem}_{number}"), sheet)


if __name__ == "__main__":
    main()
