"""Settings of this project's own. Standard library only."""

from nst_jax.preset_type import Preset
from nst_jax.tool_presets import FAST, STYLE_TRANSFER_PYTORCH

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
