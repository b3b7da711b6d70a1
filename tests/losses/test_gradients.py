"""Gradients of the whole objective against finite differences and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import smooth_image
from jax.test_util import check_grads

from nst_jax.config import PRESETS, Config
from nst_jax.images import load_image
from nst_jax.losses import loss_weights, make_loss
from nst_jax.models import prepare_kernels

pytestmark = pytest.mark.sampled


def objective(config, variables, content, styles):
    loss = make_loss(config.loss)
    targets = loss.targets(variables, content, styles, weights=loss_weights(config))
    return lambda image: loss.head(loss.statistics(variables, image, targets), targets)[0]


# One preset for each kind of loss.
SOME = ("neural-style", "style-transfer-pytorch", "wasserstein")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in SOME else pytest.mark.campaign) for name in PRESETS],
)
@pytest.mark.slow
def test_objective_to_second_order(x64, variables, content, style, name):
    """Through a small network, in reverse mode, because the convolution has a custom rule."""
    as_float64 = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)  # noqa: E731
    variables, content, style = map(as_float64, (variables, content[:20, :24], style[:20, :20]))
    image = as_float64(smooth_image(20, 24, seed=7))

    @jax.jit
    def value(image, variables, content, style):
        return objective(PRESETS[name].config, variables, content, [style])(image)

    scale = 1 / value(image, variables, content, style)
    # The step is small, so that no ReLU or max-pooling changes its decision within it.
    check_grads(
        lambda image: scale * value(image, variables, content, style),
        (image,),
        order=2,
        modes=("rev",),
        atol=1e-5,
        rtol=1e-5,
        eps=1e-7,
    )


def gradients(variables, content, style, image, *, convolution="direct"):
    """Gradient of the default objective with respect to the image: ours, and PyTorch's."""
    reference = pytest.importorskip("torch_reference")
    torch_objective = reference.NeuralStyle(
        reference.Vgg(variables), reference.to_torch(content), reference.to_torch(style)
    )
    pixels = reference.to_torch(image).requires_grad_()
    torch_value = torch_objective(pixels)
    torch_value.backward()
    assert pixels.grad is not None
    expected = pixels.grad[0].permute(1, 2, 0).numpy() * 255

    @jax.jit
    def value_and_grad(variables, image, content, style):
        variables = prepare_kernels(variables, convolution=convolution)
        return jax.value_and_grad(objective(Config(), variables, content, [style]))(image)

    value, gradient = value_and_grad(variables, image, content, style)
    np.testing.assert_allclose(value, torch_value.item(), rtol=1e-5)
    return np.asarray(gradient), expected


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def test_gradient_agrees_with_pytorch(variables, content, style):
    image = smooth_image(36, 48, seed=7)
    assert relative_error(*gradients(variables, content, style, image)) < 1e-5


@pytest.mark.weights
@pytest.mark.parametrize("convolution", ["direct", "winograd"])
def test_gradient_of_real_images_agrees_with_pytorch(vgg19_weights, images_folder, convolution):
    names = ("content/tubingen.jpg", "style/starry_night.jpg")
    content, style = (load_image(images_folder / name, size=256) for name in names)
    noise = np.random.default_rng(0).normal(scale=0.1, size=content.shape)
    image = np.clip(content + noise, 0, 1).astype(np.float32)
    actual, expected = gradients(
        vgg19_weights.variables, content, style, image, convolution=convolution
    )
    assert relative_error(actual, expected) < 1e-4
