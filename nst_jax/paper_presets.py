"""Settings of the code that came with papers, formula for formula; symbols as in ``presets``."""

from nst_jax.config import Config
from nst_jax.layer_factors import STYLE_LAYERS, weigh_layers
from nst_jax.loss_factors import LossFactor
from nst_jax.preset_type import Preset
from nst_jax.tool_presets import FIFTHS

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
        "scale and guidance controls are --color, --style-scale and the masks. They have also "
        "values for the original network, which are those of the preset gatys, and a content "
        "weight of 1e5 in places. Pooling is what the tool's model file holds; here it is max. At "
        "512 px: --min-size None --steps 500. The network is made by nst-jax weights normalize."
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
    summary="Scaling Painting Style Transfer: Gram matrices, means and deviations, large pictures",
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
        "a third scale, from 2732 px on: --scale-steps 600 200 --steps 66, and so on; with one, "
        "below 1366 px: --min-size None --steps 600. The tool halves the shorter side until it is "
        "under 1024 px; 683 px are the longer side of 512 at 4:3. It works on the content's full "
        "size and remembers 100 pairs at the coarsest scale and 10 after it. Its gradient of s is "
        "NaN for a channel that is constant, which 1e-5 added to s^2 prevents here, and between "
        "the scales it rounds and clips the picture to 8 bits; here it stays as it is."
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
