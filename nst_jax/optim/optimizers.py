"""The optimisers of the package, based on optax, in transformed coordinates.

The parameters are pixels in [0, 1]; the optimisers see pixels in [0, pixel_range], so that a
learning rate, Adam's epsilon and L-BFGS's first step mean the same as in tools that optimise 0-255.

More generally, in coordinates z with x = T z, T linear and symmetric, an optimiser sees the
parameters T^-1 x and the gradient T g (chain rule), and its update u becomes T u. This is
preconditioning with T T^T (Nocedal and Wright 2006, section 5.1, for conjugate gradients): the
objective and its minima are the same, but a diagonal or scalar model of the curvature, as in Adam
or in the initial Hessian of L-BFGS, fits better.

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
    """L-BFGS with a fixed step length; options as for ``lbfgs.scale_by_torch_lbfgs``."""
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
    """Build an optimiser; equal arguments return the same object.

    Args:
      name: ``"lbfgs"``, ``"lbfgs-linesearch"`` (optax's zoom line search; Nocedal and Wright 2006,
        algorithms 3.5 and 3.6) or ``"adam"`` (Kingma and Ba 2015, algorithm 1).
      memory_size: number of pairs of L-BFGS; by default 100, with line search 10.
      pixel_range: range of the pixels that the optimiser sees, see ``in_pixel_units``.
      preconditioner: ``"none"`` or ``"spectral"``, see ``in_spectral_coordinates``. With
        ``"spectral"``, the first step of ``"lbfgs"`` has a root mean square of 0.02 in those
        coordinates instead of Torch's tiny one, and gamma is doubled.
      memory_dtype: type of the pairs of ``"lbfgs"``, see ``lbfgs.scale_by_torch_lbfgs``.
      betas, epsilon: beta_1, beta_2 and epsilon of Adam.

    Returns:
      A transformation whose state includes its learning rate, if it has one.

    Raises:
      ValueError: for an unknown name.
    """
    spectral = preconditioner == "spectral"
    coordinates = in_spectral_coordinates if spectral else optax.with_extra_args_support
    if name == "adam":
        make = optax.inject_hyperparams(optax.adam, static_args=("b1", "b2", "eps"))
        adam = make(learning_rate=1.0, b1=betas[0], b2=betas[1], eps=epsilon)
        return in_pixel_units(coordinates(adam), pixel_range)
    if name == "lbfgs":
        # Apart from its first step, L-BFGS is invariant to the unit of the pixels.
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
    """Set the learning rate in the state of an optimiser from ``make_optimizer``.

    Args:
      opt_state: the optimizer state; a batch of states for several configs.
      configs: one config, or one for each batch element.

    Returns:
      The state with the learning rates; with line search the state as it is.
    """
    if isinstance(configs[0].optimizer, LBFGSLineSearch):
        return opt_state
    old = opt_state.hyperparams["learning_rate"]
    rates = jnp.asarray([_learning_rate(config) for config in configs], old.dtype)
    return optax.tree.set(opt_state, learning_rate=rates.reshape(old.shape))


def scale_learning_rate(opt_state: Any, factor: float) -> Any:
    """Multiply the learning rate in an optimizer state; a state without one is unchanged."""
    rate = optax.tree.get(opt_state, "learning_rate", None)
    if rate is None:
        return opt_state
    # Keep the device placement, or the next call of the compiled loop would compile again.
    scaled = jax.device_put((rate * factor).astype(rate.dtype), rate.sharding)
    return optax.tree.set(opt_state, learning_rate=scaled)


def _learning_rate(config: Config) -> float:
    optimizer = config.optimizer
    assert not isinstance(optimizer, LBFGSLineSearch)
    default = 1.0 if isinstance(optimizer, LBFGS) else config.loss.pixel_range * 10 / 255
    return default if optimizer.learning_rate is None else optimizer.learning_rate


# Parameters of the spectral preconditioner, found by trial, see ``in_spectral_coordinates``.
FREQUENCY_POWER = 0.35

LUMINANCE = 0.6


def in_coordinates(
    optimizer: optax.GradientTransformation,
    transform: Callable[[Array], Array],
    inverse: Callable[[Array], Array],
) -> optax.GradientTransformationExtraArgs:
    """Run an optimiser in coordinates z = T^-1 x.

    Args:
      optimizer: any optax transformation, also with line search.
      transform: T, linear and symmetric.
      inverse: T^-1.

    Returns:
      A transformation for parameters x.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params):
        return inner.init(inverse(params))

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("this optimiser needs the parameters as the third argument of update")
        gradient = transform(updates)
        if "grad" in extra:  # arguments of line searches
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
    """Run an optimiser on z = pixel_range * x.

    The equivalent on x itself has a learning rate pixel_range times smaller and an epsilon of Adam
    pixel_range times larger.
    """
    return in_coordinates(optimizer, lambda z: z / pixel_range, lambda x: x * pixel_range)


def in_spectral_coordinates(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Run an optimiser on z = T^-1 x, which amplifies fine structures and grey.

    Its updates T u are therefore larger along coarse structures and along colours. T multiplies the
    amplitude at frequency f by a multiple of f^-0.35 and the grey part by 0.6. Both numbers were
    found by trial on the objective of neural-style. The reasons: amplitudes of natural images fall
    off as about 1/f, and the curvature of the objective is five to ten times larger along grey than
    along colours.

    References:
      Olah, Mordvintsev and Schubert 2017, "Feature Visualization", Distill, section
      "Preconditioning and Parameterization".
    """
    return in_coordinates(optimizer, _spectral(1.0), _spectral(-1.0))


def _spectral(power: float) -> Callable[[Array], Array]:
    """The transform T^power, for T as in ``in_spectral_coordinates``.

    T is diagonal in a Fourier and colour basis, so its powers are powers of the diagonal.
    """

    def apply(image: Array) -> Array:
        height, width, _ = image.shape
        rows, columns = jnp.fft.fftfreq(height), jnp.fft.rfftfreq(width)
        # The mean (f = 0) counts as the lowest frequency. The FFT makes opposite borders
        # neighbours, which matters little, since the filter is short.
        frequency = jnp.sqrt(rows[:, None] ** 2 + columns[None] ** 2)
        frequency = jnp.maximum(frequency, 1 / max(height, width)).astype(image.dtype)
        amplitude = frequency**-FREQUENCY_POWER
        # Normalise to a mean square of 1 over the half spectrum that rfft2 keeps.
        amplitude = (amplitude / jnp.sqrt(jnp.mean(amplitude**2))) ** power
        spectrum = jnp.fft.rfft2(image, axes=(0, 1)) * amplitude[..., None]
        image = jnp.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
        # Grey is the mean over channels; its complement, colour, is unchanged.
        return image + (LUMINANCE**power - 1) * image.mean(-1, keepdims=True)

    return apply
