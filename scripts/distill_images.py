"""What slim weights are trained on, step by step: crops of images, also of optimisations."""

from typing import Any, NamedTuple

import jax
import numpy as np
from distill_options import Options
from distillation import POOLINGS
from procedural_images import draw_image
from training_images import (
    crop_image,
    packaged_images,
    plain_crop,
    read_images,
)

from nst_jax.config import get_preset
from nst_jax.errors import InputError
from nst_jax.transfer import Callback, Progress, stylize

KEPT = 400  # images of optimisations
EVERY = 5  # steps of an optimisation at which its image may be kept


class Images(NamedTuple):
    """Real and procedural images, uint8."""

    real: list[np.ndarray]
    drawn: list[np.ndarray]


def gather_images(options: Options) -> Images:
    """Read the real images and draw the procedural ones.

    Raises:
      InputError: where there are no real ones.
    """
    real = read_images([*packaged_images(), *options.images])
    if not real:
        raise InputError("no real images: install scikit-image, or name --images")
    rng = np.random.default_rng([options.seed, 1])
    return Images(real, [draw_image(rng) for _ in range(options.procedural)])


def varied_crop(images: Images, rng: np.random.Generator, *, side: int) -> np.ndarray:
    """A varied crop of a real or procedural image."""
    group = images.real if rng.random() < 0.7 else images.drawn
    return crop_image(rng, group[rng.integers(len(group))], side=side)


def _crop(
    images: Images, policy: list[np.ndarray], rng: np.random.Generator, *, side: int
) -> np.ndarray:
    draw = rng.random()
    if not policy or draw > 0.5:
        return varied_crop(images, rng, side=side)
    # Half of them of late: what fooled an earlier student tells less.
    group = policy[-60:] if draw < 0.25 else policy
    # Pixel for pixel: what fools a student are fine patterns, which a change of scale removes.
    return plain_crop(rng, group[rng.integers(len(group))], side=side)


def make_batch(
    options: Options, images: Images, policy: list[np.ndarray], *, step: int
) -> tuple[np.ndarray, str, np.ndarray]:
    """Crops, pooling and sampling offset of a step, all by its number alone.

    Args:
      options: of the run.
      images: to take crops of.
      policy: images of optimisations, the latest last; half of the crops are of them.
      step: its number.
    """
    rng = np.random.default_rng([options.seed, 2, step])
    pooling = POOLINGS[int(rng.random() < options.average_share)]
    crops = [_crop(images, policy, rng, side=options.crop) for _ in range(options.batch)]
    return np.stack(crops), pooling, rng.integers(0, 4, 2)


def policy_images(
    options: Options, images: Images, student: Any, *, number: int
) -> list[np.ndarray]:
    """Images that optimisations under the student pass through, early and late.

    Contents and styles are varied crops; the objective is that of a preset with any style weight
    and either pooling, from the content or from noise.

    Returns:
      Images of 1.5 times the side of a crop, float16.
    """
    side = 3 * options.crop // 2
    rng = np.random.default_rng([options.seed, 3, number])
    kept: list[np.ndarray] = []
    for run in range(options.policy_runs):
        content, style = (np.clip(varied_crop(images, rng, side=side), 0, 1) for _ in range(2))
        config = get_preset("neural-style").config.but(
            steps=int(rng.choice([30, 60, 100])),
            init="noise" if rng.random() < 0.2 else "content",
            pooling=POOLINGS[int(rng.random() < 0.3)],
            style_weight=float(100 * np.exp(rng.normal())),
        )
        wanted = set(rng.integers(1, config.steps // EVERY + 1, 2) * EVERY) | {config.steps}

        def keep(progress: Progress, wanted: set[int] = wanted) -> None:
            # It is also called at other steps, by the clock.
            image = np.asarray(progress.image)
            if progress.step in wanted and np.isfinite(image).all():
                kept.append(np.clip(image, -0.3, 1.3).astype(np.float16))

        key = jax.random.fold_in(jax.random.key(options.seed), options.policy_runs * number + run)
        callback = Callback(keep, EVERY)
        stylize(student, content, style, config=config, key=key, callback=callback)
    return kept
