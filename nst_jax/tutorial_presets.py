"""Settings of courses and tutorials, formula for formula; symbols as in ``presets``."""

from dataclasses import replace

from nst_jax.config import Config
from nst_jax.layer_factors import STYLE_LAYERS
from nst_jax.layers import CHANNELS, stride
from nst_jax.preset_type import Preset
from nst_jax.tool_presets import FIFTHS

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
    notes="As course, with one style layer of proportion 1; another: --style-layers relu2_1.",
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
        "Needs the full network. The tutorial clips the picture within the function that L-BFGS "
        "evaluates, so that the remembered pairs belong to other points than their gradients; "
        "here L-BFGS is left alone and the result is clipped when it is written, as is meant. Its "
        "two pictures must have the same size, here they need not, and 300 steps are 300 to 320 "
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
        "the content term grows with the picture. Here its weight is that of the example's 400 "
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
