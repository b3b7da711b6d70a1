"""The network's 3x3 convolution, direct or by Winograd, and kernels as loops apply them.

Winograd's F(4x4, 3x3) takes a quarter of the multiplications:

    Y = A^T [(G g G^T) * (B^T d B)] A

d is a 6x6 tile of the input, overlapping its neighbours by 2, g the kernel, Y a 4x4 tile of the
output and * the elementwise product, which over many channels is 36 matrix products. A, B and G
interpolate polynomials at five points and infinity. The textbook's points 0, +-1, +-2 lose more
digits: with 0, +-2/3, +-3/2 the error in float32 is less than half.

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

TILE = 4

OVERLAPPING = TILE + 2

POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T ``[4, 6]``, B^T ``[6, 6]`` and G ``[6, 3]`` by Toom and Cook's construction."""
    output = np.zeros((TILE, OVERLAPPING))
    data = np.zeros((OVERLAPPING, OVERLAPPING))
    kernel = np.zeros((OVERLAPPING, 3))
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
    """sum_j matrix_ij arrays_j for each row i, as elementwise sums: they fuse, a product cannot."""

    def row(factors: np.ndarray) -> Array:
        terms = [float(f) * x for f, x in zip(factors, arrays, strict=True) if abs(f) > 1e-12]
        return sum(terms[1:], terms[0])

    return [row(factors) for factors in matrix]


@jax.jit  # Not to compile it apart, but so that layers of one shape are traced once.
def winograd_kernel(kernel: Array) -> Array:
    """Transform a kernel for ``winograd_conv``: G g G^T.

    Args:
      kernel: ``[3, 3, in, out]``.

    Returns:
      ``[6, 6, in, out]``.
    """
    g = jnp.asarray(KERNEL, kernel.dtype)
    both = jnp.matmul(jnp.kron(g, g), kernel.reshape(9, -1), precision="highest")
    return both.reshape(OVERLAPPING, OVERLAPPING, *kernel.shape[2:])


