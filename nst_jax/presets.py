"""Settings of published tools, formula for formula. Standard library only.

A preset names a tool's objective, optimiser and start; every value can be overridden. In the
formulas F are features ``[h, w, C]``, G = F F^T their Gram matrices, MSE a mean over elements and
z = 255 x the pixels.
"""

from dataclasses import dataclass, replace
from typing import Any

from nst_jax.config import STYLE_LAYERS, Config
from nst_jax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named setting.

    Attributes:
      summary: what it is, one line.
      formula: the objective.
      source: where it was published.
      notes: what to know when comparing with the source.
      config: the settings.
      size: longer side of the picture in pixels.
    """

    summary: str
    formula: str
    source: str
    notes: str
    config: Config
    size: int


NEURAL_STYLE = Preset(
    summary="neural-style-pt, the PyTorch port of neural-style",
    formula=(
        "L = 5 MSE(F, F_content) on relu4_2\n"
        "  + 100 sum_l MSE(G/(C h w), G_style/(C h w)) on relu1_1 ... relu5_1\n"
        "  + 0.001 (sum |dz/dx| + sum |dz/dy|)"
    ),
    source="https://github.com/ProGamerGov/neural-style-pt",
    notes=(
        "L-BFGS with fixed step 1 and 100 remembered pairs, started from the content picture (the "
        "port's own start is noise: --init noise). For pixels in [0, 1] the same tv weight is "
        "0.255, and Adam's learning rate 10 is 0.039 with eps 2.6e-6 for 1e-8. The port's "
        "--normalize_gradients is left out: there it only squares the weights."
    ),
    config=Config(
        content_weight=5.0,
        style_weight=100.0,
        tv_weight=1e-3,
        gram_normalization="chw",
        tv_order=1,
        optimizer="lbfgs",
        memory_size=100,
        steps=1000,
        init="content",
        noise="normal",
        noise_scale=0.001 / 255,
    ),
    size=512,
)

NEURAL_STYLE_LUA = replace(
    NEURAL_STYLE,
    summary="neural-style, the Torch7 original, with the values of its well-known call",
    formula=(
        "L = MSE(F, F_content) on relu4_2\n"
        "  + 300 sum_l MSE(G/(C h w), G_style/(C h w)) on relu1_1 ... relu5_1\n"
        "  + 0.003 (sum (dz/dx)^2 / 2 + sum (dz/dy)^2 / 2)"
    ),
    source="https://github.com/jcjohnson/neural-style",
    notes=(
        "The original adds the gradient of the total variation without its value, leaves out the "
        "last row and column of differences, and scales pixels by 256 before subtracting the "
        "mean; here the value is reported, every difference counts, and pixels are in [0, 255]. "
        "For pixels in [0, 1] the same tv weight is 195."
    ),
    config=replace(
        NEURAL_STYLE.config, content_weight=1.0, style_weight=300.0, tv_weight=3e-3, tv_order=2
    ),
)

GATYS = Preset(
    summary="Gatys' own PyTorch code",
    formula=(
        "L = MSE(F, F_content) on relu4_2\n"
        "  + sum_l 1000/C_l^2 MSE(G/(h w), G_style/(h w)) on relu1_1 ... relu5_1"
    ),
    source=(
        "https://github.com/leongatys/PytorchNeuralStyleTransfer; Gatys, Ecker, Bethge 2016, "
        "Image Style Transfer Using Convolutional Neural Networks, CVPR"
    ),
    notes=(
        "Max pooling and no total variation, as in the code; the paper prefers average pooling. "
        "The weights are those of features, and the same for pixels in [0, 1]."
    ),
    config=Config(
        content_weight=1.0,
        style_weight=1000.0,
        style_layers=tuple(
            (name, 1 / channels**2)
            for (name, _), channels in zip(STYLE_LAYERS, (64, 128, 256, 512, 512), strict=True)
        ),
        tv_weight=0.0,
        gram_normalization="hw",
        optimizer="lbfgs",
        memory_size=100,
        steps=500,
        init="content",
    ),
    size=512,
)

COURSE = Preset(
    summary="the well-known course version: alpha 10, beta 40",
    formula=(
        "J = 10 Jc + 40 Js\n"
        "Jc = sum (a_C - a_G)^2 / (4 nH nW nC) on relu4_2\n"
        "Js = sum_l 0.2 sum (G_S - G_G)^2 / (4 nC^2 (nH nW)^2) on relu1_1 ... relu5_1"
    ),
    source="Gatys, Ecker, Bethge 2015, arXiv:1508.06576, in the deep-learning course's form",
    notes=(
        "The course writes conv4_2 for the activation after its ReLU, here relu4_2, and likewise "
        "for the style layers. Other proportions (merging styles): --style-layers "
        "relu1_1=0.5,relu3_1=0.5. Start: 0.6 noise U(-20, 20) + 0.4 content on mean-subtracted "
        "0-255. Adam's learning rate 2 with eps 1e-8 on 0-255 is 0.0078 with eps 2.6e-6 on [0, 1]. "
        "400x300 pixels. Each Gram matrix is divided by its own picture's nH nW, so that the style "
        "may have another size, and pooling drops an odd last row or column where TensorFlow pads."
    ),
    config=Config(
        content_weight=10.0,
        style_weight=40.0,
        style_layers=tuple((name, 0.2) for name, _ in STYLE_LAYERS),
        tv_weight=0.0,
        pooling="average",
        gram_normalization="hw",
        mse_factor=0.25,
        optimizer="adam",
        learning_rate=2.0,
        steps=200,
        init="blend",
        noise="uniform",
        noise_scale=20 / 255,
        noise_ratio=0.6,
    ),
    size=400,
)

COURSE_SINGLE = replace(
    COURSE,
    summary="the course version with a single style layer",
    formula=(
        "J = 10 Jc + 40 Js\n"
        "Jc = sum (a_C - a_G)^2 / (4 nH nW nC) on relu4_2\n"
        "Js = sum (G_S - G_G)^2 / (4 nC^2 (nH nW)^2) on relu3_1"
    ),
    notes="As course, with one style layer of proportion 1; another: --style-layers relu2_1.",
    config=replace(COURSE.config, style_layers=(("relu3_1", 1.0),)),
)

FAST = replace(
    NEURAL_STYLE,
    summary="neural-style-pt's objective by a shorter way",
    notes=(
        "The objective of neural-style at the same resolution; L-BFGS works on frequencies and "
        "colours scaled by --preconditioner spectral and starts with a larger step. On the pairs "
        "of pictures that it was tried on, its loss after 50 to 80 steps is that of neural-style "
        "after 100."
    ),
    config=replace(NEURAL_STYLE.config, preconditioner="spectral", memory_size=50, steps=80),
)

PRESETS: dict[str, Preset] = {
    "neural-style": NEURAL_STYLE,
    "fast": FAST,
    "neural-style-lua": NEURAL_STYLE_LUA,
    "gatys": GATYS,
    "course": COURSE,
    "course-single": COURSE_SINGLE,
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
