"""Masks of regions, carried to the layers of the network (Gatys et al. 2017, "Controlling
Perceptual Factors in Neural Style Transfer", section 4).

Contract: a mask is ``[H, W]`` in [0, 1] for a picture of that size; a guide is ``[h, w]`` for the
features of a layer. The paper's guidance channel T, which scales features, is the square root of
a guide: T^2 F F^T = guide F F^T. So soft masks that add up to 1 give sums that add up to the
whole's, and for hard masks nothing differs.
"""

import jax.numpy as jnp

from nst_jax.layers import block_of, convs_to, deepest, stride
from nst_jax.types import Array


def layer_guides(
    mask: Array, *, layers: tuple[str, ...], method: str = "simple", padding: str = "zero"
) -> dict[str, Array]:
    """Guides of a mask for layers of the network.

    ``"simple"`` averages the mask where the network pools. ``"inside"`` takes the least value in a
    feature's receptive field, so that a guided feature has seen nothing else; ``"all"`` takes the
    greatest, so that every feature that has seen something of the region counts.

    Args:
      mask: ``[H, W]`` in [0, 1].
      layers: names of taps.
      method: ``"simple"``, ``"inside"`` or ``"all"``.
      padding: the network's; for ``"circular"`` receptive fields reach over the border. Whatever
        else lies beyond it, zero, repeated or mirrored, is no pixel, or one that is seen anyway.

    Returns:
      ``{layer: [h, w]}``, with sizes as those of ``features``.

    Raises:
      ValueError: for another method.

    >>> layer_guides(jnp.eye(2), layers=("relu2_1",))["relu2_1"].tolist()
    [[0.5]]
    >>> layer_guides(jnp.eye(2), layers=("relu2_1",), method="inside")["relu2_1"].tolist()
    [[0.0]]
    """
    if method not in ("simple", "inside", "all"):
        raise ValueError(f"method is {method!r}: expected 'simple', 'inside' or 'all'")
    reduce = {"simple": jnp.mean, "inside": jnp.min, "all": jnp.max}[method]
    guides: dict[str, Array] = {}
    for name in convs_to(deepest(layers)):
        if name.endswith("_1") and block_of(name) > 1:
            height, width = (side // 2 for side in mask.shape)
            windows = mask[: 2 * height, : 2 * width].reshape(height, 2, width, 2)
            mask = reduce(windows, axis=(1, 3))
        if method != "simple":
            mask = _of_neighbours(mask, reduce, padding=padding)
        for tap in (name, name.replace("conv", "relu")):
            if tap in layers:
                guides[tap] = mask
    return guides


def _of_neighbours(mask: Array, reduce, *, padding: str) -> Array:
    """The least or greatest of each position's 3x3 neighbours, which a convolution sees."""
    height, width = mask.shape
    # A border repeated once more changes no extreme, and its mirrored neighbour would not either.
    padded = jnp.pad(mask, 1, mode="wrap" if padding == "circular" else "edge")
    rows = reduce(jnp.stack([padded[i : i + height] for i in range(3)]), axis=0)
    return reduce(jnp.stack([rows[:, i : i + width] for i in range(3)]), axis=0)


def whole_strides(x: Array, layers: tuple[str, ...]) -> Array:
    """A picture or mask without the last rows and columns that the deepest layer leaves out.

    Where opposite borders are neighbours, features of all layers then meet at the same places.

    Args:
      x: ``[H, W, ...]``.
      layers: names of taps.

    Returns:
      ``[h, w, ...]`` with sides that are multiples of the deepest layer's stride, so at most 15
      shorter; a side below the stride is left as it is.

    >>> whole_strides(jnp.ones((7, 4)), ("relu1_1", "relu2_1")).shape
    (6, 4)
    """
    step = stride(deepest(layers))
    height, width = (max(step, side // step * step) for side in x.shape[:2])
    return x[:height, :width]


def lay_over(image: Array, content: Array, mask: Array) -> Array:
    """The content where a mask is 1, the image where it is 0.

    Args:
      image, content: ``[H, W, 3]``.
      mask: ``[H, W]`` in [0, 1].
    """
    mask = mask[..., None]
    return (1 - mask) * image + mask * content  # exact where the mask is 0 or 1
