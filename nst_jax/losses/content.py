"""Content losses that do not compare features directly: self-similarity and Laplacians.

Self-similarity (Kolkin, Salavon and Shakhnarovich 2019, "Style Transfer by Relaxed Optimal
Transport and Self-Similarity", STROTSS, eq. 7) compares how similar features are to each other:

    L = 1/n sum_ij | D_ij / sum_k D_kj - D'_ij / sum_k D'_kj |,    D_ij = 1 - cos(F_i, F_j)

for features F_i of the image and F'_i of the content at n positions of a regular grid. There are
three differences from the paper. It draws 1024 random positions at every step. It concatenates all
layers into one long feature; here each layer is compared separately. And its formula divides by
n^2, although its published code divides by n, as is done here.

The Laplacian loss (Li, Xu, Nie and Liu 2017, "Laplacian-Steered Neural Style Transfer", eq. 5)
compares edges after averaging the image over squares of p x p pixels:

    L = mean (D - D')^2,    D = sum over colours of the Laplacian of the averaged image

The averaged image is padded by repeating its border. The paper sums over positions instead of
averaging.

Contract: features are ``[h, w, C]`` and images ``[H, W, 3]``, both unbatched.
"""

import jax.numpy as jnp
import numpy as np

from nst_jax.models.projection import Features, ProjectedFeatures, dense, widened
from nst_jax.types import Array

GRID = 32  # largest number of grid positions along each axis


def grid_positions(length: int) -> np.ndarray:
    """Positions of a regular grid along an axis: at most ``GRID``, evenly spaced and centred.

    >>> grid_positions(3).tolist(), grid_positions(64)[:3].tolist()
    ([0, 1, 2], [1, 3, 5])
    """
    count = min(length, GRID)
    return ((np.arange(count) + 0.5) * length / count).astype(np.int32)


def sample(features: Features, rows: Array, columns: Array, *, mask: Array | None = None) -> Array:
    """Sample features at the crossings of rows and columns.

    Args:
      features: ``[h, w, C]``, or a product, see ``projection``.
      rows, columns: integer indices; those outside of the features give zeros.
      mask: factors of the positions, ``[h, w]``; by default 1.

    Returns:
      ``[n, C]`` for n = len(rows) * len(columns), in float32 or wider.
    """
    # Of a product, sample the narrow factor first: multiplying n rows costs less than all h*w.
    narrow = features.own if isinstance(features, ProjectedFeatures) else features
    height, width, channels = narrow.shape

    def inside(index: Array, length: int) -> Array:
        return (index >= 0) & (index < length)

    factors = inside(rows, height)[:, None] & inside(columns, width)[None, :]
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    factors = factors.astype(jnp.float32)
    if mask is not None:
        factors = factors * mask[rows[:, None], columns[None, :]]
    sampled = narrow[rows[:, None], columns[None, :]].reshape(-1, channels)
    if isinstance(features, ProjectedFeatures):
        sampled = dense(features._replace(own=sampled))
    return widened(sampled) * factors.reshape(-1, 1)


def similarity(features: Array) -> Array:
    """Normalised cosine distances D_ij / sum_k D_kj between features.

    A zero feature has no direction; its distance from every feature, itself included, is 1. If all
    features have one direction, the result is 0.

    Args:
      features: ``[n, C]``.

    Returns:
      ``[n, n]``, in [0, 1]; the columns sum to 1 (or 0, see above).
    """
    # Each inner ``where`` replaces a divisor of 0 by 1, or its infinite derivative would reach the
    # gradient as NaN even through the branch that is not selected.
    tiny = jnp.finfo(features.dtype).tiny ** 0.5
    squares = jnp.sum(jnp.square(features), axis=1, keepdims=True)
    nonzero = squares > tiny
    directions = jnp.where(nonzero, features / jnp.sqrt(jnp.where(nonzero, squares, 1)), 0)
    distances = 1 - jnp.matmul(directions, directions.T, precision="highest")
    # Between equal directions rounding leaves a few units of eps in place of 0.
    distances = jnp.where(distances > 16 * jnp.finfo(features.dtype).eps, distances, 0)
    sums = jnp.sum(distances, axis=0, keepdims=True)
    return jnp.where(sums > 0, distances / jnp.where(sums > 0, sums, 1), 0)


def self_similarity_loss(features: Array, target: Array) -> Array:
    """Self-similarity loss of one layer.

    L = 1/n sum_ij | D_ij / sum_k D_kj - target_ij |

    Args:
      features: sampled features of the image, ``[n, C]``.
      target: ``similarity`` of the content's features at the same positions, ``[n, n]``.

    Returns:
      Scalar in [0, 2].

    References:
      Kolkin et al. 2019, eq. 7.

    >>> features = jnp.eye(2)
    >>> float(self_similarity_loss(features, similarity(features)))
    0.0
    """
    differences = similarity(features) - target
    # |x| as x sign(x): its derivative at 0, where the image equals the content, is 0. JAX's
    # derivative of jnp.abs there is 1.
    return jnp.sum(differences * jnp.sign(differences)) / len(features)


def laplacian(image: Array, *, pool: int, padding: str = "zero") -> Array:
    """Laplacian of an image averaged over squares of p x p pixels, summed over colours.

    D = x_up + x_down + x_left + x_right - 4 x   for the averaged image x

    Args:
      image: ``[H, W, 3]``; the last rows and columns are dropped if they fill no square.
      pool: p, the side of the squares in pixels.
      padding: ``"circular"`` if opposite borders are neighbours; otherwise the border is repeated.

    Returns:
      ``[H // p, W // p]``.

    References:
      Li et al. 2017, eq. 5.

    >>> laplacian(jnp.ones((4, 4, 3)), pool=2).tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    height, width = image.shape[0] // pool, image.shape[1] // pool
    squares = image[: height * pool, : width * pool].reshape(height, pool, width, pool, -1)
    grey = jnp.sum(jnp.mean(squares, axis=(1, 3)), axis=-1)
    around = jnp.pad(grey, 1, mode="wrap" if padding == "circular" else "edge")
    return around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:] - 4 * grey


def laplacian_sum(image: Array, target: Array, *, mask: Array | None = None, **options) -> Array:
    """Sum over squares of the squared difference between two Laplacians.

    Args:
      image: ``[H, W, 3]``.
      target: ``laplacian`` of the content, ``[H // p, W // p]``.
      mask: factors of the squares, ``[H // p, W // p]``; by default 1.
      options: keyword arguments of ``laplacian``.

    Returns:
      Scalar.
    """
    squares = jnp.square(laplacian(image, **options) - target)
    return jnp.sum(squares if mask is None else squares * mask)
