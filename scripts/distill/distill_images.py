"""The images that slim weights are trained on: real, procedural, and from optimisations.

Contract: real images are uint8 RGB ``[H, W, 3]``, crops float32 around [0, 1], ``[side, side, 3]``,
NumPy; randomness comes from a generator that is passed in.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from distill_state import Options
from distillation import POOLINGS
from PIL import Image
from procedural_images import draw_image

from nst_jax.config import get_preset
from nst_jax.errors import InputError
from nst_jax.transfer import Callback, Progress, stylize

EVERY = 5  # an optimisation may keep its image at multiples of this many steps
# Photographs in installed packages; weights/README.md names their free licences.
PACKAGED = {
    "skimage": "data/{}",
    "sklearn": "datasets/images/{}",
}
PACKAGED_NAMES = {
    "skimage": (
        "astronaut.png brick.png chelsea.png coffee.png grass.png gravel.png "
        "hubble_deep_field.jpg ihc.png motorcycle_left.png retina.jpg rocket.jpg"
    ).split(),
    "sklearn": ["china.jpg", "flower.jpg"],
}
LONGEST = 800  # larger images are reduced: strokes and details are learned at several scales


def packaged_images() -> list[Path]:
    """The colour photographs of scikit-image and scikit-learn, if these are installed."""
    found = []
    for package, names in PACKAGED_NAMES.items():
        if (spec := find_spec(package)) and spec.origin:
            folder = Path(spec.origin).parent
            found += [folder / PACKAGED[package].format(name) for name in names]
    return [path for path in found if path.is_file()]


def read_images(places: Sequence[Path]) -> list[np.ndarray]:
    """Read image files and all image files in folders, in the order of their names.

    Raises:
      InputError: if a place does not exist.
    """
    files: list[Path] = []
    for place in places:
        if not place.exists():
            raise InputError(f"{place} does not exist: expected an image, or a folder of images")
        inside = (path for path in sorted(place.rglob("*")) if path.is_file())
        files += inside if place.is_dir() else [place]
    images = []
    for path in files:
        try:
            with Image.open(path) as image:
                image = image.convert("RGB")
        except OSError:
            continue  # folders of packages also hold other files
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        if min(image.size) >= 64:
            images.append(np.asarray(image, np.uint8))
    return images


def vary_colours(rng: np.random.Generator, crop: np.ndarray) -> np.ndarray:
    """Vary contrast, brightness, saturation and channels; sometimes permute or invert them."""
    if rng.random() < 0.15:
        return crop
    mean = crop.mean((0, 1), keepdims=True)
    crop = mean + (crop - mean) * rng.uniform(0.4, 1.6) + rng.normal(0, 0.08)
    grey = crop.mean(2, keepdims=True)
    crop = grey + (crop - grey) * rng.uniform(0.2, 1.8)
    crop = crop * (1 + rng.normal(0, 0.12, 3))
    if rng.random() < 0.2:
        crop = crop[..., rng.permutation(3)]
    if rng.random() < 0.05:
        crop = 1 - crop
    return crop


def crop_image(rng: np.random.Generator, image: np.ndarray, *, side: int) -> np.ndarray:
    """Take a square crop at a random scale, angle and mirroring, with varied colours.

    Args:
      rng: random numbers.
      image: ``[H, W, 3]``, uint8 in [0, 255] or floating-point around [0, 1].
      side: of the crop, in pixels.

    Returns:
      ``[side, side, 3]``, clipped to [-0.3, 1.3]: images of an optimisation leave [0, 1] a little.
    """
    height, width = image.shape[:2]
    span = min(height, width, side * np.exp(rng.uniform(np.log(0.7), np.log(4))))
    factor = span / side
    angle = rng.normal(0, 0.15) if rng.random() < 0.4 else 0.0
    x, y = rng.uniform(0, width - span) + span / 2, rng.uniform(0, height - span) + span / 2
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    mirror = -1 if rng.random() < 0.5 else 1
    source = image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1)
    planes = [Image.fromarray(np.ascontiguousarray(source[..., c])) for c in range(3)]
    ratio_x = ratio_y = 1.0
    if factor > 1.2:  # reduce first to avoid aliasing
        small = max(side, round(width / factor)), max(side, round(height / factor))
        ratio_x, ratio_y = small[0] / width, small[1] / height
        planes = [plane.resize(small, Image.Resampling.BILINEAR) for plane in planes]
    a, b = mirror * cos * ratio_x, sin * ratio_x
    d, e = -mirror * sin * ratio_y, cos * ratio_y
    c, f = x * ratio_x - (a + b) * side / 2, y * ratio_y - (d + e) * side / 2
    sampling = Image.Resampling.BICUBIC if factor < 1 else Image.Resampling.BILINEAR
    affine = Image.Transform.AFFINE
    sampled = [
        plane.transform((side, side), affine, (a, b, c, d, e, f), sampling) for plane in planes
    ]
    crop = np.stack([np.asarray(plane) for plane in sampled], -1)
    return np.clip(vary_colours(rng, crop), -0.3, 1.3).astype(np.float32)


def plain_crop(rng: np.random.Generator, image: np.ndarray, *, side: int) -> np.ndarray:
    """Take a square crop of unchanged pixels, mirrored half of the time; see ``crop_image``."""
    height, width = image.shape[:2]
    y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    crop = image[y : y + side, x : x + side]
    return np.asarray(crop[:, ::-1] if rng.random() < 0.5 else crop, np.float32)


class Images(NamedTuple):
    """Real and procedural images, uint8."""

    real: list[np.ndarray]
    drawn: list[np.ndarray]


def gather_images(options: Options) -> Images:
    """Read the real images and draw the procedural ones.

    Raises:
      InputError: if there are no real images.
    """
    real = read_images([*packaged_images(), *options.images])
    if not real:
        raise InputError("no real images: install scikit-image, or name --images")
    rng = np.random.default_rng([options.seed, 1])
    return Images(real, [draw_image(rng) for _ in range(options.procedural)])


def varied_crop(images: Images, rng: np.random.Generator, *, side: int) -> np.ndarray:
    """Take a varied crop of a real (70 %) or procedural image."""
    group = images.real if rng.random() < 0.7 else images.drawn
    return crop_image(rng, group[rng.integers(len(group))], side=side)


def _crop(
    images: Images, policy: list[np.ndarray], rng: np.random.Generator, *, side: int
) -> np.ndarray:
    draw = rng.random()
    if not policy or draw > 0.5:
        return varied_crop(images, rng, side=side)
    # Half of them are recent: what fooled an earlier student is less informative.
    group = policy[-60:] if draw < 0.25 else policy
    # Unchanged pixels: fine patterns fool a student, and a change of scale would remove them.
    return plain_crop(rng, group[rng.integers(len(group))], side=side)


def make_batch(
    options: Options, images: Images, policy: list[np.ndarray], *, step: int
) -> tuple[np.ndarray, str, np.ndarray]:
    """Make the crops, the pooling and the sampling offset of a step, from its number only.

    Args:
      options: of the run.
      images: real and procedural images.
      policy: images of optimisations, the newest last; half of the crops come from them.
      step: number of the step.
    """
    rng = np.random.default_rng([options.seed, 2, step])
    pooling = POOLINGS[int(rng.random() < options.average_share)]
    crops = [_crop(images, policy, rng, side=options.crop) for _ in range(options.batch)]
    return np.stack(crops), pooling, rng.integers(0, 4, 2)


def policy_images(
    options: Options, images: Images, student: Any, *, number: int
) -> list[np.ndarray]:
    """Collect images that optimisations with the student pass through, early and late.

    Content and style are varied crops. The objective is that of ``neural-style`` with a random
    style weight and either pooling, from the content or from noise.

    Returns:
      Images with 1.5 times the side of a crop, float16.
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
            # Progress is also reported at other steps, by the clock.
            image = np.asarray(progress.image)
            if progress.step in wanted and np.isfinite(image).all():
                kept.append(np.clip(image, -0.3, 1.3).astype(np.float16))

        key = jax.random.fold_in(jax.random.key(options.seed), options.policy_runs * number + run)
        callback = Callback(keep, EVERY)
        stylize(student, content, style, config=config, key=key, callback=callback)
    return kept
