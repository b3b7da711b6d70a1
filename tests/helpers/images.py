"""Drawn images."""

import numpy as np


def smooth_image(height, width, *, seed):
    """Draw smooth random waves with noise, float32 in [0, 1], ``[height, width, 3]``."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None] / 16
    frequency = generator.normal(size=(2, 1, 1, 3))
    waves = np.sin(y * frequency[0] + x * frequency[1] + generator.uniform(0, 6, size=3))
    noise = generator.uniform(-0.2, 0.2, size=(height, width, 3))
    return np.clip(0.5 + 0.3 * waves + noise, 0, 1).astype(np.float32)
