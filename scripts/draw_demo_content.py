"""Draw ``demo_content.jpg``: a lake at golden hour.

With hazy mountain ridges, a lighthouse and a cottage on a headland, a sailing boat, reeds, and the
reflection of it all in rippled water.

It comes from this script and a fixed seed alone: no photograph or painting went into it. It may be
used freely, under the same MIT licence as the repository.

Usage: ``python scripts/draw_demo_content.py [OUTPUT_DIRECTORY]`` (default: ``docs/images``).
"""

import numpy as np
from demo_drawing import (
    H,
    W,
    X,
    Y,
    box,
    cut_outs,
    fractal_noise,
    output_path,
    over,
    ramp,
    rgb,
    sample,
    save,
    shapes,
    smoothstep,
)

SHORE = 610  # the row where land meets water
SUN = (842, 362)


def draw_sky(rng):
    sky = ramp(Y / SHORE, (0, 0.3, 0.52, 0.7, 1), "294d8a 6680a8 cca699 fcbf78 ffd694")
    far = np.hypot(X - SUN[0], (Y - SUN[1]) * 1.25)
    # Clouds lie on a plane overhead, so they shrink and flatten towards the horizon.
    depth = 1 / (1.12 - np.minimum(Y, SHORE) / SHORE)
    noise = fractal_noise(rng, (1400, 1800), (6, 7), gain=0.56)
    u, v = 900 + (X - 0.6 * W) * depth * 0.42, 230 * depth - 120
    density = sample(noise, u, v)
    # A cloud is bright where it thins out towards the sun, and warmer the nearer it is to it.
    lit = density - sample(noise, u + 6 * np.tanh((SUN[0] - X) / 200), v + 16)
    cover = smoothstep(-0.15, 1.15, density) * smoothstep(6.0, 3.3, depth)
    warm = np.exp(-far / 520)
    shade = ramp(warm, (0, 1), "6b6685 db856b")
    light = ramp(warm, (0, 1), "faccb3 ffdf90")
    cloud = over(shade, light, smoothstep(-0.35, 0.75, lit + 0.25 * (1 - density)))
    sky = over(sky, cloud, 0.88 * cover)
    glow = 0.55 * np.exp(-far / 170) + 0.9 * np.exp(-((far / 60) ** 2))
    return over(sky + glow[..., None] * [0.50, 0.20, 0.05], rgb("fff6cc"), smoothstep(31, 22, far))


def draw_mountains(rng, image):
    haze = ramp(np.exp(-np.abs(X - SUN[0]) / 420), (0, 1), "ccada8 ffcc85")
    layers = [(395, 62, 3, 0.80), (452, 58, 4, 0.60), (512, 44, 5, 0.38), (566, 22, 7, 0.16)]
    for base, height, cells, distance in layers:
        crest = -np.abs(fractal_noise(rng, (1, W), (1, cells), 9, 0.47))[0]
        ridge = base - height * (crest - crest.mean()) * 1.5
        # Spurs run down from the crest; the faces turned to the sun catch its light.
        dy, dx = np.gradient(-np.abs(fractal_noise(rng, (H, W), (7, 12), 6, 0.55)))
        facing = dy - dx * np.tanh((SUN[0] - X) / 150)
        rock = over(rgb("212b40"), rgb("785e59"), smoothstep(-0.02, 0.09, facing))
        veil = distance + (0.95 - distance) * smoothstep(0, 150, Y - ridge) * (distance > 0.2)
        mask = np.clip(Y - ridge + 0.5, 0, 1) * (Y < SHORE)
        image = over(image, over(rock, haze, veil), mask)
    return image


def conifer(rng, x, foot, height):
    """A ragged fir, as one polygon: tiers of branches that widen towards the foot."""
    tiers = max(5, int(height / 9))
    left, right = [], []
    for k in range(1, tiers + 1):
        y, reach = foot - height * (1 - k / tiers), 0.21 * height * (k / tiers) ** 0.85
        for side, sign in ((left, -1), (right, 1)):
            side.append((x + sign * reach * rng.uniform(0.7, 1.1), y))
            side.append((x + sign * reach * 0.42, y - 0.25 * height / tiers))
    return [(x, foot - height), *right, (x + 2, foot), (x - 2, foot), *left[::-1]]


