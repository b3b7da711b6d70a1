"""The network's 3x3 convolution, direct or by Winograd's algorithm, with prepared kernels.

Winograd's F(m x m, r x r) computes an m x m tile of the output of an r x r correlation in
(m + r - 1)^2 multiplications instead of m^2 r^2. F(4x4, 3x3) takes 36 instead of 144:

    Y = A^T [(G g G^T) * (B^T d B)] A

with (symbols of Lavin and Gray 2016, section 4, and their names below)

    d        6x6 tile of the input; neighbouring tiles overlap by r - 1 = 2
    g        3x3 kernel
    Y        4x4 tile of the output
    B^T      ``DATA``, [6, 6]
    G        ``KERNEL``, [6, 3]
    A^T      ``OUTPUT``, [4, 6]
    *        elementwise product. Summed over input channels it is a matrix product for each of the
             36 entries, which is where the time goes.

The matrices are those of Toom-Cook multiplication (evaluate two polynomials at five points and
infinity, multiply the values, interpolate the product), transposed for correlation. The usual
points 0, +-1, +-2 lose more digits: with 0, +-2/3, +-3/2 the error in float32 is less than half.

Contract: features ``[1, H, W, C]``, kernels ``[3, 3, in, out]``, stride 1, zero padding 1.

References:
  Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", CVPR, section 4.
  Barabasz et al. 2020, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep
  Neural Networks", ACM TOMS, on the choice of points.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nst_jax.config.layers import TAPS, convs_to, deepest
from nst_jax.models.projection import kernel_root
from nst_jax.types import Array, Variables

TILE = 4  # m, the side of a tile of the output

INPUT_TILE = TILE + 2  # m + r - 1, the side of a tile of the input

# 0 and a set that is closed under negation and inversion: powers of these points stay near 1, which
# keeps the matrices well conditioned. The sixth point is infinity.
POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T ``[4, 6]``, B^T ``[6, 6]`` and G ``[6, 3]`` by the Toom-Cook construction.

    With the points a_k and N_k = prod_{j != k} (a_k - a_j), column k of A^T has the powers a_k^i,
    row k of G has a_k^i / N_k, and row k of B^T has the coefficients of prod_{j != k} (x - a_j).
    The last row and column belong to the point at infinity, which picks the highest coefficient.
    """
    output = np.zeros((TILE, INPUT_TILE))
    data = np.zeros((INPUT_TILE, INPUT_TILE))
    kernel = np.zeros((INPUT_TILE, 3))
    for k, point in enumerate(POINTS):
        others = [other for other in POINTS if other != point]
        output[:, k] = point ** np.arange(TILE)
        data[k, :-1] = np.poly(others)[::-1]
        kernel[k] = point ** np.arange(3) / np.prod([point - other for other in others])
    output[-1, -1] = kernel[-1, -1] = 1
    data[-1] = np.poly(POINTS)[::-1]
    return output, data, kernel


OUTPUT, DATA, KERNEL = _matrices()


def _combine(matrix: np.ndarray, arrays: Sequence[Array]) -> list[Array]:
    """sum_j matrix_ij arrays_j for each row i.

    Elementwise sums, since XLA fuses these but not a product with a small matrix.
    """

    def combine_row(row: np.ndarray) -> Array:
        # Entries that are 0 in exact arithmetic are rounding errors of the construction.
        terms = [
            float(entry) * x for entry, x in zip(row, arrays, strict=True) if abs(entry) > 1e-12
        ]
        return sum(terms[1:], terms[0])

    return [combine_row(row) for row in matrix]


@jax.jit  # so that layers of equal shape are traced once
def winograd_kernel(kernel: Array) -> Array:
    """Transform a kernel for ``winograd_conv``, G g G^T.

    Args:
      kernel: ``[3, 3, in, out]``.

    Returns:
      ``[6, 6, in, out]``.
    """
    g = jnp.asarray(KERNEL, kernel.dtype)
    # vec(G g G^T) = (G kron G) vec(g) for row-major vec: one product for all channels.
    transformed = jnp.matmul(jnp.kron(g, g), kernel.reshape(9, -1), precision="highest")
    return transformed.reshape(INPUT_TILE, INPUT_TILE, *kernel.shape[2:])


