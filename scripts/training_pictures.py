"""Pictures to train on: real ones, procedural ones, and crops of both, strongly varied.

Contract: pictures are float32 RGB in [0, 1], ``[H, W, 3]``, NumPy; randomness comes from a
generator that is passed in.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

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


def packaged_pictures() -> list[Path]:
    """The colour photographs of scikit-image and scikit-learn, as far as these are installed."""
    found = []
    for package, names in PACKAGED_NAMES.items():
        if (spec := find_spec(package)) and spec.origin:
            folder = Path(spec.origin).parent
            found += [folder / PACKAGED[package].format(name) for name in names]
    return [path for path in found if path.is_file()]


def read_pictures(places: Sequence[Path]) -> list[np.ndarray]:
    """Read picture files, and all of those in folders, in the order of names.

    Raises:
      InputError: where a place does not exist.
    """
    files: list[Path] = []
    for place in places:
        if not place.exists():
            raise InputError(f"{place} does not exist: expected a picture, or a folder of them")
        inside = (path for path in sorted(place.rglob("*")) if path.is_file())
        files += inside if place.is_dir() else [place]
    pictures = []
    for path in files:
        try:
            with Image.open(path) as image:
                image = image.convert("RGB")
        except OSError:
            continue  # folders of packages hold other files too
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        if min(image.size) >= 64:
            pictures.append(np.asarray(image, np.uint8))
    return pictures


def fractal_noise(rng: np.random.Generator, side: int, *, channels: int = 1) -> np.ndarray:
    """Noise whose amplitude falls with a random power of the frequency, in [0, 1]."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    stretch = rng.uniform(0.3, 3)  # along one axis: grain, clouds, hair
    tilted = np.hypot(np.fft.fftfreq(side)[:, None] * stretch, np.fft.rfftfreq(side)[None])
    tilted[0, 0] = 1
    amplitude = tilted ** -rng.uniform(0.4, 2.2)
    shape = (channels, *frequency.shape)
    spectrum = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) * amplitude
    noise = np.fft.irfft2(spectrum, (side, side)).transpose(1, 2, 0)
    noise -= noise.min((0, 1))
    return noise / (noise.max((0, 1)) + 1e-9)


def palette(rng: np.random.Generator, colours: int) -> np.ndarray:
    """Colours around a few hues, more or less saturated."""
    base = rng.uniform(0, 1, (rng.integers(1, 5), 3))
    spread = rng.uniform(0.02, 0.35)
    chosen = base[rng.integers(0, len(base), colours)] + rng.normal(0, spread, (colours, 3))
    grey = chosen.mean(1, keepdims=True)
    return np.clip(grey + (chosen - grey) * rng.uniform(0.2, 1.3), 0, 1)


def _rgb(colour: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in np.clip(colour * 255, 0, 255))


def _ground(rng: np.random.Generator, side: int) -> np.ndarray:
    """A background: a gradient between colours along smooth noise."""
    mix = fractal_noise(rng, side, channels=1) if rng.random() < 0.6 else _ramp(rng, side)
    first, second = palette(rng, 2)
    return first * (1 - mix) + second * mix


def _ramp(rng: np.random.Generator, side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    angle = rng.uniform(0, 2 * np.pi)
    return np.clip(0.5 + (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)), 0, 1)[..., None]