def draw_headland(rng, image):
    def profile(x):
        return SHORE - 92 * smoothstep(600, 380, x) + 26 * smoothstep(250, 0, x)

    far_shore = [conifer(rng, x, SHORE, rng.uniform(14, 44)) for x in rng.uniform(560, W, 150)]
    image = cut_outs(image, ("262b33", *far_shore))
    grain = fractal_noise(rng, (H, W), (24, 26), 6, 0.65)
    spots = (*rng.uniform(-10, 165, 16), 455, 482, 500)
    firs = [conifer(rng, x, profile(x) + 10, rng.uniform(70, 150)) for x in spots]
    image = over(image, ramp(grain, (0.2, 1.8), "121f1f 5e522e"), shapes(*firs))
    top = profile(X) + 7 * fractal_noise(rng, (1, W), (1, 24), 6, 0.6)
    dy, dx = np.gradient(grain)
    ground = ramp(dx - 0.6 * dy, (-0.25, 0, 0.25), "1a1a24 544240 d18f61")
    grass = ramp(grain, (-2, 2), "1f2b1a 85752b")
    ground = over(ground, grass, smoothstep(48, 20, Y - top + 9 * grain))
    ground *= (0.55 + 0.45 * smoothstep(SHORE, SHORE - 40, Y))[..., None]
    return over(image, ground, np.clip(Y - top, 0, 1) * (Y < SHORE) * (X < 590))


def draw_lighthouse(image, x=365, foot=525, top=235):
    def section(y0, y1):
        w0, w1 = (24 + 14 * (y - top) / (foot - top) for y in (y0, y1))
        return [(x - w0, y0), (x + w0, y0), (x + w1, y1), (x - w1, y1)]

    light = ramp((X - x) / 34, (-1, 0.2, 0.8), "5c6180 ccbdb8 ffebc0")  # round, lit from the right
    image = over(image, light, shapes(section(top, foot)))
    bands = [section(y, y + 48) for y in (top + 34, top + 138, top + 236)]
    image = over(image, light * [0.86, 0.20, 0.15], shapes(*bands))
    iron = [box(x + d - 1.5, top - 52, x + d + 1.5, top) for d in (-19, -7, 7, 19)]
    iron += [box(x + d - 1, top - 22, x + d + 1, top) for d in (-36, -28, 28, 36)]
    iron += [box(x - 37, top - 23, x + 37, top - 21), box(x - 37, top - 6, x + 37, top + 5)]
    iron += [[(x - 25, top - 52), (x, top - 84), (x + 25, top - 52)]]
    iron += [box(x - 1.5, top - 104, x + 1.5, top - 80)]
    iron += [box(x - 5, y, x + 5, y + 18) for y in (top + 100, top + 200)]
    lantern, lamp = box(x - 19, top - 52, x + 19, top), [(x - 10, top - 42), (x + 10, top - 12)]
    image = cut_outs(image, ("ffdb73", lantern), ("fffadd", lamp), ("2c2a36", *iron))
    halo = np.exp(-np.hypot(X - x, Y - top + 27) / 46)
    return image + 0.38 * halo[..., None] * [1.0, 0.75, 0.35]


