"""Settings by name: those of published tools, formula for formula, and own. Standard library only.

A preset names a tool's objective, optimiser and start; every value can be overridden. In the
formulas F are features ``[h, w, C]``, G = F F^T their Gram matrices, MSE a mean over elements, x
pixels in [0, 1] and z = 255 x.
"""

from dataclasses import replace
from typing import Any

from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.own_presets import WASSERSTEIN
from nst_jax.paper_presets import GATYS, GATYS_2017, SPST
from nst_jax.preset_type import Preset
from nst_jax.tool_presets import (
    FAST,
    NEURAL_STYLE,
    NEURAL_STYLE_LUA,
    PRISM,
    PYSTICHE,
    STYLE_TRANSFER_PYTORCH,
)
from nst_jax.tutorial_presets import (
    COURSE,
    COURSE_SINGLE,
    KERAS_TUTORIAL,
    PYTORCH_TUTORIAL,
    TF_TUTORIAL,
)

DEFAULT_PRESET = "wasserstein"
PRESETS: dict[str, Preset] = {
    "wasserstein": WASSERSTEIN,
    "neural-style": NEURAL_STYLE,
    "fast": FAST,
    "neural-style-lua": NEURAL_STYLE_LUA,
    "style-transfer-pytorch": STYLE_TRANSFER_PYTORCH,
    "prism": PRISM,
    "pystiche": PYSTICHE,
    "gatys": GATYS,
    "gatys-2017": GATYS_2017,
    "spst": SPST,
    "course": COURSE,
    "course-single": COURSE_SINGLE,
    "pytorch-tutorial": PYTORCH_TUTORIAL,
    "tf-tutorial": TF_TUTORIAL,
    "keras-tutorial": KERAS_TUTORIAL,
}


# What belongs to one optimiser and means nothing to another.
OPTIMIZER_NUMBERS = (
    "learning_rate",
    "memory_size",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "clip",
)


def own_numbers(config: Config, optimizer: str, *, preset: Config) -> dict[str, Any]:
    """What of a preset's numbers another optimiser does not take over.

    A learning rate is an optimiser's own, and so is a memory size. What is not the preset's was
    asked for, and stays.

    >>> own_numbers(COURSE.config, "lbfgs", preset=COURSE.config)
    {'learning_rate': None}
    >>> own_numbers(replace(COURSE.config, learning_rate=1.0), "lbfgs", preset=COURSE.config)
    {}
    """
    if optimizer == config.optimizer:
        return {}
    return {
        name: getattr(Config, name)
        for name in OPTIMIZER_NUMBERS
        if getattr(config, name) == getattr(preset, name) != getattr(Config, name)
    }


def without_scales(config: Config) -> Config:
    """A preset's settings for its last scale alone.

    >>> without_scales(PRESETS["gatys-2017"].config).scale_steps
    ()
    """
    return replace(config, min_size=None, scale_factor=Config.scale_factor, scale_steps=())


def get_preset(name: str) -> Preset:
    """The preset of a name.

    >>> get_preset("course").config.style_weight
    40.0

    Raises:
      InputError: for an unknown name.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
