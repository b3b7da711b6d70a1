"""Named settings: those of published tools, and two of this package. Standard library only.

A preset gives the objective, the optimiser and the initial image of a tool; every setting can be
overridden. In the formulas F are the features of a layer (C channels of h times w), flattened to
``[C, h w]``, G = F F^T their Gram matrix, MSE the mean of squared differences over all elements,
x the pixels in [0, 1] and z = 255 x. ``tests/config/test_preset_parity.py`` checks each formula
against an independent implementation of the tool's own.
"""

from dataclasses import dataclass, replace
from typing import Literal

from nst_jax.config.config import Config
from nst_jax.config.factors import STYLE_LAYERS, WeightedLoss, weigh_layers
from nst_jax.config.layers import CHANNELS, stride
from nst_jax.errors import InputError

# Weights of VGG-19: those of Caffe (by its authors), of torchvision, and Caffe's rescaled such that
# each channel has a mean activation of 1. The activations of "caffe" are about a hundred times as
# large as those of "torchvision".
Network = Literal["caffe", "torchvision", "caffe-normalized"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Named settings.

    Attributes:
      summary: description in one line.
      formula: the objective.
      source: where it was published.
      notes: differences from the source, and how to reproduce its other modes.
      weights: the network for which the weights of the terms were chosen; with another network
        content, style and total variation are out of balance.
      config: the settings.
      size: longer side of the image in pixels.
    """

    summary: str
    formula: str
    source: str
    notes: str
    weights: Network
    config: Config
    size: int


STYLE_NAMES = tuple(name for name, _ in STYLE_LAYERS)

FIFTHS = weigh_layers(STYLE_NAMES, scheme="course")

NEURAL_STYLE = Preset(
    summary="neural-style-pt, the PyTorch port of neural-style",
    formula=(
        "L = 5 MSE(F, F_content) on relu4_2\n"
        "  + 100 sum_l MSE(G/(C h w), G_style/(C h w)) on relu1_1 ... relu5_1\n"
        "  + 0.001 (sum |dz/dx| + sum |dz/dy|)"
    ),
    source="https://github.com/ProGamerGov/neural-style-pt",
    notes=(
        "L-BFGS with a fixed step of 1 and 100 stored pairs, started from the content image. The "
        "tool itself starts from noise: init='noise'. For pixels in [0, 1] the same tv_weight is "
        "0.255, and a learning rate of 10 for Adam with an epsilon of 1e-8 is 0.039 with 2.6e-6. "
        "The tool's --normalize_gradients is not available: it only squares the weights."
    ),
    weights="caffe",
    config=Config.of(
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
    summary="neural-style, the Torch7 original, with the weights of its best-known example call",
    formula=(
        "L = MSE(F, F_content) on relu4_2\n"
        "  + 300 sum_l MSE(G/(C h w), G_style/(C h w)) on relu1_1 ... relu5_1\n"
        "  + 0.003 (sum (dz/dx)^2 / 2 + sum (dz/dy)^2 / 2)"
    ),
    source="https://github.com/jcjohnson/neural-style",
    notes=(
        "The tool adds the gradient of the total variation but not its value, omits the last row "
        "and column of differences, and scales pixels by 256 before it subtracts the mean. Here "
        "the loss includes the value, all differences count, and pixels are in [0, 255]. For "
        "pixels in [0, 1] the same tv_weight is 195."
    ),
    config=NEURAL_STYLE.config.but(
        content_weight=1.0, style_weight=300.0, tv_weight=3e-3, tv_order=2
    ),
)

FAST = replace(
    NEURAL_STYLE,
    summary="the objective of neural-style-pt with fewer steps",
    notes=(
        "The objective of neural-style at the same resolution. L-BFGS works on scaled frequencies "
        "and colours (preconditioner='spectral') and starts with a larger step. On the pairs of "
        "images that were tried, its loss after 50 to 80 steps is that of neural-style after 100."
    ),
    config=NEURAL_STYLE.config.but(preconditioner="spectral", memory_size=50, steps=80),
)

STYLE_TRANSFER_PYTORCH = Preset(
    summary="style-transfer-pytorch: Wasserstein distance of Gaussians of features, five scales",
    formula=(
        "L = 0.015 MSE(F, F_content) on relu4_2\n"
        "  + sum_l w_l (mean (m - m_style)^2\n"
        "               + mean diag (S + S_style - 2 (S_style^1/2 S S_style^1/2)^1/2))\n"
        "    on relu1_1 ... relu5_1 with w_l = 256, 64, 16, 4, 1 over 341,\n"
        "    m and S the means and covariances of F, S with 1e-4 added to its diagonal\n"
        "  + 2 TV(x), TV = 2 (mean dx^2 / 3 + mean dy^2 / 3 + mean d1^2 / 12 + mean d2^2 / 12)"
    ),
    source="https://github.com/crowsonkb/style-transfer-pytorch",
    notes=(
        "These are the settings of the tool's newest version; older ones use Gram matrices and "
        "another total variation. x are pixels in [0, 1], d1 and d2 their diagonal differences, "
        "with the border replicated. Each scale has half the area of the next, down to 128 px, "
        "with 1000 steps at the first and 500 at each other. Each starts from the averaged image "
        "of the one before, with enlarged running means of Adam. The tool computes matrix roots "
        "by 12 Newton-Schulz steps, which are inexact if S is nearly singular; here roots are "
        "exact. The tool resizes images with Pillow's filters, and its average includes the "
        "initial image. If the size leaves fewer than two scales before the last, set "
        "min_size=None, steps=1000. The tool's other poolings are pooling='average-scaled' and "
        "'l2'; its L-BFGS is optimizer='lbfgs', memory_size=10."
    ),
    weights="torchvision",
    config=Config.of(
        content_weight=0.015,
        style_weight=1.0,
        style_layers=weigh_layers(STYLE_NAMES, scheme="geometric"),
        style_losses=(WeightedLoss("wasserstein", 1.0),),
        covariance_eps=1e-4,
        tv_weight=2.0,
        tv_form="nine-point",
        tv_order=2,
        tv_reduction="mean",
        pixel_range=1.0,
        padding="replicate-input",
        optimizer="adam",
        learning_rate=0.02,
        adam_beta2=0.99,
        clip=True,
        steps=500,
        min_size=128,
        scale_steps=(1000, 500),
        averaging=0.99,
        init="content",
    ),
    size=512,
)

PRISM = Preset(
    summary="prism, the package style-transfer",
    formula=(
        "L = MSE(F, F_content) on relu4_2\n"
        "  + 1000 sum_l 0.2 MSE(G/(C h w), G_style/(C h w)) on relu1_1 ... relu5_1"
    ),
    source="https://github.com/moritztng/prism",
    notes=(
        "The tool divides the weights of the layers by their sum. It scales images to an area of "
        "512^2 px: at 4:3 the longer side is 590 px. By default it first gives the content the "
        "colours of the style and starts from that image. No setting does this here; in Python, "
        "use color.match_color(content, style, method='pca'). Its --preserve_color content is "
        "color='match-pca'. The tool computes eigenvectors with a routine for general matrices, "
        "which need not return orthogonal vectors if two colours vary equally; here they are "
        "orthogonal."
    ),
    weights="caffe",
    config=Config.of(
        content_weight=1.0,
        style_weight=1000.0,
        style_layers=FIFTHS,
        tv_weight=0.0,
        gram_normalization="chw",
        optimizer="lbfgs",
        memory_size=100,
        steps=500,
        init="content",
    ),
    size=590,
)

PYSTICHE = Preset(
    summary="pystiche's command line",
    formula=(
        "L = MSE(F, F_content) on relu4_2\n"
        "  + 1000 sum_l 0.2 MSE(G/(h w), G_style/(h w)) on relu1_1 ... relu5_1"
    ),
    source="https://github.com/pystiche/pystiche",
    notes=(
        "The tool averages the layers' losses. L-BFGS works on pixels in [0, 1]. The tool scales "
        "the shorter side of content and style to 500 px: at 4:3 the longer side is 667 px. With "
        "Caffe's weights G is about 10^4 times as large, so that the style dominates: lower "
        "style_weight accordingly."
    ),
    weights="torchvision",
    config=Config.of(
        content_weight=1.0,
        style_weight=1000.0,
        style_layers=FIFTHS,
        tv_weight=0.0,
        gram_normalization="hw",
        pixel_range=1.0,
        optimizer="lbfgs",
        memory_size=100,
        steps=500,
        init="content",
    ),
    size=667,
)


WASSERSTEIN = Preset(
    summary="the default: Wasserstein distance of Gaussians of features, one scale",
    formula=(
        "L = 0.007 MSE(F, F_content) on relu4_2\n"
        "  + sum_l w_l (mean (m - m_style)^2\n"
        "               + mean diag (S + S_style - 2 (S_style^1/2 S S_style^1/2)^1/2))\n"
        "    on relu1_1 ... relu5_1 with w_l = 256, 64, 16, 4, 1 over 341,\n"
        "    m and S the means and covariances of F, S with 1e-4 added to its diagonal\n"
        "  + 10 (mean |dz/dx| + mean |dz/dy|)"
    ),
    source="after https://github.com/crowsonkb/style-transfer-pytorch",
    weights="caffe",
    notes=(
        "Chosen by comparison, see docs/gallery.md. It combines the style term of "
        "style-transfer-pytorch and half of its content weight with the optimiser of fast. All "
        "terms are means, so that the weights suit images of any size. A step takes 5 to 13 % "
        "longer than with Gram matrices: about forty matrix products per style layer, independent "
        "of the image's size."
    ),
    config=FAST.config.but(
        content_weight=0.007,
        style_weight=1.0,
        style_layers=STYLE_TRANSFER_PYTORCH.config.loss.style_layers,
        style_losses=("wasserstein",),
        tv_weight=10.0,
        tv_reduction="mean",
    ),
    size=512,
)


GATYS = Preset(
    summary="Gatys' PyTorch code",
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
        "The weights are for mean squared errors of features, so they do not depend on the range "
        "of the pixels."
    ),
    weights="caffe",
    config=Config.of(
        content_weight=1.0,
        style_weight=1000.0,
        style_layers=weigh_layers((name for name, _ in STYLE_LAYERS), scheme="1/C2"),
        tv_weight=0.0,
        gram_normalization="hw",
        optimizer="lbfgs",
        memory_size=100,
        steps=500,
        init="content",
    ),
    size=512,
)

GATYS_2017 = Preset(
    summary="Gatys' notebooks of 2017, with the normalised network, at two scales",
    formula=(
        "L = 1e6 MSE(F, F_content) on relu4_2\n"
        "  + 1e9 sum_l 0.2 MSE(G/(h w), G_style/(h w)) on relu1_1 ... relu5_1"
    ),
    source=(
        "https://github.com/leongatys/NeuralImageSynthesis (BasicStyleTransfer); Gatys et al. "
        "2017, Controlling Perceptual Factors in Neural Style Transfer, CVPR"
    ),
    notes=(
        "500 steps at 512 px, then 200 steps at 1024 px from the enlarged result. For a single "
        "scale of 512 px set min_size=None, steps=500. The colour, scale and guidance controls of "
        "the notebooks are here color, the scale of each style, and masks. The notebooks also "
        "have weights for the original network, which are those of the preset gatys, and in "
        "places a content weight of 1e5. Their pooling is that of the model file; here it is max. "
        "Make the network with weights.normalize_weights."
    ),
    weights="caffe-normalized",
    config=GATYS.config.but(
        content_weight=1e6,
        style_weight=1e9,
        style_layers=FIFTHS,
        steps=200,
        min_size=512,
        scale_factor=2.0,
        scale_steps=(500,),
    ),
    size=1024,
)

SPST = Preset(
    summary=(
        "Scaling Painting Style Transfer: Gram matrices, means and deviations, for large images"
    ),
    formula=(
        "L = MSE(F, F_content) on relu4_2\n"
        "  + sum_l (1000/C_l^2 MSE(G/(h w), G_style/(h w))\n"
        "           + 10^4 (MSE(m, m_style) + MSE(s, s_style))) on relu1_1 ... relu5_1\n"
        "    with m and s the means and standard deviations of F's channels"
    ),
    source=(
        "https://github.com/bgalerne/scaling_painting_style_transfer; Galerne, Raad, Lezama, Morel "
        "2022, Scaling Painting Style Transfer, arXiv:2212.13459"
    ),
    notes=(
        "The mode spst-fast: 600 steps at the coarsest scale, then 200, 66 and 30, doubling the "
        "size each time. 1/C^2 MSE(G/(h w)) is MSE(G/(C h w)), which is how the settings state "
        "it. From 2732 px on there is a third scale: set scale_steps=(600, 200), steps=66, and so "
        "on. Below 1366 px there is only one: set min_size=None, steps=600. The tool halves the "
        "image until its shorter side is below 1024 px, so the coarsest one is at least 512 px, "
        "or 683 px for the longer side at 4:3. It runs at the full size of the content, and "
        "stores 100 pairs at the coarsest scale but 10 at the others. Its gradient of s is NaN "
        "for a constant channel; here 1e-5 is added to s^2. Between scales it rounds and clips "
        "the image to 8 bits; here the image is not changed."
    ),
    weights="caffe",
    config=GATYS.config.but(
        style_weight=1.0,
        style_layers=STYLE_LAYERS,
        gram_normalization="chw",
        style_losses=(WeightedLoss("gram", 1e3), WeightedLoss("mean-std", 1e4)),
        steps=200,
        min_size=683,
        scale_factor=2.0,
        scale_steps=(600,),
    ),
    size=2048,
)


COURSE = Preset(
    summary="the well-known course version: alpha = 10, beta = 40",
    formula=(
        "J = 10 Jc + 40 Js\n"
        "Jc = sum (a_C - a_G)^2 / (4 nH nW nC) on relu4_2\n"
        "Js = sum_l 0.2 sum (G_S - G_G)^2 / (4 nC^2 (nH nW)^2) on relu1_1 ... relu5_1"
    ),
    source="Gatys, Ecker, Bethge 2015, arXiv:1508.06576, in the deep-learning course's form",
    notes=(
        "What the course calls conv4_2 is the activation after the ReLU, here relu4_2; the same "
        "holds for the style layers. Other proportions, as for merging styles: "
        "style_layers={'relu1_1': 0.5, 'relu3_1': 0.5}. The initial image is 0.6 U(-20, 20) + 0.4 "
        "content, for pixels in [0, 255] less their mean. Adam's learning rate of 2 with an "
        "epsilon of 1e-8 on [0, 255] is 0.0078 with 2.6e-6 on [0, 1]. Images have 400x300 px. "
        "Here each Gram matrix is divided by the nH nW of its own image, so that the style may "
        "have another size than the content, and pooling drops an odd last row or column, where "
        "TensorFlow pads."
    ),
    weights="caffe",
    config=Config.of(
        content_weight=10.0,
        style_weight=40.0,
        style_layers=FIFTHS,
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
    notes=(
        "As course, with one style layer of weight 1. To use another layer: "
        "style_layers=('relu2_1',)."
    ),
    config=COURSE.config.but(style_layers=(("relu3_1", 1.0),)),
)

PYTORCH_TUTORIAL = Preset(
    summary="the PyTorch tutorial",
    formula=(
        "L = MSE(F, F_content) on conv2_2\n"
        "  + 10^6 sum_l MSE(G/(C h w), G_style/(C h w))\n"
        "    on conv1_1, conv1_2, conv2_1, conv2_2, conv3_1, all before their ReLU"
    ),
    source="https://docs.pytorch.org/tutorials/advanced/neural_style_tutorial.html",
    notes=(
        "Needs the full network, not the slim one. The tutorial clips the image inside the "
        "function that L-BFGS evaluates, so that gradients belong to other points than the stored "
        "pairs. Here L-BFGS is not disturbed, and only the written result is clipped. The two "
        "images of the tutorial must have the same size; here they need not. Its 300 steps take "
        "300 to 320 evaluations."
    ),
    weights="torchvision",
    config=Config.of(
        content_layers=(("conv2_2", 1.0),),
        style_layers=tuple(
            (name, 1.0) for name in ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1")
        ),
        content_weight=1.0,
        style_weight=1e6,
        tv_weight=0.0,
        gram_normalization="chw",
        pixel_range=1.0,
        optimizer="lbfgs",
        memory_size=100,
        steps=300,
        init="content",
    ),
    size=512,
)

TF_TUTORIAL = Preset(
    summary="the TensorFlow tutorial, with its total variation",
    formula=(
        "L = 10^4 MSE(F, F_content) on relu5_2\n"
        "  + 0.01 sum_l 0.2 MSE(G/(h w), G_style/(h w)) on relu1_1 ... relu5_1\n"
        "  + 30 (sum |dx/dx| + sum |dx/dy|)"
    ),
    source="https://www.tensorflow.org/tutorials/generative/style_transfer",
    notes=(
        "Needs the full network, not the slim one. x are pixels in [0, 1], clipped after each "
        "step of Adam. TensorFlow adds epsilon to the root of the mean squared gradient before "
        "bias correction, which makes an epsilon of 0.1 larger in the first few hundred steps; "
        "here it is added after the correction. Loss and gradient are in the millions, so epsilon "
        "hardly matters."
    ),
    weights="caffe",
    config=Config.of(
        content_layers=(("relu5_2", 1.0),),
        style_layers=FIFTHS,
        content_weight=1e4,
        style_weight=1e-2,
        tv_weight=30.0,
        tv_order=1,
        gram_normalization="hw",
        pixel_range=1.0,
        optimizer="adam",
        learning_rate=0.02,
        adam_beta1=0.99,
        adam_epsilon=0.1,
        clip=True,
        steps=1000,
        init="content",
    ),
    size=512,
)

KERAS_TUTORIAL = Preset(
    summary="the Keras example",
    formula=(
        "L = 2.5e-8 sum (F - F_content)^2 on relu5_2\n"
        "  + 1e-6 sum_l 0.2 sum (G - G_style)^2 / (4 3^2 (H W)^2) on relu1_1 ... relu5_1\n"
        "  + 1e-6 sum ((dz/dx)^2 + (dz/dy)^2)^1.25"
    ),
    source="https://keras.io/examples/generative/neural_style_transfer/",
    notes=(
        "Needs the full network, not the slim one. The example takes sums, this package means. "
        "Since h w = H W / s^2, its style term is C^2 / (36 s^4) MSE(G/(h w), G_style/(h w)) for "
        "layers of stride s with C channels, at any size (if s does not divide a side, the "
        "example's own term is a few per cent smaller). Its content term grows with the image: "
        "the weight here is for the example's 400 rows at 3:2, 600x400 px, 2.5e-8 x 512 x 25 x "
        "37; for other sizes it is 2.5e-8 x 512 x (H // 16) x (W // 16). The example stretches "
        "the style to the size of the content. It now runs 4000 steps of gradient descent with a "
        "learning rate of 100 that decays slowly. The 200 steps of L-BFGS here are those of its "
        "first version, which had the same proportions (1, 0.025, 1) but VGG-16, the content from "
        "relu4_2, and noise as the initial image."
    ),
    weights="caffe",
    config=Config.of(
        content_layers=(("relu5_2", 1.0),),
        style_layers=tuple(
            (name, channels**2 / (36 * stride(name) ** 4))
            for (name, _), channels in zip(STYLE_LAYERS, CHANNELS, strict=True)
        ),
        content_weight=0.01184,  # 2.5e-8 * 512 * 25 * 37
        style_weight=2e-7,
        tv_weight=1e-6,
        tv_form="isotropic",
        tv_order=2.5,
        gram_normalization="hw",
        optimizer="lbfgs",
        memory_size=100,
        steps=200,
        init="content",
    ),
    size=600,
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
    """Look up a preset by name.

    >>> get_preset("course").config.loss.style_weight
    40.0

    Raises:
      InputError: for an unknown name.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
