"""Procedural images: dead leaves, brush strokes, textures, shapes, noise.

They train good low-level features, in any number. The functions in ``KINDS`` take ``(rng, side)``
and return a square image, floating-point RGB in [0, 1].
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def fractal_noise(rng: np.random.Generator, side: int, *, channels: int = 1) -> np.ndarray:
    """Noise in [0, 1] whose amplitude falls with a random power of the frequency."""
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
    """Overlapping shapes with sizes from a power law: edges and occlusions as in photographs."""
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
    """Stripes, checks, rings or bent waves in the colours of a palette."""
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
    """Lines, boxes, arcs and discs on a smooth background."""
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


def draw_image(rng: np.random.Generator, *, side: int = 384) -> np.ndarray:
    """Draw a uint8 image: one of the kinds, or two blended by a mask, with some grain."""
    first = KINDS[rng.integers(len(KINDS))](rng, side)
    kind = rng.random()
    if kind < 0.15:
        first = fractal_noise(rng, side, channels=3)
    elif kind < 0.45:
        second = KINDS[rng.integers(len(KINDS))](rng, side)
        mask = np.clip((fractal_noise(rng, side) - 0.5) * rng.uniform(2, 40) + 0.5, 0, 1)
        first = first * mask + second * (1 - mask)
    if rng.random() < 0.5:
        light = fractal_noise(rng, side)
        first = first * (1 - rng.uniform(0, 0.6) * light)
    if rng.random() < 0.4:
        first = first + rng.normal(0, rng.uniform(0, 0.06), first.shape)
    return (np.clip(first, 0, 1) * 255).astype(np.uint8)
