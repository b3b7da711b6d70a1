"""The network's 3x3 convolution, fast in loops, and kernels in the form in which it applies them.

Contract: features ``[1, H, W, C]``, kernels ``[3, 3, in, out]``, stride 1, zero padding 1.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nst_jax.layers import TAPS, convs_to, deepest
from nst_jax.lift import kernel_root
from nst_jax.types import Array, Variables
from nst_jax.winograd import winograd_conv, winograd_kernel

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
    The lifts of a slim network get their ``root``, see ``lift.compact``.

    Args:
      variables: VGG-19's collections.
      convolution: ``"direct"``, or ``"winograd"``, see ``winograd``: with a quarter of the
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
