"""What settings may be, and what goes together. Standard library only."""

from typing import Any, Literal, get_args, get_origin, get_type_hints

from nst_jax.errors import InputError
from nst_jax.layer_factors import FLOAT32_MAX, check_weight
from nst_jax.loss_config import HISTOGRAM_LAYERS

LARGEST_SIZE = 100_000  # pixels of a side
LARGEST_COUNT = 2**31 - 1  # of steps and the like, which devices count in int32


def _is_count(value: object, *, most: int = LARGEST_COUNT) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _check_scales(config: Any) -> None:
    """Check what concerns the sizes of the scales and their steps."""
    if not 1.05 <= config.scale_factor <= FLOAT32_MAX:  # each scale is compiled for itself
        raise InputError(
            f"scale_factor is {config.scale_factor}: expected a finite number from 1.05 on"
        )
    if config.scale_factor != type(config).scale_factor and config.min_size is None:
        raise InputError("scale_factor has no meaning for one scale: name its coarsest by min_size")
    if not isinstance(config.scale_steps, tuple) or not all(map(_is_count, config.scale_steps)):
        raise InputError(
            f"scale_steps is {config.scale_steps}: expected whole numbers, 1 or more, at most "
            f"{LARGEST_COUNT}"
        )
    if config.scale_steps and config.min_size is None:
        raise InputError("scale_steps has no meaning for one scale: name its coarsest by min_size")
    if not 0 <= config.averaging <= 0.9999:
        raise InputError(f"averaging is {config.averaging}: expected 0 to 0.9999")


def _check_losses(config: Any) -> None:
    """Check what concerns single losses."""
    order, orders = config.tv_order, {"anisotropic": (1, 2), "nine-point": (2,)}
    if config.tv_form in orders:
        expected = "one of " + ", ".join(map(str, orders[config.tv_form]))
        right = order in orders[config.tv_form]
    else:
        expected, right = "1 to 4", isinstance(order, int | float) and 1 <= order <= 4
    if not right:
        shown = f"{order:g}" if isinstance(order, float) else repr(order)
        raise InputError(f"tv_order is {shown}: expected {expected} for tv_form {config.tv_form}")
    given = [name for name, _ in config.content_losses + config.style_losses]
    for setting, loss in (("histogram_layers", "histogram"), ("covariance_eps", "wasserstein")):
        if loss not in given and getattr(config, setting) != getattr(type(config), setting):
            raise InputError(f"{setting} has no meaning without {loss} among the style losses")
    _check_positive("covariance_eps", config.covariance_eps)
    layers = [name for name, _ in config.style_layers]
    if "histogram" in given and layers:
        other = [name for name in config.histogram_layers if name not in layers]
        default = config.histogram_layers == HISTOGRAM_LAYERS and len(other) < 2
        if (other and not default) or not config.histogram_layers:
            raise InputError(
                f"histogram_layers are {', '.join(config.histogram_layers) or 'none'}: expected "
                f"some of the style layers, {', '.join(layers)}"
            )


def _check_adam(config: Any) -> None:
    """Check Adam's own settings."""
    own = ("adam_beta1", "adam_beta2", "adam_epsilon", "clip")
    given = [name for name in own if getattr(config, name) != getattr(type(config), name)]
    if config.optimizer != "adam" and given:
        raise InputError(
            f"{given[0]} has no meaning for {config.optimizer}: leave it out, or choose adam"
        )
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(config, name) <= 0.999999:
            raise InputError(f"{name} is {getattr(config, name)}: expected 0 to 0.999999")
    _check_positive("adam_epsilon", config.adam_epsilon)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value <= FLOAT32_MAX:
        raise InputError(f"{name} is {value}: expected a finite number (in float32) above 0")


def check_config(config: Any) -> None:
    """Check the values of a ``Config`` and their combinations; its types cover the rest.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    for name in ("content_weight", "style_weight", "tv_weight", "noise_scale"):
        check_weight(name, getattr(config, name))
    for name in ("mse_factor", "pixel_range", "learning_rate"):
        value = getattr(config, name)
        if value is not None:
            _check_positive(name, value)
    if not 1e-15 <= config.pixel_range <= 1e15:  # float32 is to have its square, and one over it
        raise InputError(f"pixel_range is {config.pixel_range}: expected 1e-15 to 1e15")
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            expected = ", ".join(map(str, get_args(hint)))
            raise InputError(f"{name} is {getattr(config, name)!r}: expected one of {expected}")
    _check_losses(config)
    _check_adam(config)
    if not config.content_layers and not config.style_layers:
        raise InputError("no layers: expected at least one content or style layer")
    bounds = {"steps": LARGEST_COUNT, "memory_size": LARGEST_COUNT, "min_size": LARGEST_SIZE}
    for name, most in bounds.items():
        value = getattr(config, name)
        if value is not None and not _is_count(value, most=most):
            raise InputError(
                f"{name} is {value}: expected a whole number, 1 or more, at most {most}"
            )
    _check_scales(config)
    if config.tile not in ("auto", "off") and not _is_count(config.tile):
        raise InputError(
            f"tile is {config.tile!r}: expected auto, off, or a side in pixels, 1 or more, at most "
            f"{LARGEST_COUNT}"
        )
    if _is_count(config.tile) and config.remat == "on":
        raise InputError(
            "remat on has no meaning with tiles, which compute all activations twice: leave one out"
        )
    if config.precision == "bfloat16" and config.convolution == "winograd":
        raise InputError(
            "convolution winograd is too coarse in bfloat16: choose direct, or another precision"
        )
    if not 0 <= config.noise_ratio <= 1:
        raise InputError(f"noise_ratio is {config.noise_ratio}: expected 0 to 1")
    if config.optimizer == "adam" and config.memory_size is not None:
        raise InputError("memory_size has no meaning for adam: leave it out, or choose lbfgs")
    if config.optimizer == "lbfgs-linesearch" and config.learning_rate is not None:
        raise InputError(
            "learning_rate has no meaning for lbfgs-linesearch, which searches its step: "
            "leave it out, or choose lbfgs or adam"
        )
