"""Settings by name: those of published tools, formula for formula, and own. Standard library only.

A preset names a tool's objective, optimiser and start; every value can be overridden. In the
formulas F are features ``[h, w, C]``, G = F F^T their Gram matrices, MSE a mean over elements, x
pixels in [0, 1] and z = 255 x.
"""

from dataclasses import dataclass, replace
from typing import Literal

from nst_jax.config.config import Config
from nst_jax.config.factors import STYLE_LAYERS, LossFactor, weigh_layers
from nst_jax.config.layers import CHANNELS, stride
from nst_jax.errors import InputError

# Which VGG-19: its two trainings, and the first with activations scaled to a mean of 1 a channel.
# Those of "caffe" are some hundred times those of "torchvision".
Network = Literal["caffe", "torchvision", "caffe-normalized"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named setting.

    Attributes:
      summary: what it is, one line.
      formula: the objective.
      source: where it was published.
      notes: what to know when comparing with the source.
      weights: the network that its factors were chosen for; with another one content, style and
        total variation are out of balance.
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
        "L-BFGS with fixed step 1 and 100 remembered pairs, started from the content image (the "
        "port's own start is noise: init='noise'). For pixels in [0, 1] the same tv weight is "
        "0.255, and Adam's learning rate 10 is 0.039 with eps 2.6e-6 for 1e-8. The port's "
        "--normalize_gradients is left out: there it only squares the weights."
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
    config=NEURAL_STYLE.config.but(
        content_weight=1.0, style_weight=300.0, tv_weight=3e-3, tv_order=2
    ),
)

FAST = replace(
    NEURAL_STYLE,
    summary="neural-style-pt's objective by a shorter way",
    notes=(
        "The objective of neural-style at the same resolution; L-BFGS works on frequencies and "
        "colours scaled by preconditioner='spectral' and starts with a larger step. On the pairs "
        "of images that it was tried on, its loss after 50 to 80 steps is that of neural-style "
        "after 100."
    ),
    config=NEURAL_STYLE.config.but(preconditioner="spectral", memory_size=50, steps=80),
)

