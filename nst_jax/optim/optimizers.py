"""The optimisers that the command line offers, from optax, in the coordinates that fit them.

Each works on pixels in [0, 1] from outside and in [0, pixel_range] inside, so that a learning
rate, Adam's epsilon and L-BFGS's first step mean what they mean in tools that optimise 0-255.

In other coordinates z of the pixels, x = T z with T linear and symmetric, an optimiser sees the
gradient T g and the parameters T^-1 x; its updates come back as T u. So a diagonal or scalar guess
of the curvature, as Adam's or L-BFGS's first, is made where it fits better; the objective and its
minima stay what they are.

Contract: images ``[H, W, 3]``.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nst_jax.config.config import LBFGS, Config, LBFGSLineSearch, OptimizerName, Preconditioner
from nst_jax.optim.lbfgs import PAIRS, scale_by_torch_lbfgs
from nst_jax.types import Array


def lbfgs(
    learning_rate: float | Array = 1.0,
    memory_size: int = PAIRS,
    pixel_range: float = 1.0,
    first_step: float | None = None,
    gain: float = 1.0,
    memory_dtype: str | None = None,
) -> optax.GradientTransformation:
    """L-BFGS with a fixed step, see ``lbfgs.scale_by_torch_lbfgs`` also for the options."""
    return optax.chain(
        scale_by_torch_lbfgs(
            memory_size,
            pixel_range=pixel_range,
            first_step=first_step,
            gain=gain,
            memory_dtype=memory_dtype,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )


@lru_cache(maxsize=64)
def make_optimizer(
    name: OptimizerName,
    *,
    memory_size: int | None = None,
    pixel_range: float = 255.0,
    preconditioner: Preconditioner = "none",
    memory_dtype: str | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Build an optimiser; equal arguments give the same object.

    Args:
      name: ``"lbfgs"``, ``"lbfgs-linesearch"`` (optax's zoom line search) or ``"adam"``.
      memory_size: pairs that L-BFGS remembers; by default 100, with line search 10.
      pixel_range: range of the pixels that the optimiser sees, see ``in_pixel_units``.
      preconditioner: ``"none"``, or ``"spectral"``, see ``in_spectral_coordinates``; ``"lbfgs"``
        then begins with a step of 0.02 in those coordinates in place of Torch's tiny one, and
        takes twice the usual guess of the inverse curvature.
      memory_dtype: of what ``"lbfgs"`` remembers, see ``lbfgs.scale_by_torch_lbfgs``.
      betas, epsilon: of ``"adam"``: decay of its moments, and what it adds to the second's root.

    Returns:
      A transformation whose learning rate, where it has one, is part of its state.
    """
    spectral = preconditioner == "spectral"
    coordinates = in_spectral_coordinates if spectral else optax.with_extra_args_support
    if name == "adam":
        make = optax.inject_hyperparams(optax.adam, static_args=("b1", "b2", "eps"))
        adam = make(learning_rate=1.0, b1=betas[0], b2=betas[1], eps=epsilon)
        return in_pixel_units(coordinates(adam), pixel_range)
    if name == "lbfgs":
        # L-BFGS itself does not depend on the pixels' unit, its first step apart.
        options: dict[str, Any] = {"pixel_range": pixel_range}
        if spectral:
            options = {"first_step": 0.02, "gain": 2.0}
        options |= {"memory_dtype": memory_dtype}
        static = ("memory_size", "pixel_range", "first_step", "gain", "memory_dtype")
        make = optax.inject_hyperparams(lbfgs, static_args=static)
        return coordinates(make(learning_rate=1.0, memory_size=memory_size or PAIRS, **options))
    if name == "lbfgs-linesearch":
        return in_pixel_units(coordinates(optax.lbfgs(memory_size=memory_size or 10)), pixel_range)
    raise ValueError(f"optimizer is {name!r}: expected lbfgs, lbfgs-linesearch or adam")


def set_learning_rate(opt_state, *configs: Config):
    """Put a config's learning rate into the state of ``make_optimizer``'s optimiser.

    A state with leading axes takes the rates of several configs, in the order of its entries.
    """
    if isinstance(configs[0].optimizer, LBFGSLineSearch):
        return opt_state
    old = opt_state.hyperparams["learning_rate"]
    rates = jnp.asarray([_learning_rate(config) for config in configs], old.dtype)
    return optax.tree.set(opt_state, learning_rate=rates.reshape(old.shape))


def scale_learning_rate(opt_state: Any, factor: float) -> Any:
    """The state with its learning rate multiplied, where it has one; others as they are."""
    rate = optax.tree.get(opt_state, "learning_rate", None)
    if rate is None:
        return opt_state
    # Where the old one is: or the second call of a compiled loop would compile anew.
    scaled = jax.device_put((rate * factor).astype(rate.dtype), rate.sharding)
    return optax.tree.set(opt_state, learning_rate=scaled)


def _learning_rate(config: Config) -> float:
    optimizer = config.optimizer
    assert not isinstance(optimizer, LBFGSLineSearch)
    default = 1.0 if isinstance(optimizer, LBFGS) else config.loss.pixel_range * 10 / 255
    return default if optimizer.learning_rate is None else optimizer.learning_rate


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
    """Let ``optimizer`` see the image with its fine and its grey parts amplified.

    Steps so become larger along coarse structures and along colours. Found by trial on the
    neural-style objective: natural images have amplitudes of about 1/f, and the objective's
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
        # The mean colour is treated as the lowest frequency. The image's opposite borders touch
        # in this transform; that matters little, for the filter is short.
        frequency = jnp.sqrt(rows[:, None] ** 2 + columns[None] ** 2)
        frequency = jnp.maximum(frequency, 1 / max(height, width)).astype(image.dtype)
        amplitude = frequency**-FREQUENCY_POWER
        amplitude = (amplitude / jnp.sqrt(jnp.mean(amplitude**2))) ** power
        spectrum = jnp.fft.rfft2(image, axes=(0, 1)) * amplitude[..., None]
        image = jnp.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
        return image + (LUMINANCE**power - 1) * image.mean(-1, keepdims=True)

    return apply