def _overlapping(x: Array, axis: int) -> list[Array]:
    """The six rows of every tile: of ``[..., tiles + 1, 4, ...]`` six times ``[..., tiles, ...]``.

    There is one tile more than needed: its first two rows are the overlap of the last one.
    """
    tiles = x.shape[axis] - 1
    rows = [jax.lax.index_in_dim(x, i % TILE, axis + 1, keepdims=False) for i in range(OVERLAPPING)]
    return [
        jax.lax.slice_in_dim(row, i // TILE, i // TILE + tiles, axis=axis)
        for i, row in enumerate(rows)
    ]


@partial(jax.jit, static_argnames="precision")
def winograd_conv(x: Array, kernel: Array, *, precision: str = "highest") -> Array:
    """Convolve by tiles of 4x4 pixels.

    Args:
      x: ``[1, H, W, in]``.
      kernel: ``[6, 6, in, out]`` from ``winograd_kernel``.
      precision: JAX's name of how exactly accelerators multiply.

    Returns:
      ``[1, H, W, out]``. In float32 its error is about 1e-6 of the result's standard deviation,
      where direct summation is at some 1e-7.
    """
    _, height, width, channels = x.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    padding = ((1, TILE * (rows + 1) - height - 1), (1, TILE * (columns + 1) - width - 1), (0, 0))
    x = jnp.pad(x[0], padding).reshape(rows + 1, TILE, -1, channels)
    # Barriers: without them the compiler makes every intermediate line anew for each of its uses.
    lines = jax.lax.optimization_barrier(jnp.stack(_combine(DATA, _overlapping(x, 0))))
    lines = lines.reshape(OVERLAPPING, rows, columns + 1, TILE, channels)
    cells = jnp.stack(_combine(DATA, _overlapping(lines, 2)), 1)
    cells = cells.reshape(OVERLAPPING, OVERLAPPING, rows * columns, channels)
    products = jnp.matmul(cells, kernel, precision=precision)
    products = products.reshape(OVERLAPPING, OVERLAPPING, rows, columns, -1)
    lines = jnp.stack(_combine(OUTPUT, list(jnp.moveaxis(products, 1, 0))), 3)
    lines = jax.lax.optimization_barrier(lines.reshape(OVERLAPPING, rows, columns * TILE, -1))
    y = jnp.stack(_combine(OUTPUT, list(lines)), 1)
    return y.reshape(1, rows * TILE, columns * TILE, -1)[:, :height, :width]


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
    """Kernel of the transposed convolution: ``[3, 3, in, out]`` to ``[3, 3, out, in]``, flipped."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _apply(x: Array, kernel: Array, *, precision: str) -> Array:
    """Convolve with a kernel as it is, ``[3, 3, ...]``, or transformed, ``[6, 6, ...]``."""
    apply = _convolve if kernel.shape[0] == 3 else winograd_conv
    return apply(x, kernel, precision=precision)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def conv(
    x: Array, kernel: Array, forward: Array, backward: Array, precision: str = "highest"
) -> Array:
    """3x3 convolution whose gradient to ``x`` is an ordinary convolution too.

    JAX's own transpose rule gives the same numbers, but inside ``scan`` and ``while_loop`` XLA's
    CPU backend then misses its fast convolution: a VGG step was three times slower there.

    Args:
      x: features, ``[1, H, W, in]``.
      kernel: ``[3, 3, in, out]``; only its own gradient is computed with it.
      forward: the kernel as it is to be applied, see ``prepare_kernels``.
      backward: likewise ``transpose_kernel(kernel)``. A loop does better to make both outside.
      precision: JAX's name of how exactly accelerators multiply, forward and backward. It is said
        here because a context (``jax.default_matmul_precision``) does not reach the gradient.

    Returns:
      ``[1, H, W, out]``.
    """
    return _apply(x, forward, precision=precision)


def _conv_forward(x: Array, kernel: Array, forward: Array, backward: Array, precision: str):
    return conv(x, kernel, forward, backward, precision), (x, kernel, forward, backward)


def _conv_backward(precision: str, residuals: tuple[Array, Array, Array, Array], cotangent: Array):
    x, kernel, forward, backward = residuals
    # Unused by the pixels' gradient, and then removed by the compiler.
    plain = partial(_convolve, x, precision=precision)
    (kernel_cotangent,) = jax.vjp(plain, kernel)[1](cotangent)
    x_cotangent = conv(cotangent, transpose_kernel(kernel), backward, forward, precision)
    return x_cotangent, kernel_cotangent, jnp.zeros_like(forward), jnp.zeros_like(backward)


conv.defvjp(_conv_forward, _conv_backward)


def prepare_kernels(
    variables: Variables,
    *,
    convolution: str = "direct",
    layers: tuple[str, ...] = TAPS,
    dtype: Any = None,
) -> Variables:
    """Add the collection ``prepared``: the kernels in the form in which a loop applies them.

    Without it every step of a loop flips all kernels again for the gradient to the pixels: XLA does
    not move that out of the loop. They are a copy: who changes the kernels prepares them again.
    The lifts of a slim network get their ``root``, see ``projection.compact``.

    Args:
      variables: VGG-19's collections.
      convolution: ``"direct"``, or ``"winograd"``, see ``winograd_conv``: with a quarter of the
        multiplications, on CPUs twice as fast; in float32 the gradient to the pixels is then as
        exact as PyTorch's, with a median error of 3e-7 of its root mean square in place of 1.4e-7.
      layers: taps that will be asked for; kernels beyond the deepest are left out.
      dtype: of the prepared kernels; by default that of the kernels.

    Returns:
      The same with ``prepared``: layer -> ``{"forward", "backward"}`` -> ``[3, 3, in, out]`` or
      ``[6, 6, in, out]``; twice or eight times as large as the kernels.

    Raises:
      ValueError: for another convolution.
    """
    if convolution not in ("direct", "winograd"):
        raise ValueError(f"convolution is {convolution!r}: expected 'direct' or 'winograd'")

    def prepare(kernel: Array) -> dict[str, Array]:
        kernel = kernel if dtype is None else kernel.astype(dtype)
        pair = {"forward": kernel, "backward": transpose_kernel(kernel)}
        # With few channels the transforms cost more than the multiplications that they save.
        wide = max(kernel.shape[2:]) >= WINOGRAD_CHANNELS
        return jax.tree.map(winograd_kernel, pair) if convolution == "winograd" and wide else pair

    params = variables["params"]
    used = convs_to(deepest(layers))
    # A slim network ends with the deepest layer that it has learned.
    kernels = {name: prepare(params[name]["kernel"]) for name in used if name in params}
    prepared = {**variables, "prepared": kernels}
    if "lift" in variables:
        prepared["lift"] = {
            pooling: {
                name: {**lift, "root": kernel_root(lift["kernel"])} if name in layers else lift
                for name, lift in lifts.items()
            }
            for pooling, lifts in variables["lift"].items()
        }
    return prepared
