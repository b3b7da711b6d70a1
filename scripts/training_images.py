"""Real images to train on, and crops of images, strongly varied.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``, NumPy; randomness comes from a
generator that is passed in.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from nst_jax.errors import InputError

# Photographs inside installed packages, with free licences (named in weights/README.md).
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
LONGEST = 800  # what is beyond it is reduced: strokes and details are learned at several scales


def packaged_images() -> list[Path]:
    """The colour photographs of scikit-image and scikit-learn, as far as these are installed."""
    found = []
    for package, names in PACKAGED_NAMES.items():
        if (spec := find_spec(package)) and spec.origin:
            folder = Path(spec.origin).parent
            found += [folder / PACKAGED[package].format(name) for name in names]
    return [path for path in found if path.is_file()]


def read_images(places: Sequence[Path]) -> list[np.ndarray]:
    """Read image files, and all of those in folders, in the order of names.

    Raises:
      InputError: where a place does not exist.
    """
    files: list[Path] = []
    for place in places:
        if not place.exists():
            raise InputError(f"{place} does not exist: expected an image, or a folder of them")
        inside = (path for path in sorted(place.rglob("*")) if path.is_file())
        files += inside if place.is_dir() else [place]
    images = []
    for path in files:
        try:
            with Image.open(path) as image:
                image = image.convert("RGB")
        except OSError:
            continue  # folders of packages hold other files too
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        if min(image.size) >= 64:
            images.append(np.asarray(image, np.uint8))
    return images


def vary_colours(rng: np.random.Generator, crop: np.ndarray) -> np.ndarray:
    """Contrast, brightness, saturation, channel factors, a turn of the hue, seldom inverted."""
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
    """A square crop at a random scale, turn and mirroring, with varied colours.

    Args:
      rng: the randomness.
      image: ``[H, W, 3]``, uint8 in [0, 255], or floating-point.
      side: of the crop, in pixels.

    Returns:
      ``[side, side, 3]``. Images of an optimisation leave [0, 1] a little, so crops are clipped
      to [-0.3, 1.3] only.
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
    if factor > 1.2:  # reduce first, or the sampling would alias
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
    """A square crop of the pixels as they are, perhaps mirrored; as ``crop_image`` else."""
    height, width = image.shape[:2]
    y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    crop = image[y : y + side, x : x + side]
    return np.asarray(crop[:, ::-1] if rng.random() < 0.5 else crop, np.float32)
