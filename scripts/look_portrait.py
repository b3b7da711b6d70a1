"""Draw a portrait: a head modelled from blended ellipsoids, lit from a window on the left.

It comes from this script and a fixed seed alone: no photograph went into it. It may be used freely,
under the repository's MIT licence.

The surface is where a signed distance f is 0; rays along -z find it by steps of f (Hart 1996,
"Sphere tracing"). Points are arrays (3, n): x to the right, y up, z to the viewer, in heights of a
head.
"""

import numpy as np
from demo_drawing import H, W, X, Y, fractal_noise, over, ramp, rgb, smoothstep, to_image
from PIL import ImageFilter

UNIT, MIDDLE = 600, (630, 415)  # pixels of a head's height, and where the head's middle is
TURN, TILT = 0.42, -0.06  # of the head: to the viewer's right, and forward
EYES = (-0.135, 0.135)
NOSE = (0, -0.11, 0.5, 0.002)
SKIN, CLOTH, HAIR = 0, 1, 2


def ellipsoid(p, centre, radii):
    q = p - np.array(centre, np.float32)[:, None]
    radii = np.array(radii, np.float32)[:, None]
    near, slope = (np.sqrt((q**2 / radii**power).sum(axis=0)) for power in (2, 4))
    return near * (near - 1) / (slope + 1e-6)


def capsule(p, start, end, radius):
    start, end = (np.array(point, np.float32)[:, None] for point in (start, end))
    axis = end - start
    along = np.clip(((p - start) * axis).sum(axis=0) / (axis**2).sum(), 0, 1)
    return np.sqrt(((p - start - axis * along) ** 2).sum(axis=0)) - radius


def join(a, b, soft):
    """Union whose seam is rounded within a distance."""
    h = np.clip(0.5 + 0.5 * (b - a) / soft, 0, 1)
    return b + (a - b) * h - soft * h * (1 - h)


def carve(a, b, soft):
    return -join(-a, b, soft)


def to_head(p):
    """From the image's coordinates to the head's, which looks along its own z."""
    (x, y, z), (c, s) = p, (np.cos(TURN), np.sin(TURN))
    x, z = c * x - s * z, s * x + c * z
    c, s = np.cos(TILT), np.sin(TILT)
    return np.stack([x, c * y - s * z, s * y + c * z])


def mirrored(p):
    return np.stack([np.abs(p[0]), p[1], p[2]])


def skin(p):
    h = to_head(p)
    m = mirrored(h)
    f = join(
        ellipsoid(m, (0, 0.14, -0.06), (0.35, 0.39, 0.42)),
        ellipsoid(m, (0, -0.15, 0.08), (0.265, 0.36, 0.29)),
        0.12,
    )
    f = join(f, ellipsoid(m, (0, -0.425, 0.235), (0.09, 0.07, 0.08)), 0.13)  # chin
    f = join(f, ellipsoid(m, (0.16, -0.11, 0.22), (0.10, 0.09, 0.10)), 0.10)  # cheeks
    f = join(f, ellipsoid(m, (0.10, 0.105, 0.285), (0.12, 0.030, 0.05)), 0.09)  # brows
    f = carve(f, ellipsoid(m, (0.135, 0.03, 0.46), (0.10, 0.065, 0.12)), 0.07)
    f = join(f, ellipsoid(m, (0.135, 0.025, 0.290), (0.078, 0.062, 0.078)), 0.012)
    f = join(f, capsule(m, (0, 0.09, 0.335), (0, -0.09, 0.43), 0.026), 0.07)  # nose
    f = join(f, ellipsoid(m, (0, -0.115, 0.425), (0.043, 0.036, 0.045)), 0.04)
    f = join(f, ellipsoid(m, (0.045, -0.128, 0.385), (0.028, 0.024, 0.036)), 0.03)
    f = carve(f, ellipsoid(m, (0, -0.205, 0.42), (0.018, 0.035, 0.045)), 0.03)
    f = join(f, ellipsoid(m, (0, -0.252, 0.335), (0.085, 0.022, 0.050)), 0.02)  # lips
    f = join(f, ellipsoid(m, (0, -0.294, 0.332), (0.070, 0.026, 0.048)), 0.02)
    f = carve(f, ellipsoid(m, (0, -0.272, 0.40), (0.075, 0.004, 0.03)), 0.012)
    return join(f, capsule(p, (0, -0.3, -0.08), (0.0, -0.8, -0.14), 0.155), 0.08)


def cloth(p):
    f = ellipsoid(p, (0, -1.08, -0.16), (0.86, 0.42, 0.36))
    collar = capsule(mirrored(p), (0, -0.80, 0.14), (0.22, -0.62, -0.16), 0.045)
    return join(f, collar, 0.05)


