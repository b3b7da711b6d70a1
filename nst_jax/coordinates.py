"""Optimising in other coordinates z of the pixels, x = T z, with T linear and symmetric.

Inside, an optimiser sees the gradient T g and the parameters T^-1 x; its updates come back as T u.
So a diagonal or scalar guess of the curvature, as Adam's or L-BFGS's first, is made in coordinates
where it fits better; the objective and its minima stay what they are.

Contract: images ``[H, W, 3]``.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from nst_jax.types import Array

FREQUENCY_POWER = 0.35
LUMINANCE = 0.6


def in_coordinates(
    optimizer: optax.GradientTransformation,
    transform: Callable[[Array], Array],
    inverse: Callable[[Array], Array],
) -> optax.GradientTransformationExtraArgs:
    """Let ``optimizer`` see z = T^-1 x in place of the parameters x.

    Args:
      optimizer: any optax transformation; with line search too.
      transform: T, linear and symmetric.
      inverse: T^-1.

    Returns:
      A transformation of parameters x.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params):
        return inner.init(inverse(params))

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("this optimiser needs the parameters as the third argument of update")
        gradient = transform(updates)
        if "grad" in extra:
            extra["grad"] = gradient
        if "value_fn" in extra:
            value_fn = extra["value_fn"]
            extra["value_fn"] = lambda z: value_fn(transform(z))
        z_updates: Any
        z_updates, state = inner.update(gradient, state, inverse(params), **extra)
        return transform(z_updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def in_pixel_units(
    optimizer: optax.GradientTransformation, pixel_range: float
) -> optax.GradientTransformationExtraArgs:
    """Let ``optimizer`` see z = pixel_range * x.

    On x alone a learning rate is pixel_range times smaller and Adam's epsilon pixel_range times
    larger.
    """
    return in_coordinates(optimizer, lambda z: z / pixel_range, lambda x: x * pixel_range)


def in_spectral_coordinates(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Let ``optimizer`` see the picture with its fine and its grey parts amplified.

    Steps so become larger along coarse structures and along colours. Found by trial on the
    neural-style objective: natural pictures have amplitudes of about 1/f, and the objective's
    curvature is five to ten times larger along grey than along colours.

    References:
      Olah, Mordvintsev and Schubert 2017, "Feature Visualization", Distill, section
      "Preconditioning and Parameterization".
    """
    return in_coordinates(optimizer, _spectral(1.0), _spectral(-1.0))


def _spectral(power: float) -> Callable[[Array], Array]:
    """T^power: f^-0.35 for the frequency f, scaled to unit mean square, and 0.6 for grey."""

    def apply(image: Array) -> Array:
        height, width, _ = image.shape
        rows, columns = jnp.fft.fftfreq(height), jnp.fft.rfftfreq(width)
        # The mean colour is treated as the lowest frequency. The picture's opposite borders touch
        # in this transform; that matters little, for the filter is short.
        frequency = jnp.sqrt(rows[:, None] ** 2 + columns[None] ** 2)
        frequency = jnp.maximum(frequency, 1 / max(height, width)).astype(image.dtype)
        amplitude = frequency**-FREQUENCY_POWER
        amplitude = (amplitude / jnp.sqrt(jnp.mean(amplitude**2))) ** power
        spectrum = jnp.fft.rfft2(image, axes=(0, 1)) * amplitude[..., None]
        image = jnp.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
        return image + (LUMINANCE**power - 1) * image.mean(-1, keepdims=True)

    return apply