def draw_cottage_and_boat(image, x=205, y=528, bx=760, by=SHORE):
    gable = [(x + 92, y + 8), (x + 92, y - 50), (x + 114, y - 92), (x + 136, y - 50)]
    roof = [(x - 8, y - 46), (x + 16, y - 96), (x + 114, y - 96), (x + 94, y - 46)]
    eave = [(x + 114, y - 99), (x + 142, y - 46), (x + 135, y - 44), (x + 114, y - 86)]
    tiles = [box(x + k / 2, y - 58 - k, x + 98, y - 55 - k) for k in range(0, 36, 9)]
    panes = [box(x + d, y - 32, x + d + 17, y - 10) for d in (12, 64, 106)]
    bars = [box(x + d + 7.5, y - 32, x + d + 9.5, y - 10) for d in (12, 64, 106)]
    image = cut_outs(
        image,
        ("9e8f94", box(x, y - 50, x + 92, y + 8)),
        ("ffd49e", [*gable, (x + 136, y + 8)]),
        ("4d2929", box(x + 22, y - 112, x + 38, y - 70)),
        ("8f3424", roof),
        ("6b271c", *tiles),
        ("5c211c", eave),
        ("ffd159", *panes),
        ("421f1a", box(x + 39, y - 34, x + 54, y + 8), *bars),
        ("f0dbc7", [(bx + 2, by - 150), (bx + 2, by - 28), (bx - 56, by - 28)]),
        ("d64d2e", [(bx + 8, by - 138), (bx + 50, by - 26), (bx + 10, by - 26)]),
        ("1f1a21", [(bx - 50, by - 17), (bx + 56, by - 20), (bx + 40, by), (bx - 38, by)]),
        ("1f1a21", box(bx + 3, by - 156, bx + 6, by - 16)),
    )
    return image + 0.35 * shapes(*panes, blur=9)[..., None] * [1.0, 0.7, 0.3]


def draw_water(rng, image):
    """Mirror the land and sky in the water, shaken by ripples that grow towards the viewer."""
    near = np.clip((Y - SHORE) / (H - SHORE), 0, 1)
    depth = 1 / (near + 0.06)  # perspective: far ripples are small and close together
    noise = fractal_noise(rng, (1200, 1200), (60, 14), 6)
    swell = sample(noise, 600 + (X - W / 2) * depth * 0.16, 95 * depth)
    shake = swell * (1.5 + 20 * near)
    row = np.clip(SHORE - 1 - (Y - SHORE) * 0.97 + shake, 0, SHORE - 1)
    mirror = sample(image, np.clip(X + 0.25 * shake, 0, W - 1), row)
    # The nearer the water, the more one looks into it; what is bright still shows on top.
    into = (0.10 + 0.42 * near) * (1 - 0.8 * mirror.mean(axis=-1) ** 2)
    water = over(mirror * [0.97, 0.92, 0.90], rgb("122438"), into)
    water += (0.05 * swell * near)[..., None] * [0.9, 0.9, 1.0]
    glitter = np.exp(-(((X - SUN[0]) / (34 + 110 * near)) ** 2)) * smoothstep(-0.2, 1.1, swell)
    return over(image, over(water, rgb("ffdc88"), 0.85 * glitter), Y >= SHORE)


def draw_reeds(rng, image):
    bank = H + 14 - 74 * smoothstep(840, W, X) - 34 * smoothstep(200, 0, X)
    bank += 6 * fractal_noise(rng, (1, W), (1, 30), 5, 0.6)
    image = over(image, rgb("121714"), np.clip(Y - bank, 0, 1))
    blades, heads = [], []
    for x in (*rng.triangular(850, W, W + 20, 210), *rng.triangular(-20, 0, 190, 60)):
        near = max(smoothstep(840, W, x), 0.5 * smoothstep(220, 0, x))
        foot, tall = H - 40 * near + 20, rng.uniform(60, 120) + 170 * near * rng.random()
        t = np.linspace(0, 1, 8)
        px, py = x + rng.normal(0, 0.22) * tall * t**2, foot - tall * t
        width = 3.6 * (1 - t) + 0.6
        blades.append([*zip(px - width, py), *zip((px + width)[::-1], py[::-1])])
        if rng.random() < 0.16:
            heads.append([(px[-1] - 5, py[-1] - 22), (px[-1] + 5, py[-1] + 22)])
    image = over(image, ramp(Y, (H - 280, H - 40), "6b571f 121a12"), shapes(*blades))
    return cut_outs(image, ("3b1f12", *heads))


def content_image(seed=11):
    rng = np.random.default_rng(seed)
    image = draw_headland(rng, draw_mountains(rng, draw_sky(rng)))
    image = draw_cottage_and_boat(draw_lighthouse(image))
    image = draw_reeds(rng, draw_water(rng, np.clip(image, 0, 1)))
    return image + rng.normal(0, 0.012, (H, W, 1))  # a little grain, as film has


if __name__ == "__main__":
    save(content_image(), output_path("demo_content.jpg"))