def hair(p):
    m = mirrored(to_head(p))
    f = ellipsoid(m, (0, 0.19, -0.10), (0.395, 0.385, 0.45))
    f = join(f, ellipsoid(m, (0.28, -0.15, -0.12), (0.125, 0.42, 0.25)), 0.14)
    return carve(f, ellipsoid(m, (0, -0.20, 0.42), (0.285, 0.48, 0.40)), 0.05)


def distances(p):
    return np.stack([skin(p), cloth(p), hair(p)])


def surface(p):
    return distances(p).min(axis=0)


def march(p, way, steps, far):
    """Follow rays to the surface: their length there, and the smallest f / length on the way."""
    length, narrow = np.full(p.shape[1], 0.02, np.float32), np.ones(p.shape[1], np.float32)
    live = np.arange(p.shape[1])
    for _ in range(steps):
        f = surface(p[:, live] + way * length[live])
        narrow[live] = np.minimum(narrow[live], 9 * f / length[live])
        length[live] += np.maximum(0.85 * f, 1e-3)
        live = live[(f > 1e-3) & (length[live] < far)]
    return length, narrow.clip(0, 1)


def normals(p):
    e = 0.004
    tips = ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1))  # of a tetrahedron
    arms = [np.array(tip, np.float32)[:, None] for tip in tips]
    n = np.sum([arm * surface(p + e * arm) for arm in arms], axis=0)
    return n / np.sqrt((n**2).sum(axis=0))


def face_paint(p, grain):
    """Colours of the skin: blood under it, lips, eyes between their lids, brows."""
    h = to_head(p)
    colour = over(rgb("e2aa8a"), rgb("ecb999"), smoothstep(-2, 2, grain))
    for x, y, red, spread in ((-0.19, -0.12, 0.45, 0.009), (0.19, -0.12, 0.45, 0.009), NOSE):
        blush = red * np.exp(-((h[0] - x) ** 2 + (h[1] - y) ** 2) / spread)
        colour = over(colour, rgb("cb6f58"), blush)
    front = smoothstep(0.18, 0.24, h[2])
    bow = -0.268 + 0.010 * np.cos(h[0] * 60) * (np.abs(h[0]) < 0.05)
    mouth = np.hypot(h[0] / 0.092, (h[1] - bow) / np.where(h[1] > bow, 0.030, 0.052))
    colour = over(colour, rgb("a8423f"), 0.9 * front * smoothstep(1.05, 0.85, mouth))
    gap = np.abs(h[1] + 0.272 - 0.15 * h[0] ** 2) + 0.004 * smoothstep(0.06, 0.09, np.abs(h[0]))
    gap = front * smoothstep(0.006, 0.002, gap) * (np.abs(h[0]) < 0.085)
    colour = over(colour, rgb("4a1517"), gap)
    for x in EYES:
        u, v = (h[0] - x) / 0.070, (h[1] - 0.022) / 0.034
        upper, lower = 0.95 * (1 - u**2), -0.75 * (1 - u**2)
        ball = front * smoothstep(0.03, -0.03, v - upper) * smoothstep(-0.03, 0.03, v - lower)
        iris = np.hypot(h[0] - x + 0.014, h[1] - 0.026) / 0.029
        spokes = 0.15 * np.sin(19 * np.arctan2(h[1] - 0.026, h[0] - x + 0.014))
        rays = ramp(iris + spokes * (iris < 0.9), (0.4, 1), "8fae9a 2f5a58")
        eye = over(rgb("e6dcd2"), rays, smoothstep(1.04, 0.96, iris))
        eye = over(eye, rgb("0a0a0c"), smoothstep(0.46, 0.40, iris))
        eye = eye * (0.55 + 0.45 * smoothstep(0.0, 0.6, upper - v))[..., None]
        glint = np.hypot(h[0] - x + 0.024, h[1] - 0.037) / 0.007
        colour = over(colour, over(eye, rgb("ffffff"), smoothstep(1.2, 0.8, glint)), ball)
        lash = front * np.exp(-(((v - upper) / 0.16) ** 2)) * (np.abs(u) < 1.08)
        crease = front * np.exp(-(((v - 1.45 + 0.9 * u**2) / 0.12) ** 2)) * (np.abs(u) < 1)
        colour = over(over(colour, rgb("8f5a44"), 0.6 * crease), rgb("1c100d"), 0.95 * lash)
        out = (h[0] - x) * np.sign(x)
        arch = 0.118 + 0.022 * np.cos((out - 0.02) * 16) - 0.02 * smoothstep(-0.05, -0.09, out)
        hairs = 0.6 + 0.4 * np.sin(900 * out + 700 * h[1] + 3 * grain)
        brow = smoothstep(0.015, 0.006, np.abs(h[1] - arch)) * smoothstep(0.098, 0.07, np.abs(out))
        colour = over(colour, rgb("2e1a12"), 0.85 * front * brow * hairs)
    return colour


