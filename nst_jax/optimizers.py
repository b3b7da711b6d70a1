"""The optimisers that the command line offers, from optax.

Each works on pixels in [0, 1] from outside and in [0, pixel_range] inside, so that a learning
rate, Adam's epsilon and L-BFGS's first step mean what they mean in tools that optimise 0-255.
"""

from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import optax

from nst_jax.config import Config, Optimizer
from nst_jax.lbfgs import scale_by_torch_lbfgs
from nst_jax.types import Array


def in_pixel_units(
    optimizer: optax.GradientTransformation, pixel_range: float
) -> optax.GradientTransformationExtraArgs:
    """Let ``optimizer`` see z = pixel_range * x in place of the parameters x.

    Gradients become g / pixel_range, updates come back divided by pixel_range. So on x alone a
    learning rate is pixel_range times smaller and Adam's epsilon pixel_range times larger.

    Args:
      optimizer: any optax transformation.
      pixel_range: the factor.

    Returns:
      A transformation of parameters x.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params):
        return inner.init(params * pixel_range)

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("this optimiser needs the parameters as the third argument of update")
        if "grad" in extra:
            extra["grad"] = extra["grad"] / pixel_range
        if "value_fn" in extra:
            value_fn = extra["value_fn"]
            extra["value_fn"] = lambda z: value_fn(z / pixel_range)
        z_updates: Any
        z_updates, state = inner.update(updates / pixel_range, state, params * pixel_range, **extra)
        return z_updates / pixel_range, state

    return optax.GradientTransformationExtraArgs(init, update)


def lbfgs(
    learning_rate: float | Array = 1.0, memory_size: int = 100, pixel_range: float = 1.0
) -> optax.GradientTransformation:
    """L-BFGS with Torch's fixed step, see ``lbfgs.scale_by_torch_lbfgs``."""
    return optax.chain(
        scale_by_torch_lbfgs(memory_size, pixel_range=pixel_range),
        optax.scale_by_learning_rate(learning_rate),
    )


@lru_cache(maxsize=64)
def make_optimizer(
    name: Optimizer, *, memory_size: int | None = None, pixel_range: float = 255.0
) -> optax.GradientTransformationExtraArgs:
    """Build an optimiser; equal arguments give the same object.

    Args:
      name: ``"lbfgs"``, ``"lbfgs-linesearch"`` (optax's zoom line search) or ``"adam"``.
      memory_size: pairs that L-BFGS remembers; by default 100, with line search 10.
      pixel_range: range of the pixels that the optimiser sees, see ``in_pixel_units``.

    Returns:
      A transformation whose learning rate, where it has one, is part of its state.
    """
    if name == "adam":
        return in_pixel_units(optax.inject_hyperparams(optax.adam)(learning_rate=1.0), pixel_range)
    if name == "lbfgs":
        make = optax.inject_hyperparams(lbfgs, static_args=("memory_size", "pixel_range"))
        optimizer = make(learning_rate=1.0, memory_size=memory_size or 100, pixel_range=pixel_range)
        return optax.with_extra_args_support(optimizer)
    if name == "lbfgs-linesearch":
        return in_pixel_units(optax.lbfgs(memory_size=memory_size or 10), pixel_range)
    raise ValueError(f"optimizer is {name!r}: expected lbfgs, lbfgs-linesearch or adam")


def set_learning_rate(opt_state, config: Config):
    """Put the config's learning rate into the state of ``make_optimizer``'s optimiser."""
    if config.optimizer == "lbfgs-linesearch":
        return opt_state
    default = 1.0 if config.optimizer == "lbfgs" else config.pixel_range * 10 / 255
    rate = default if config.learning_rate is None else config.learning_rate
    old = opt_state.hyperparams["learning_rate"]
    return optax.tree.set(opt_state, learning_rate=jnp.asarray(rate, old.dtype))
