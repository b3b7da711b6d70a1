"""Settings by name: those of published tools, formula for formula, and own. Standard library only.

A preset names a tool's objective, optimiser and start; every value can be overridden. In the
formulas F are features ``[h, w, C]``, G = F F^T their Gram matrices, MSE a mean over elements, x
pixels in [0, 1] and z = 255 x.
"""

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


def get_preset(name: str) -> Preset:
    """The preset of a name.

    >>> get_preset("course").config.loss.style_weight
    40.0

    Raises:
      InputError: for an unknown name.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
