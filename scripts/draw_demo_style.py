"""Draw ``demo_style.jpg``: rolling fields under a swirling evening sky.

"Painted" with thousands of curved, bristly strokes that follow the forms, coarse to fine, and lit
like thick oil paint: first a plan (colour and stroke direction of every pixel), then its strokes.

It comes from this script and a fixed seed alone: no photograph or painting went into it. It may be
used freely, under the same MIT licence as the repository.

Usage: ``python scripts/draw_demo_style.py [OUTPUT_DIRECTORY]`` (default: ``docs/images``).
"""

import numpy as np
from demo_drawing import (
    H,
    W,
    X,
    Y,
    box,
    fractal_noise,
    output_path,
    over,
    ramp,
    rgb,
    save,
    shapes,
    smoothstep,
    to_image,
)
from PIL import Image, ImageDraw, ImageFilter

EVENING_SUN = (800, 330)
WHIRLS = [(300, 230, 185, 1.0), (600, 120, 120, -0.8), (1110, 170, 150, -1.0), (60, 70, 110, -0.8)]
BRUSHES = [(40, 190, 1400, 0), (24, 120, 3200, 0), (14, 72, 8000, 0.05), (8, 40, 14000, 0.22)]
BRUSHES += [(6, 22, 32000, 0.5)]  # width, length, strokes, and the detail that calls for them


def plan_sky(rng):
    """A wavy wind with whirls in it: the strokes follow it, and so do the bands of colour."""
    wind = Y + 26 * np.sin(X / 150 + Y / 90) + 10 * fractal_noise(rng, (H, W), (3, 4), 3)
    spiral = np.zeros((H, W))
    for x, y, radius, turn in [*WHIRLS, (*EVENING_SUN, 170, 1.0)]:
        hold = np.exp(-(((X - x) ** 2 + (Y - y) ** 2) / radius**2))
        wind += turn * 2.2 * radius * hold
        spiral += turn * hold * np.arctan2(Y - y, X - x)
    dy, dx = np.gradient(wind)
    # The bands swell and fade, or they would look combed.
    tone = np.sin(wind / 19 + spiral) * (0.84 + 0.16 * fractal_noise(rng, (H, W), (3, 5), 3))
    high = ramp(tone, (-1, -0.3, 0.3, 0.8, 1), "1b2272 1f4db4 3a86c8 45b5b8 e6d9b4")
    dusk = ramp(tone, (-1, -0.4, 0.1, 0.6, 1), "3f9aa8 9ccfb0 f6dd84 f3a83a d9562e")
    colour = over(high, dusk, smoothstep(0.40, 0.50, Y / H + 0.07 * tone))
    ring = np.hypot(X - EVENING_SUN[0], Y - EVENING_SUN[1]) / 62
    aura = ramp(ring, (0, 0.7, 1.1, 1.5, 2, 2.6), "fff4b8 fdd233 ee7a20 f8c832 fbe9a0 4fb0b4")
    return over(colour, aura, smoothstep(2.9, 1.7, ring)), np.arctan2(-dx, dy)


def plan_fields(colour, angle):
    """Hills, far to near, in strips of furrowed field that fan out towards the viewer."""
    hills = [
        (0.60, 0.030, 5.0, 0.6, "2a55b0 5a3d8c, 4fb0b4 3c6fa0"),
        (0.66, 0.045, 3.6, 2.5, "4a7f3a d8a52c, 3fa39a 3c7d3e, c9632e ea9426"),
        (0.76, 0.035, 3.0, 5.0, "b06a1c f8d038, 2f6a4a a4b838, b02c28 ee8428, 57893a f6cc34"),
    ]
    for base, swing, waves, phase, fields in hills:
        crops = fields.split(", ")
        t = X / W * waves + phase
        below = Y - H * (base + swing * np.sin(t) + 0.3 * swing * np.sin(2.3 * t))
        fan = (X - 0.45 * W) / (70 + below.clip(0)) + 0.6 * np.sin(below / 70 + phase)
        furrow, strip = 0.5 + 0.5 * np.sin(fan * 26), np.floor(fan * 1.3 + 50) % len(crops)
        field = np.zeros((H, W, 3))
        for k, crop in enumerate(crops):
            field = over(field, ramp(furrow, (0, 0.8), crop), strip == k)
        field = over(field, rgb("2a3a78"), 0.75 * smoothstep(16, 4, below))  # a blue outline
        (dy, dx), (fan_dy, fan_dx) = np.gradient(below), np.gradient(fan)
        along = np.where(below < 26, np.arctan2(-dx, dy), np.arctan2(-fan_dx, fan_dy))
        colour, angle = over(colour, field, below > 0), np.where(below > 0, along, angle)
    return colour, angle


def plan_river(colour, angle):
    near = np.clip((Y - 0.72 * H) / (0.28 * H), 0, 1)
    middle = 0.60 * W + (50 + 150 * near) * np.sin(5.2 * near**0.7 + 0.6)
    side = np.abs(X - middle) / (6 + 95 * near**1.3)
    bands = np.sin(4.5 * (X - middle) / (6 + 95 * near**1.3) + Y / 40)
    water = ramp(bands, (-1, -0.2, 0.5, 0.9, 1), "1b2272 1f4db4 45b5b8 e8efc8 fbd860")
    colour = over(colour, rgb("141c50"), (side < 1.2) & (near > 0))
    river = (side < 1) & (near > 0)
    flow = np.arctan2(1, np.gradient(middle, axis=0))
    return over(colour, water, river), np.where((side < 1.3) & (near > 0), flow, angle)


