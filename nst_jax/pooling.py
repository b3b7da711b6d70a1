"""The poolings that VGG-19 may have."""

from collections.abc import Callable

import jax.numpy as jnp

from nst_jax.lift import widened
from nst_jax.types import Array


def _scaled_length(windows: Array, axis: tuple[int, ...]) -> Array:
    """0.78 times the root of the sum of squares; where that is 0 so is its gradient."""
    squares = jnp.sum(jnp.square(widened(windows)), axis)
    some = squares > 0
    # Twice: the root's gradient at 0 is infinite, and NaN where its result alone is left out.
    lengths = jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1)), 0)
    return (0.78 * lengths).astype(windows.dtype)


POOLINGS: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
    "max": jnp.max,
    "average": jnp.mean,
    "average-scaled": lambda windows, axis: 2 * jnp.mean(windows, axis),
    "l2": _scaled_length,
}


def pool(x: Array, *, pooling: str) -> Array:
    """2x2 pooling with stride 2; an odd last row or column is dropped, as in Caffe and PyTorch.

        max x_i    sum x_i / 4    2 * sum x_i / 4    0.78 * (sum x_i^2)^(1/2)

    The factors of the last two are style-transfer-pytorch's, against an average's smaller
    activations: at relu5_1 of photographs these have 0.2 of the size under max, with the factors
    3.2 and 1.8 times that. The root's gradient is taken to be 0 where all four values are.

    Args:
      x: ``[..., H, W, C]``.
      pooling: ``"max"``, ``"average"``, ``"average-scaled"`` or ``"l2"``.

    Returns:
      ``[..., H // 2, W // 2, C]``.

    >>> pool(jnp.arange(4.0).reshape(2, 2, 1), pooling="average").tolist()
    [[[1.5]]]
    >>> pool(jnp.arange(4.0).reshape(2, 2, 1), pooling="average-scaled").tolist()
    [[[3.0]]]
    """
    *batch, height, width, channels = x.shape
    x = x[..., : height // 2 * 2, : width // 2 * 2, :]
    # Faster than ``reduce_window`` and its scattering gradient.
    windows = x.reshape(*batch, height // 2, 2, width // 2, 2, channels)
    return POOLINGS[pooling](windows, (-4, -2))
