"""Terms of the objective (Gatys, Ecker and Bethge 2016, "Image Style Transfer Using CNNs").

Contract: features are ``[h, w, C]``, Gram matrices ``[C, C]``, images ``[H, W, 3]``; all unbatched
(use ``jax.vmap``), nothing is clipped, every reduction is a mean or is named a sum.

Symbols of the paper: F = features flattened to h*w positions (M_l) of C channels (N_l); G = Gram
matrix of the picture; A = Gram matrix of the style.
"""

from functools import partial

import jax
import jax.numpy as jnp

from nst_jax.lift import Features, Lifted, positions
from nst_jax.types import Array


@jax.custom_jvp
def _outer_products(flat: Array) -> Array:
    dtype = jnp.promote_types(flat.dtype, jnp.float32)
    return jnp.matmul(flat.T, flat, precision="highest", preferred_element_type=dtype)


@_outer_products.defjvp
def _outer_products_jvp(primals: tuple[Array], tangents: tuple[Array]):
    """dG = P + P^T with P = F^T dF: in reverse one product F (D + D^T), where JAX makes two."""
    (flat,), (tangent,) = primals, tangents
    gram = _outer_products(flat)
    product = jnp.matmul(flat.T, tangent, precision="highest", preferred_element_type=gram.dtype)
    return gram, product + product.T


def gram_sum(features: Features) -> Array:
    """Sum over positions of the features' outer products (Gatys 2016, eq. 3).

    G_ij = sum_k F_ik F_jk

    Additive over pixels. Products are summed in float32 or wider at full precision: TF32 and
    bfloat16 sums are too coarse for the differences that the style term squares.

    Args:
      features: ``[h, w, C]``, or a product S K + 1 b^T of as many positions, whose sum is
        K^T (sum s s^T) K + (K^T sum s) b^T + b (K^T sum s)^T + h w b b^T.

    Returns:
      ``[C, C]``.
    """
    if not isinstance(features, Lifted):
        return _outer_products(features.reshape(-1, features.shape[-1]))
    flat = features.own.reshape(-1, features.own.shape[-1])
    own_gram = _outer_products(flat)
    kernel, bias = (x.astype(own_gram.dtype) for x in (features.kernel, features.bias))
    matmul = partial(jnp.matmul, precision="highest")
    gram = matmul(kernel.T, matmul(own_gram, kernel))
    crossed = jnp.outer(matmul(kernel.T, jnp.sum(flat, axis=0, dtype=gram.dtype)), bias)
    return gram + crossed + crossed.T + flat.shape[0] * jnp.outer(bias, bias)


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
    return gram / (positions * (gram.shape[-1] if normalization == "chw" else 1.0))


def gram_matrix(features: Features, *, normalization: str = "hw") -> Array:
    """Normalised Gram matrix of features: the style representation (Gatys 2016, eq. 3).

    G = F F^T / (h w), or / (C h w)

    Args:
      features: ``[h, w, C]``, or a product, see ``gram_sum``.
      normalization: ``"hw"`` or ``"chw"``, see ``normalize_gram``.

    Returns:
      ``[C, C]``, symmetric and positive semidefinite.

    >>> gram_matrix(jnp.ones((2, 2, 1))).tolist()
    [[1.0]]
    """
    return normalize_gram(
        gram_sum(features), positions=positions(features), normalization=normalization
    )


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


def total_variation(image: Array, *, order: int = 2) -> Array:
    """Sum over neighbouring pixels of their differences.

    TV = sum |dx|^p / p + sum |dy|^p / p

    over all pairs of horizontal and vertical neighbours, the last row and column included. Order
    1 is neural-style-pt's; order 2 has the gradient that neural-style (Torch7) adds, which leaves
    the last row and column out. The value grows with the pixels' range: with weight w for [0, 255]
    the same term on [0, 1] has the weight 255 w (order 1) or 255^2 w (order 2).

    Args:
      image: ``[H, W, 3]``.
      order: p, 1 or 2.

    Returns:
      Scalar.

    Raises:
      ValueError: for another order.

    >>> float(total_variation(jnp.array([[[0.0], [2.0]]]), order=1))
    2.0
    """
    if order not in (1, 2):
        raise ValueError(f"order is {order}: expected 1 or 2")
    power = jnp.abs if order == 1 else lambda d: jnp.square(d) / 2
    horizontal = image[:, 1:] - image[:, :-1]
    vertical = image[1:] - image[:-1]
    return jnp.sum(power(horizontal)) + jnp.sum(power(vertical))
