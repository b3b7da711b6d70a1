"""Gatys' losses, and the sums over a layer's positions from which all moments follow.

Symbols of the paper (Gatys, Ecker and Bethge 2016, "Image Style Transfer Using CNNs"): F = features
flattened to h*w positions (M_l) of C channels (N_l); G = Gram matrix of the image; A = Gram
matrix of the style.

Contract: features are ``[h, w, C]`` or a product, see ``projection``; Gram matrices ``[C, C]``; a
mask is ``[h, w]``, a constant. All unbatched (use ``jax.vmap``). Every reduction is a mean or is
named a sum; sums add up over positions and masks, and are taken in float32 or wider.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nst_jax.models.projection import (
    Features,
    ProjectedFeatures,
    compact,
    map_shape,
    positions,
    widened,
)
from nst_jax.types import Array, Moments


@jax.custom_jvp
def _outer_products(flat: Array, mask: Array | None) -> Array:
    dtype = jnp.promote_types(flat.dtype, jnp.float32)
    masked = flat if mask is None else flat * mask[:, None]  # as wide as the mask
    return jnp.matmul(flat.T, masked, precision="highest", preferred_element_type=dtype)


@_outer_products.defjvp
def _outer_products_jvp(primals: tuple[Array, Array | None], tangents: tuple[Array, Array | None]):
    """dG = P + P^T with P = F^T m dF: in reverse one product m F (D + D^T), where JAX makes two.

    A mask is a constant: it has no derivative.
    """
    (flat, mask), (tangent, _) = primals, tangents
    gram = _outer_products(flat, mask)
    tangent = tangent if mask is None else tangent * mask[:, None]
    product = jnp.matmul(flat.T, tangent, precision="highest", preferred_element_type=gram.dtype)
    return gram, product + product.T


def gram_sum(features: Features, *, mask: Array | None = None) -> Array:
    """Sum over positions of the features' outer products (Gatys 2016, eq. 3; 2017, section 4).

    G_ij = sum_k m_k F_ik F_jk

    Additive over pixels and over masks. Products are summed in float32 or wider at full precision:
    TF32 and bfloat16 sums are too coarse for the differences that the style term squares. A soft
    mask is multiplied in float32 or wider, too: rounded, it would not fit its sum, the divisor.

    Args:
      features: ``[h, w, C]``, or a product S K + 1 b^T of as many positions, whose sum is
        K^T (sum m s s^T) K + (K^T sum m s) b^T + b (K^T sum m s)^T + (sum m) b b^T.
      mask: m, ``[h, w]``, a constant; 1 where it is left out. One of booleans is exact in the
        features' own type, and taken in it.

    Returns:
      ``[C, C]``.
    """
    own = features.own if isinstance(features, ProjectedFeatures) else features
    flat = own.reshape(-1, own.shape[-1])
    if mask is not None:
        soft = jnp.promote_types(flat.dtype, jnp.float32)
        mask = mask.reshape(-1).astype(flat.dtype if mask.dtype == bool else soft)
    own_gram = _outer_products(flat, mask)
    if not isinstance(features, ProjectedFeatures):
        return own_gram
    kernel, bias = (x.astype(own_gram.dtype) for x in (features.kernel, features.bias))
    masked = flat if mask is None else flat * mask[:, None]
    count = flat.shape[0] if mask is None else jnp.sum(mask, dtype=own_gram.dtype)
    matmul = partial(jnp.matmul, precision="highest")
    gram = matmul(kernel.T, matmul(own_gram, kernel))
    crossed = jnp.outer(matmul(kernel.T, jnp.sum(masked, axis=0, dtype=gram.dtype)), bias)
    return gram + crossed + crossed.T + count * jnp.outer(bias, bias)


def normalize_gram(gram: Array, *, positions: Array | int, normalization: str) -> Array:
    """Divide a Gram sum as published tools do.

    ``"hw"`` divides by the h*w positions: a mean of outer products (Gatys' published code, and up
    to the constant the course version). ``"chw"`` divides by the C*h*w features (neural-style).

    Args:
      gram: sum over positions, ``[C, C]``.
      positions: how many.
      normalization: ``"hw"`` or ``"chw"``.

    Returns:
      ``[C, C]``.

    Raises:
      ValueError: for another normalisation.
    """
    if normalization not in ("hw", "chw"):
        raise ValueError(f"normalization is {normalization!r}: expected 'hw' or 'chw'")
    # As a float: of a large image the product is beyond 32 bits.
    return gram / (positions * (float(gram.shape[-1]) if normalization == "chw" else 1.0))


def gram_matrix(
    features: Features, *, mask: Array | None = None, normalization: str = "hw"
) -> Array:
    """Normalised Gram matrix of features: the style representation (Gatys 2016, eq. 3).

    G = F F^T / (h w), or / (C h w); guided by a mask (Gatys 2017, section 4)
    G = sum_k m_k F_k F_k^T / sum m, or / (C sum m): a small region counts as much as a large one.

    Args:
      features: ``[h, w, C]``, or a product, see ``gram_sum``.
      mask: m, ``[h, w]`` in [0, 1], a constant; 1 everywhere where it is left out. Of an empty
        mask the matrix is 0.
      normalization: ``"hw"`` or ``"chw"``, see ``normalize_gram``.

    Returns:
      ``[C, C]``, symmetric and positive semidefinite.

    >>> gram_matrix(jnp.ones((2, 2, 1))).tolist()
    [[1.0]]
    """
    count = positions(features) if mask is None else mask_size(mask)
    return normalize_gram(
        gram_sum(features, mask=mask), positions=count, normalization=normalization
    )


def mask_size(mask: Array) -> Array:
    """The sum of a mask ``[h, w]``, as a divisor: never 0.

    >>> float(mask_size(jnp.eye(3)))
    3.0
    """
    return jnp.maximum(jnp.sum(mask), jnp.finfo(mask.dtype).tiny)


def content_loss(features: Array, target: Array) -> Array:
    """Mean squared difference of features (Gatys 2016, eq. 1 with a mean for the half sum).

    The objective takes the same sum and divides it afterwards, see ``objective``.

    Args:
      features, target: ``[h, w, C]``.

    Returns:
      Scalar.

    >>> float(content_loss(jnp.ones((1, 2, 1)), jnp.zeros((1, 2, 1))))
    1.0
    """
    return jnp.mean(jnp.square(features - target))


def style_loss(gram: Array, target: Array) -> Array:
    """Mean squared difference of two normalised Gram matrices (Gatys 2016, eq. 4).

    The paper's E_l = sum (G - A)^2 / (4 N^2 M^2) of unnormalised sums is a quarter of this value
    for ``normalization="hw"``.

    Args:
      gram, target: ``[C, C]``.

    Returns:
      Scalar.

    >>> float(style_loss(jnp.full((1, 1), 3.0), jnp.ones((1, 1))))
    4.0
    """
    return jnp.mean(jnp.square(gram - target))


_matmul = partial(jnp.matmul, precision="highest")


def position_sum(features: Features, *, mask: Array | None = None) -> Array:
    """How many positions count, scalar in float32 or wider."""
    dtype = widened(features.own if isinstance(features, ProjectedFeatures) else features).dtype
    height, width = map_shape(features)
    return jnp.asarray(height * width, dtype) if mask is None else jnp.sum(mask, dtype=dtype)


def feature_sum(features: Features, *, mask: Array | None = None) -> Array:
    """Sum over positions of the features, sum_k m_k F_k, ``[C]``.

    Of a product S K + 1 b^T it is K^T (sum m s) + (sum m) b.
    """
    own = widened(features.own if isinstance(features, ProjectedFeatures) else features)
    total = jnp.sum(own if mask is None else own * mask[..., None], axis=(0, 1))
    if not isinstance(features, ProjectedFeatures):
        return total
    bias = features.bias.astype(total.dtype)
    count = position_sum(features, mask=mask)
    return _matmul(features.kernel.astype(total.dtype).T, total) + count * bias


def square_sum(features: Features, *, mask: Array | None = None) -> Array:
    """Sum over positions of the squares of the features, the diagonal of ``gram_sum``, ``[C]``.

    Of a product it is taken from the outer products of its own features.
    """
    if not isinstance(features, ProjectedFeatures):
        squares = jnp.square(widened(features))
        return jnp.sum(squares if mask is None else squares * mask[..., None], axis=(0, 1))
    gram = gram_sum(features.own, mask=mask)
    kernel, bias = (x.astype(gram.dtype) for x in (features.kernel, features.bias))
    crossed = _matmul(kernel.T, feature_sum(features.own, mask=mask)) * bias
    count = position_sum(features, mask=mask)
    return jnp.sum(kernel * _matmul(gram, kernel), axis=0) + 2 * crossed + count * jnp.square(bias)


def moment_sums(
    features: Features, *, wanted: frozenset[str], mask: Array | None = None
) -> Moments:
    """The sums that are wanted, fields of ``Moments``, without leading axes."""
    # Only where it is asked for: an unprepared kernel's root is a decomposition.
    small = compact(features) if "compact_gram" in wanted else features
    return Moments(
        gram=gram_sum(features, mask=mask) if "gram" in wanted else None,
        mean=feature_sum(features, mask=mask) if "mean" in wanted else None,
        squares=square_sum(features, mask=mask) if "squares" in wanted else None,
        compact_gram=gram_sum(small, mask=mask) if "compact_gram" in wanted else None,
        compact_mean=feature_sum(small, mask=mask) if "compact_mean" in wanted else None,
    )


def divided(sums: Moments, count: Any) -> Moments:
    """Means from sums over ``count`` positions."""
    return jax.tree.map(lambda x: x / count, sums)


def stacked(moments: Sequence[Any]) -> Any:
    """Trees of equal structure as one with a leading axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *moments)
