"""Settings of published tools, formula for formula; symbols as in ``presets``."""

from dataclasses import replace

from nst_jax.config import Config
from nst_jax.layer_factors import STYLE_LAYERS, weigh_layers
from nst_jax.loss_factors import LossFactor
from nst_jax.preset_type import Preset

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
        "L-BFGS with fixed step 1 and 100 remembered pairs, started from the content picture (the "
        "port's own start is noise: --init noise). For pixels in [0, 1] the same tv weight is "
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
        "colours scaled by --preconditioner spectral and starts with a larger step. On the pairs "
        "of pictures that it was tried on, its loss after 50 to 80 steps is that of neural-style "
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
        "which leave an error where S is nearly singular; here it is exact. Its pictures are "
        "scaled by Pillow's filters, and its average counts the start as well. Where the size "
        "leaves fewer scales than two before the last: --min-size None --steps 1000. Its other "
        "poolings are --pooling average-scaled and l2, its L-BFGS is --optimizer lbfgs "
        "--memory-size 10."
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
        "The tool divides the layers' factors by their sum. It scales pictures to an area of "
        "512^2: 590 px are the longer side at 4:3. By default it also gives the content the "
        "style's colours before and starts from that, which no flag does here; in Python it is "
        "color_matching.match_color(content, style, method='pca'). Its --preserve_color content "
        "is --color match-pca. Its eigenvectors come from a routine for matrices of any kind, "
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
        "4:3. With Caffe's weights G is some 10^4 times as large and the picture is style only: "
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
