"""Neural style transfer in JAX.

The public functions are loaded when they are first used, so that importing the package, and
asking the command line for help, does not wait for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nst_jax.batch import stylize_batch
    from nst_jax.choices import Execution
    from nst_jax.config import Config, LossConfig
    from nst_jax.convolution import prepare_kernels
    from nst_jax.errors import InputError
    from nst_jax.images import load_image, save_image
    from nst_jax.loop import Callback, Progress
    from nst_jax.losses import content_loss, gram_matrix, style_loss
    from nst_jax.objective import loss_weights, make_loss
    from nst_jax.optimizers import make_optimizer
    from nst_jax.presets import PRESETS, get_preset
    from nst_jax.problem import Custom
    from nst_jax.solver import make_solver, run
    from nst_jax.threads import set_threads
    from nst_jax.transfer import Result, stylize
    from nst_jax.types import Guidance, Loss
    from nst_jax.variation import total_variation
    from nst_jax.vgg import VGG19, features
    from nst_jax.weights import find_weights, load_weights, save_weights

_HOMES = {
    "Callback": "loop",
    "Config": "config",
    "Custom": "problem",
    "Execution": "choices",
    "Guidance": "types",
    "Progress": "loop",
    "Result": "transfer",
    "LossConfig": "config",
    "InputError": "errors",
    "load_image": "images",
    "save_image": "images",
    "content_loss": "losses",
    "gram_matrix": "losses",
    "style_loss": "losses",
    "total_variation": "variation",
    "make_loss": "objective",
    "loss_weights": "objective",
    "make_optimizer": "optimizers",
    "PRESETS": "presets",
    "get_preset": "presets",
    "make_solver": "solver",
    "run": "solver",
    "set_threads": "threads",
    "stylize": "transfer",
    "stylize_batch": "batch",
    "Loss": "types",
    "VGG19": "vgg",
    "features": "vgg",
    "prepare_kernels": "convolution",
    "find_weights": "weights",
    "load_weights": "weights",
    "save_weights": "weights",
}

__all__ = [
    "Callback",
    "Config",
    "Custom",
    "Execution",
    "Guidance",
    "InputError",
    "Loss",
    "LossConfig",
    "PRESETS",
    "Progress",
    "Result",
    "VGG19",
    "content_loss",
    "features",
    "find_weights",
    "get_preset",
    "gram_matrix",
    "load_image",
    "load_weights",
    "loss_weights",
    "make_loss",
    "make_optimizer",
    "make_solver",
    "run",
    "save_image",
    "save_weights",
    "set_threads",
    "style_loss",
    "stylize",
    "stylize_batch",
    "total_variation",
    "prepare_kernels",
]


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import version

        return version("nst_jax")
    if name not in _HOMES:
        raise AttributeError(f"module 'nst_jax' has no attribute {name!r}")
    value = getattr(import_module(f"nst_jax.{_HOMES[name]}"), name)
    globals()[name] = value  # also where a submodule of the same name was imported
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