def plan_farm_and_trees(colour, angle, x=250, y=735):
    windows = box(x + 14, y - 62, x + 50, y - 18), box(x + 162, y - 62, x + 198, y - 18)
    roof = [(x - 20, y - 78), (x + 38, y - 166), (x + 190, y - 166), (x + 230, y - 78)]
    parts = [
        ("141c50", 1.57, box(x + 148, y - 205, x + 174, y - 150)),
        ("fbe8b0", 1.57, box(x, y - 84, x + 210, y + 10)),
        ("8fa0d0", 1.57, box(x, y - 84, x + 70, y + 10)),
        ("1f4db4", 1.57, box(x + 118, y - 58, x + 148, y + 10)),
        ("ee7a20", 1.57, *windows),
        ("d23c20", 0.0, roof),
    ]
    for tint, lean, *polygons in parts:
        mask = shapes(*polygons)
        colour, angle = over(colour, rgb(tint), mask), np.where(mask > 0.5, lean, angle)
    trees = [(90, 650, 95), (545, 655, 52), (1010, 610, 46), (1085, 640, 62), (1200, 660, 88)]
    for x, y, size in trees:
        trunk = shapes(box(x - size / 9, y, x + size / 9, y + 1.5 * size))
        colour, angle = over(colour, rgb("4a2450"), trunk), np.where(trunk > 0.5, 1.57, angle)
        # A crown is a round whirl of leaves with a lobed edge, warm on the side of the sun.
        far, turn = np.hypot(X - x, Y - y) / size, np.arctan2(Y - y, X - x)
        crown = far < 1 + 0.10 * np.sin(7 * turn + x)
        sunny = np.cos(turn - np.arctan2(EVENING_SUN[1] - y, EVENING_SUN[0] - x)) * far
        leaf = sunny + 0.5 * np.sin(9 * far + 2 * turn)
        leaf = ramp(leaf, (-1.2, -0.4, 0.3, 0.9, 1.4), "141c50 0f4a52 2f7d3e a8b030 f4c430")
        colour, angle = over(colour, leaf, crown), np.where(crown, turn + 1.9, angle)
    return colour, angle


def trace(angle, x, y, steps, step):
    """Follow the direction field from many points at once: (steps + 1, points, 2)."""
    path = [np.stack([x, y], axis=-1)]
    for _ in range(steps):
        i, j = np.clip(y, 0, H - 1).astype(int), np.clip(x, 0, W - 1).astype(int)
        x, y = x + step * np.cos(angle[i, j]), y + step * np.sin(angle[i, j])
        path.append(np.stack([x, y], axis=-1))
    return np.array(path)


def paint_stroke(rng, draw, emboss, path, tint, width):
    """One brush stroke: a row of bristles, each with its own tint, height, start and end."""
    along = np.gradient(path, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=-1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    taper = np.sin(np.linspace(0.35, np.pi - 0.25, len(path)))[:, None] ** 0.5
    for across in np.linspace(-0.5, 0.5, max(4, int(width / 2.2))):
        first, last = rng.integers(0, 2), len(path) - rng.integers(0, 3)
        line = (path + normal * taper * across * width)[first:last]
        points = [tuple(point) for point in line.tolist()]
        shade = tint * rng.normal(1, 0.07) + rng.normal(0, 0.015, 3)
        draw.line(points, tuple((shade.clip(0, 1) * 255).astype(int).tolist()), 3)
        # Paint is pushed to the edges of the stroke, where it stands up in a ridge.
        level = 110 + 90 * (2 * abs(across)) ** 3 + rng.normal(0, 26)
        emboss.line(points, int(np.clip(level, 0, 255)), 3)


def paint(rng, plan, angle, brushes=BRUSHES, ground=(176, 116, 52), scatter=0.04):
    """Paint a plan's colours, scattered, along its directions on a ground, brush by brush."""
    blurred = np.asarray(to_image(plan).filter(ImageFilter.GaussianBlur(9)), float) / 255
    detail = np.abs(plan - blurred).sum(axis=-1)
    canvas, height = Image.new("RGB", (W, H), ground), Image.new("L", (W, H), 40)
    draw, emboss = ImageDraw.Draw(canvas), ImageDraw.Draw(height)
    for width, length, count, least in brushes:
        x, y = rng.uniform(0, W, count), rng.uniform(0, H, count)
        at = y.astype(int), x.astype(int)
        keep = (detail[at] >= least) | (rng.random(count) < 0.08)
        x, y, colours = x[keep], y[keep], plan[at][keep]
        colours = colours * rng.normal(1, 0.09, (len(x), 1)) + rng.normal(0, scatter, (len(x), 3))
        halves = (trace(angle, x, y, 4, sign * length / 8) for sign in (-1, 1))
        paths = np.concatenate([next(halves)[:0:-1], next(halves)])
        for k in range(len(x)):
            paint_stroke(rng, draw, emboss, paths[:, k], colours[k], width)
    # Light the thickness of the paint from the upper left, as raking light does on a canvas.
    relief = np.asarray(height.filter(ImageFilter.GaussianBlur(1.2)), float) / 255
    slope = np.clip(-1.6 * sum(np.gradient(relief)), -0.3, 0.3)[..., None]
    return np.asarray(canvas, float) / 255 * (1 + 0.9 * slope) + 0.22 * slope.clip(0)


def style_image(seed=5):
    rng = np.random.default_rng(seed)
    plan, angle = plan_farm_and_trees(*plan_river(*plan_fields(*plan_sky(rng))))
    return paint(rng, plan, angle)


if __name__ == "__main__":
    save(style_image(), output_path("demo_style.jpg"))
