"""The optimisers that the command line offers, from optax.

Each works on pixels in [0, 1] from outside and in [0, pixel_range] inside, so that a learning
rate, Adam's epsilon and L-BFGS's first step mean what they mean in tools that optimise 0-255.
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nst_jax.config import LBFGS, Config, LBFGSLineSearch, OptimizerName, Preconditioner
from nst_jax.coordinates import in_pixel_units, in_spectral_coordinates
from nst_jax.lbfgs import PAIRS, scale_by_torch_lbfgs
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