def _tile_lines(x: Array, axis: int) -> list[Array]:
    """Split an axis into overlapping tiles: the i-th line of all tiles, for i = 0 to 5.

    Args:
      x: ``[..., tiles + 1, 4, ...]``. Lines 4 and 5 of a tile are the first two of the next one;
        the last tile is only there for its first two lines.
      axis: the axis of the tiles.

    Returns:
      Six arrays ``[..., tiles, ...]``.
    """
    tiles = x.shape[axis] - 1
    rows = [jax.lax.index_in_dim(x, i % TILE, axis + 1, keepdims=False) for i in range(INPUT_TILE)]
    return [
        jax.lax.slice_in_dim(row, i // TILE, i // TILE + tiles, axis=axis)
        for i, row in enumerate(rows)
    ]


@partial(jax.jit, static_argnames="precision")
def winograd_conv(x: Array, kernel: Array, *, precision: str = "highest") -> Array:
    """3x3 convolution by Winograd's F(4x4, 3x3).

    Args:
      x: ``[1, H, W, in]``.
      kernel: ``[6, 6, in, out]`` from ``winograd_kernel``.
      precision: JAX's precision of matrix products on accelerators.

    Returns:
      ``[1, H, W, out]``. In float32 the error is about 1e-6 of the standard deviation of the
      result; that of direct summation is about 1e-7.
    """
    _, height, width, channels = x.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    padding = ((1, TILE * (rows + 1) - height - 1), (1, TILE * (columns + 1) - width - 1), (0, 0))
    # Pad to rows + 1 and columns + 1 whole tiles, with one line of zeros in front. The last tile is
    # only there for its first two lines, which overlap the tile before.
    x = jnp.pad(x[0], padding).reshape(rows + 1, TILE, -1, channels)
    # B^T d B: first along rows, then along columns. Without the barriers, XLA fuses the first half
    # into each of its uses and so recomputes it.
    lines = jax.lax.optimization_barrier(jnp.stack(_combine(DATA, _tile_lines(x, 0))))
    lines = lines.reshape(INPUT_TILE, rows, columns + 1, TILE, channels)
    cells = jnp.stack(_combine(DATA, _tile_lines(lines, 2)), 1)
    cells = cells.reshape(INPUT_TILE, INPUT_TILE, rows * columns, channels)
    # The sum over input channels: 36 products [tiles, in] x [in, out].
    products = jnp.matmul(cells, kernel, precision=precision)
    products = products.reshape(INPUT_TILE, INPUT_TILE, rows, columns, -1)
    # A^T [...] A: first along columns, then along rows.
    lines = jnp.stack(_combine(OUTPUT, list(jnp.moveaxis(products, 1, 0))), 3)
    lines = jax.lax.optimization_barrier(lines.reshape(INPUT_TILE, rows, columns * TILE, -1))
    y = jnp.stack(_combine(OUTPUT, list(lines)), 1)
    return y.reshape(1, rows * TILE, columns * TILE, -1)[:, :height, :width]


# Convolutions with fewer channels stay direct: their transforms cost more than they save.
WINOGRAD_CHANNELS = 96


def _convolve(x: Array, kernel: Array, *, precision: str) -> Array:
    """Convolve ``[1, H, W, in]`` with ``[3, 3, in, out]``, stride 1, zero padding 1."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def transpose_kernel(kernel: Array) -> Array:
    """Kernel of the transposed convolution, flipped, ``[3, 3, in, out]`` to ``[3, 3, out, in]``."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _apply(x: Array, kernel: Array, *, precision: str) -> Array:
    """Convolve with a plain kernel, ``[3, 3, ...]``, or a transformed one, ``[6, 6, ...]``."""
    apply = _convolve if kernel.shape[0] == 3 else winograd_conv
    return apply(x, kernel, precision=precision)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def conv(
    x: Array, kernel: Array, forward: Array, backward: Array, precision: str = "highest"
) -> Array:
    """3x3 convolution whose gradient with respect to ``x`` is an ordinary convolution.

    JAX's transpose rule gives the same numbers, but inside ``scan`` and ``while_loop`` XLA's CPU
    backend then misses its fast convolution: a step with VGG took three times as long.

    Args:
      x: features, ``[1, H, W, in]``.
      kernel: ``[3, 3, in, out]``; used only for the gradient with respect to the kernel.
      forward: the kernel in the form that is applied, see ``prepare_kernels``.
      backward: ``transpose_kernel(kernel)`` in the same form. Prepare both outside of a loop.
      precision: JAX's precision of products on accelerators, forward and backward. It is an
        argument because a context (``jax.default_matmul_precision``) does not affect the gradient.

    Returns:
      ``[1, H, W, out]``.
    """
    return _apply(x, forward, precision=precision)


def _conv_forward(x: Array, kernel: Array, forward: Array, backward: Array, precision: str):
    return conv(x, kernel, forward, backward, precision), (x, kernel, forward, backward)


def _conv_backward(precision: str, residuals: tuple[Array, Array, Array, Array], cotangent: Array):
    x, kernel, forward, backward = residuals
    # If only the gradient to the pixels is wanted, XLA removes this as dead code.
    plain = partial(_convolve, x, precision=precision)
    (kernel_cotangent,) = jax.vjp(plain, kernel)[1](cotangent)
    # The gradient to x is the convolution of the cotangent with the transposed kernel, so the two
    # prepared kernels swap roles; this also defines the second derivative.
    x_cotangent = conv(cotangent, transpose_kernel(kernel), backward, forward, precision)
    return x_cotangent, kernel_cotangent, jnp.zeros_like(forward), jnp.zeros_like(backward)


conv.defvjp(_conv_forward, _conv_backward)


def prepare_kernels(
    variables: Variables,
    *,
    convolution: str = "direct",
    layers: tuple[str, ...] = TAPS,
    dtype: Any = None,
    winograd_channels: int | None = None,
) -> Variables:
    """Add the collection ``prepared``: kernels in the form in which a loop applies them.

    Without it, each step of a loop flips all kernels for the gradient to the pixels, since XLA does
    not move that out of the loop. The collection is a copy: prepare again if the kernels change.
    The projections of a slim network get their ``root``, see ``projection.compact``.

    Args:
      variables: VGG-19's collections.
      convolution: ``"direct"`` or ``"winograd"``, see ``winograd_conv``. Winograd takes a quarter
        of the multiplications and is twice as fast on CPUs. In float32 its gradient to the pixels
        has a median error of 3e-7 of the root mean square, as in PyTorch, instead of 1.4e-7.
      layers: the taps that will be computed; kernels beyond the deepest are left out.
      dtype: type of the prepared kernels; by default that of the kernels.
      winograd_channels: layers with fewer channels stay direct; by default
        ``WINOGRAD_CHANNELS``.

    Returns:
      The variables with ``prepared``: layer -> ``{"forward", "backward"}`` -> ``[3, 3, in, out]``
      or ``[6, 6, in, out]``; two or eight times the size of the kernels.

    Raises:
      ValueError: for an unknown convolution.
    """
    if convolution not in ("direct", "winograd"):
        raise ValueError(f"convolution is {convolution!r}: expected 'direct' or 'winograd'")

    minimum = WINOGRAD_CHANNELS if winograd_channels is None else winograd_channels

    def prepare(kernel: Array) -> dict[str, Array]:
        kernel = kernel if dtype is None else kernel.astype(dtype)
        pair = {"forward": kernel, "backward": transpose_kernel(kernel)}
        wide = max(kernel.shape[2:]) >= minimum
        return jax.tree.map(winograd_kernel, pair) if convolution == "winograd" and wide else pair

    params = variables["params"]
    used = convs_to(deepest(layers))
    # A slim network has no convolutions beyond the deepest layer that it was trained for.
    kernels = {name: prepare(params[name]["kernel"]) for name in used if name in params}
    prepared = {**variables, "prepared": kernels}
    if "lift" in variables:  # the name of the projections in weights files
        prepared["lift"] = {
            pooling: {
                name: {**projection, "root": kernel_root(projection["kernel"])}
                if name in layers
                else projection
                for name, projection in projections.items()
            }
            for pooling, projections in variables["lift"].items()
        }
    return prepared