def dead_leaves(rng: np.random.Generator, side: int) -> np.ndarray:
    """Shapes over shapes with sizes of a power law: the edges and occlusions of photographs."""
    image = Image.fromarray((_ground(rng, side) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    colours = palette(rng, 40)
    smallest, largest = rng.uniform(2, 6), side * rng.uniform(0.1, 0.4)
    for _ in range(rng.integers(100, 900)):
        u = rng.random()
        radius = (smallest**-2 + u * (largest**-2 - smallest**-2)) ** -0.5
        x, y = rng.uniform(-radius, side + radius, 2)
        colour = _rgb(colours[rng.integers(40)])
        corners = rng.integers(0, 9)
        if corners < 3:
            draw.ellipse(
                [x - radius, y - radius * rng.uniform(0.3, 1), x + radius, y + radius], colour
            )
        else:
            turns = np.sort(rng.uniform(0, 2 * np.pi, corners))
            outline = [(x + radius * np.cos(t), y + radius * np.sin(t)) for t in turns]
            draw.polygon(outline, colour)
    return np.asarray(image, np.float32) / 255


def strokes(rng: np.random.Generator, side: int) -> np.ndarray:
    """Brush strokes along a smooth field of directions, coarse to fine, with bristles."""
    plan = fractal_noise(rng, side, channels=3)
    field = fractal_noise(rng, side)[..., 0] * rng.uniform(2, 12)
    colours = palette(rng, 24)
    image = Image.fromarray((_ground(rng, side) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    own_colours = rng.random() < 0.5
    for width in sorted(rng.integers(1, 18, 3), reverse=True):
        length = width * rng.uniform(2, 9)
        for _ in range(int(0.6 * side * side / (width * length + 20))):
            x, y = rng.uniform(0, side, 2)
            tone = (
                plan[int(y), int(x)] if own_colours else colours[int(plan[int(y), int(x), 0] * 23)]
            )
            points = [(x, y)]
            for _ in range(5):
                angle = field[int(y) % side, int(x) % side]
                x, y = x + np.cos(angle) * length / 5, y + np.sin(angle) * length / 5
                points.append((x, y))
            for bristle in range(max(1, width // 3)):
                shift = (bristle - width / 6) * 3
                line = [(a + shift, b + shift / 2) for a, b in points]
                shade = np.clip(tone + rng.normal(0, 0.06), 0, 1)
                draw.line(line, _rgb(shade), width=max(1, min(int(width), 4)), joint="curve")
    return np.asarray(image, np.float32) / 255


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Stripes, checks, rings or bent waves, with colours by a palette."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    bend = fractal_noise(rng, side)[..., 0] * rng.uniform(0, 60)
    waves = []
    for _ in range(rng.integers(1, 4)):
        period, angle = rng.uniform(3, 40), rng.uniform(0, np.pi)
        along = np.cos(angle) * x + np.sin(angle) * y + bend
        if rng.random() < 0.3:
            along = np.hypot(x - rng.uniform(0, side), y - rng.uniform(0, side)) + bend
        wave = np.sin(2 * np.pi * along / period)
        waves.append(np.sign(wave) if rng.random() < 0.4 else wave)
    height = np.prod(waves, 0) if rng.random() < 0.5 else np.mean(waves, 0)
    colours = palette(rng, 6)
    position = (height + 1) / 2 * 4.999
    low = position.astype(int)
    part = (position - low)[..., None]
    return colours[low] * (1 - part) + colours[low + 1] * part


def shapes(rng: np.random.Generator, side: int) -> np.ndarray:
    """A few lines, boxes, letters-like marks and discs on a smooth ground."""
    image = Image.fromarray((_ground(rng, side) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for colour in palette(rng, int(rng.integers(5, 60))):
        x, y, u, v = rng.uniform(0, side, 4)
        size = rng.uniform(3, side / 4)
        box = [x, y, x + size, y + size * rng.uniform(0.2, 2)]
        kind, width = rng.integers(5), int(rng.integers(1, 8))
        if kind == 0:
            draw.line([x, y, u, v], _rgb(colour), width=width)
        elif kind == 1:
            draw.rectangle(box, _rgb(colour))
        elif kind == 2:
            draw.ellipse(box, _rgb(colour))
        elif kind == 3:
            draw.arc(box, rng.uniform(0, 360), rng.uniform(0, 360), _rgb(colour), width=width)
        else:
            draw.rectangle(box, outline=_rgb(colour), width=width)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2)))
    return np.asarray(image, np.float32) / 255


KINDS = (dead_leaves, strokes, texture, shapes)


def draw_picture(rng: np.random.Generator, *, side: int = 384) -> np.ndarray:
    """A procedural picture: one of the kinds, or a blend of two by a mask, with some grain."""
    first = KINDS[rng.integers(len(KINDS))](rng, side)
    choice = rng.random()
    if choice < 0.15:
        first = fractal_noise(rng, side, channels=3)
    elif choice < 0.45:
        second = KINDS[rng.integers(len(KINDS))](rng, side)
        mask = np.clip((fractal_noise(rng, side) - 0.5) * rng.uniform(2, 40) + 0.5, 0, 1)
        first = first * mask + second * (1 - mask)
    if rng.random() < 0.5:
        light = fractal_noise(rng, side)
        first = first * (1 - rng.uniform(0, 0.6) * light)
    if rng.random() < 0.4:
        first = first + rng.normal(0, rng.uniform(0, 0.06), first.shape)
    return (np.clip(first, 0, 1) * 255).astype(np.uint8)


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


def crop_picture(rng: np.random.Generator, picture: np.ndarray, *, side: int) -> np.ndarray:
    """A square crop at a random scale, turn and mirroring, with varied colours.

    Args:
      rng: the randomness.
      picture: ``[H, W, 3]``, uint8 in [0, 255], or floating-point.
      side: of the crop, in pixels.

    Returns:
      ``[side, side, 3]``. Pictures of an optimisation leave [0, 1] a little, so crops are clipped
      to [-0.3, 1.3] only.
    """
    height, width = picture.shape[:2]
    span = min(height, width, side * np.exp(rng.uniform(np.log(0.7), np.log(4))))
    factor = span / side
    angle = rng.normal(0, 0.15) if rng.random() < 0.4 else 0.0
    x, y = rng.uniform(0, width - span) + span / 2, rng.uniform(0, height - span) + span / 2
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    mirror = -1 if rng.random() < 0.5 else 1
    source = picture.astype(np.float32) / (255 if picture.dtype == np.uint8 else 1)
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


def plain_crop(rng: np.random.Generator, picture: np.ndarray, *, side: int) -> np.ndarray:
    """A square crop of the pixels as they are, perhaps mirrored; as ``crop_picture`` else."""
    height, width = picture.shape[:2]
    y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    crop = picture[y : y + side, x : x + side]
    return np.asarray(crop[:, ::-1] if rng.random() < 0.5 else crop, np.float32)