def strands(rng, p):
    """Hair's tone: noise drawn out along the fall of the hair, from the crown down."""
    h = to_head(p)
    around = np.arctan2(h[0], h[2] + 0.1) / np.pi
    down = np.hypot(np.hypot(h[0], h[2] + 0.1), 0.5 - h[1])
    noise = fractal_noise(rng, (400, 1600), (4, 60), 5, 0.9)
    wave = around + 0.012 * np.sin(9 * down)
    return noise[np.clip(200 * down, 0, 399).astype(int), ((wave + 1) * 799).astype(int) % 1600]


def draw_portrait(seed: int = 21) -> np.ndarray:
    """The portrait, ``[H, W, 3]``."""
    rng = np.random.default_rng(seed)
    wall = fractal_noise(rng, (H, W), (3, 4), 6)
    glow = np.exp(-(((X - 420) / 620) ** 2) - ((Y - 380) / 520) ** 2)
    image = ramp(glow + 0.05 * wall, (0, 0.5, 1.1), "2c3437 5c6a68 98a097")
    x, y = (X - MIDDLE[0]) / UNIT, (MIDDLE[1] - Y) / UNIT
    start = np.stack([x, y, np.full_like(x, 0.9)]).reshape(3, -1).astype(np.float32)
    length, _ = march(start, np.array([[0], [0], [-1]], np.float32), 60, 1.6)
    hit = np.flatnonzero(length < 1.55)
    p = start[:, hit] - np.array([[0], [0], [1]], np.float32) * length[hit]
    kind = distances(p).argmin(axis=0)
    n = normals(p)
    grain = fractal_noise(rng, (H, W), (60, 80), 4, 0.7).ravel()[hit]
    tone = strands(rng, p)
    weave = np.sin(X * 1.1 + 2 * wall).ravel()[hit] * np.sin(Y * 1.1).ravel()[hit]
    knit = 0.5 + 0.12 * weave + 0.1 * grain
    colours = [face_paint(p, grain), ramp(knit, (0, 1), "17304f 3f6486")]
    colours.append(ramp(tone, (-2, 0, 1.5, 2.5), "1a0d08 3a1f13 6a3d23 8a5630"))
    colour = np.choose(kind[:, None], colours)
    light = np.array([[-0.62], [0.42], [0.66]], np.float32)
    light /= np.sqrt((light**2).sum())
    _, open_ = march(p + 0.012 * n, light, 26, 1.2)
    hollow = np.mean([surface(p + d * n).clip(0, d) / d for d in (0.03, 0.08, 0.16)], axis=0)
    facing = (n * light).sum(axis=0)
    lit = np.clip((facing + 0.15) / 1.15, 0, 1) * (0.12 + 0.88 * open_)
    half = light + np.array([[0], [0], [1]], np.float32)
    half /= np.sqrt((half**2).sum())
    shine = np.clip((n * half).sum(axis=0), 0, 1)
    glosses = [0.16 * shine**24, 0.02 * shine**8, 0.22 * shine**14 * (1 + 0.6 * tone)]
    gloss = np.choose(kind, glosses)
    rim = np.clip(n[0], 0, 1) ** 2 * (1 - np.clip(n[2], 0, 1)) ** 1.5
    warm, cool = rgb("fff0d8"), rgb("8fa6c8")
    shade = lit[:, None] * warm * 1.15 + (0.16 + 0.5 * rim)[:, None] * cool
    shade = shade * (0.35 + 0.65 * hollow)[:, None]
    # Light that goes through the skin reddens the border of the shadow.
    blood = np.exp(-(((facing - 0.05) / 0.22) ** 2)) * (kind == SKIN)
    shade = shade + 0.06 * blood[:, None] * np.array([1, 0.25, 0.1])
    flat = image.reshape(-1, 3).copy()
    flat[hit] = (colour**1.5) * shade * 1.25 + (gloss * open_)[:, None] * warm
    flat[hit] = flat[hit].clip(0, None) ** (1 / 1.35)
    image = flat.reshape(H, W, 3)
    soft = np.asarray(to_image(image).filter(ImageFilter.GaussianBlur(1.6)), float) / 255
    return soft + rng.normal(0, 0.016, (H, W, 1))