STYLE_TRANSFER_PYTORCH = Preset(
    summary="style-transfer-pytorch: Gaussians of features by Wasserstein distance, five scales",
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
        "The newest version; older ones have Gram matrices and another total variation. x are "
        "pixels in [0, 1], d1 and d2 their diagonal differences, with the border repeated. Each "
        "scale is half of the next one's area, down to 128 px: 1000 steps at the first, 500 at "
        "each of the others, every one started from the average of the one before with Adam's "
        "moments enlarged. The tool takes the root of matrices by 12 steps of Newton and Schulz, "
        "which leave an error where S is nearly singular; here it is exact. Its images are "
        "scaled by Pillow's filters, and its average counts the start as well. Where the size "
        "leaves fewer scales than two before the last: min_size=None, steps=1000. Its other "
        "poolings are pooling='average-scaled' and 'l2', its L-BFGS is optimizer='lbfgs', "
        "memory_size=10."
    ),
    weights="torchvision",
    config=Config.of(
        content_weight=0.015,
        style_weight=1.0,
        style_layers=weigh_layers(STYLE_NAMES, scheme="geometric"),
        style_losses=(LossFactor("wasserstein", 1.0),),
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
        "The tool divides the layers' factors by their sum. It scales images to an area of "
        "512^2: 590 px are the longer side at 4:3. By default it also gives the content the "
        "style's colours before and starts from that, which no setting does here; in Python it is "
        "color.match_color(content, style, method='pca'). Its --preserve_color content "
        "is color='match-pca'. Its eigenvectors come from a routine for matrices of any kind, "
        "which need not make them orthogonal where two colours vary alike; here they are."
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
        "Its layer weights are the mean over the layers. L-BFGS works on pixels in [0, 1]. It "
        "scales the shorter side of content and style to 500 px: 667 px are the longer side at "
        "4:3. With Caffe's weights G is some 10^4 times as large and the image is style only: "
        "lower the style weight by as much."
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
    summary="the default: Gaussians of features by Wasserstein distance, at one scale",
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
        "Chosen by comparison, see docs/gallery.md: the style term of style-transfer-pytorch, half "
        "of its content weight, and fast's way of optimising. Means are taken over all values, so "
        "that the factors hold for all sizes. A step costs 5 to 13 % more than with Gram "
        "matrices, by some forty matrix products for each style layer, at any size."
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
    summary="Gatys' notebooks of 2017 with the normalised network, in two scales",
    formula=(
        "L = 1e6 MSE(F, F_content) on relu4_2\n"
        "  + 1e9 sum_l 0.2 MSE(G/(h w), G_style/(h w)) on relu1_1 ... relu5_1"
    ),
    source=(
        "https://github.com/leongatys/NeuralImageSynthesis (BasicStyleTransfer); Gatys et al. "
        "2017, Controlling Perceptual Factors in Neural Style Transfer, CVPR"
    ),
    notes=(
        "500 steps at 512 px, then 200 at 1024 px from the enlarged result; the notebooks' colour, "
        "scale and guidance controls are color, the styles' scale and the masks. They have also "
        "values for the original network, which are those of the preset gatys, and a content "
        "weight of 1e5 in places. Pooling is what the tool's model file holds; here it is max. At "
        "512 px: min_size=None, steps=500. The network is made by weights.normalize_weights."
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
    summary="Scaling Painting Style Transfer: Gram matrices, means and deviations, large images",
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
        "The mode spst-fast: 600 steps at the coarsest scale, then 200, 66 and 30, each scale of "
        "twice the size. 1/C^2 MSE(G/(h w)) is MSE(G/(C h w)), as it stands in the settings. With "
        "a third scale, from 2732 px on: scale_steps=(600, 200), steps=66, and so on; with one, "
        "below 1366 px: min_size=None, steps=600. The tool halves the shorter side until it is "
        "under 1024 px; 683 px are the longer side of 512 at 4:3. It works on the content's full "
        "size and remembers 100 pairs at the coarsest scale and 10 after it. Its gradient of s is "
        "NaN for a channel that is constant, which 1e-5 added to s^2 prevents here, and between "
        "the scales it rounds and clips the image to 8 bits; here it stays as it is."
    ),
    weights="caffe",
    config=GATYS.config.but(
        style_weight=1.0,
        style_layers=STYLE_LAYERS,
        gram_normalization="chw",
        style_losses=(LossFactor("gram", 1e3), LossFactor("mean-std", 1e4)),
        steps=200,
        min_size=683,
        scale_factor=2.0,
        scale_steps=(600,),
    ),
    size=2048,
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
        "for the style layers. Other proportions (merging styles): style_layers={'relu1_1': 0.5, "
        "'relu3_1': 0.5}. Start: 0.6 noise U(-20, 20) + 0.4 content on mean-subtracted 0-255. "
        "Adam's learning rate 2 with eps 1e-8 on 0-255 is 0.0078 with eps 2.6e-6 on [0, 1]. "
        "400x300 pixels. Each Gram matrix is divided by its own image's nH nW, so that the style "
        "may have another size, and pooling drops an odd last row or column where TensorFlow pads."
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
    notes="As course, with one style layer of proportion 1; another: style_layers=('relu2_1',).",
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
        "Needs the full network. The tutorial clips the image within the function that L-BFGS "
        "evaluates, so that the remembered pairs belong to other points than their gradients; "
        "here L-BFGS is left alone and the result is clipped when it is written, as is meant. Its "
        "two images must have the same size, here they need not, and 300 steps are 300 to 320 "
        "evaluations there."
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
        "Needs the full network. x are pixels in [0, 1], clipped after each step of Adam. "
        "TensorFlow adds eps to the root of Adam's second moment before that is corrected for its "
        "start, which makes the eps of 0.1 larger in the first some hundred steps; here it is "
        "added after. Loss and gradient are some millions, so that eps hardly matters."
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
        "Needs the full network. Sums in place of means: with h w = H W / s^2 the style term is "
        "that of C^2 / (36 s^4) MSE(G/(h w), G_style/(h w)) for layers of stride s and C channels, "
        "at any size (where s does not divide a side, the example's own is a few percent less); "
        "the content term grows with the image. Here its weight is that of the example's 400 "
        "rows at 3:2, 600x400 pixels: 2.5e-8 x 512 x 25 x 37; for others it is 2.5e-8 x 512 x "
        "(H // 16) x (W // 16). The example stretches the style to the content's sides. It now "
        "descends by 4000 steps of 100 times the gradient, slowly decayed; the 200 steps of L-BFGS "
        "here are those of its first version, which had the same proportions (1, 0.025, 1), "
        "VGG-16, the content from relu4_2, and a start from noise."
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
    """The preset of a name.

    >>> get_preset("course").config.loss.style_weight
    40.0

    Raises:
      InputError: for an unknown name.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
