"""Masks, and trees in double precision."""

import jax
import jax.numpy as jnp
import numpy as np

from helpers.images import smooth_image


def as_float64(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), tree)


def masks_of(height, width, count):
    """Soft masks that are exactly 0 and 1 in some places."""
    masks = np.stack([smooth_image(height, width, seed=30 + i)[..., 0] for i in range(count)])
    return np.clip(1.6 * masks - 0.3, 0, 1).astype(np.float32)
