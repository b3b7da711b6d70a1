"""Gradients of the whole objective: finite differences in float64, PyTorch in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import smooth_image
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


# Of each kind of loss one.
SOME = ("neural-style", "course", "style-transfer-pytorch", "wasserstein")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in SOME else pytest.mark.campaign) for name in PRESETS],
)
@pytest.mark.slow
def test_objective_to_second_order(x64, variables, content, style, name):
    """Through the whole small network; reverse mode, as the convolution has a custom rule."""
    as_float64 = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)  # noqa: E731
    variables, content, style = map(as_float64, (variables, content[:20, :24], style[:20, :20]))
    image = as_float64(smooth_image(20, 24, seed=7))

    @jax.jit
    def value(image, variables, content, style):
        return objective(PRESETS[name].config, variables, content, [style])(image)

    scale = 1 / value(image, variables, content, style)
    # A small step, so that no ReLU or max-pooling changes its mind within it.
    check_grads(
        lambda image: scale * value(image, variables, content, style),
        (image,),
        order=2,
        modes=("rev",),
        atol=1e-5,
        rtol=1e-5,
        eps=1e-7,
    )


def gradients(variables, content, style, image, dtype, *, convolution="direct"):
    """Gradient of the default objective per unit of [0, 1]: ours, and PyTorch's autograd."""
    reference = pytest.importorskip("torch_reference")
    torch_dtype = {"float32": reference.torch.float32, "float64": reference.torch.float64}[dtype]
    to_torch = lambda photo: reference.to_torch(photo, dtype=torch_dtype)  # noqa: E731
    torch_objective = reference.NeuralStyle(
        reference.Vgg(variables, dtype=torch_dtype), to_torch(content), to_torch(style)
    )
    pixels = to_torch(image).requires_grad_()
    torch_value = torch_objective(pixels)
    torch_value.backward()
    assert pixels.grad is not None
    expected = pixels.grad[0].permute(1, 2, 0).numpy() * 255

    @jax.jit
    def value_and_grad(variables, image, content, style):
        variables = prepare_kernels(variables, convolution=convolution)
        return jax.value_and_grad(objective(Config(), variables, content, [style]))(image)

    arrays = jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x), dtype), (variables, image, content, style)
    )
    value, gradient = value_and_grad(*arrays)
    np.testing.assert_allclose(value, torch_value.item(), rtol=1e-5)
    return np.asarray(gradient), expected


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def test_gradient_agrees_with_pytorch(variables, content, style):
    image = smooth_image(36, 48, seed=7)
    assert relative_error(*gradients(variables, content, style, image, "float32")) < 1e-5


either_convolution = pytest.mark.parametrize("convolution", ["direct", "winograd"])


@pytest.mark.weights
@either_convolution
def test_gradient_of_the_real_network_agrees_with_pytorch(vgg19_weights, convolution):
    photos = [smooth_image(191, 255, seed=seed) for seed in (1, 2, 3)]
    actual, expected = gradients(
        vgg19_weights.variables, *photos, "float32", convolution=convolution
    )
    # In float32 some ReLU or max-pooling is decided by rounding, in PyTorch as here, and moves
    # the gradient of the few pixels below it; all others agree.
    errors = np.abs(actual - expected) / np.sqrt(np.mean(expected**2))
    assert np.quantile(errors, 0.95) < 1e-5
    if convolution == "direct":  # Winograd's rounding decides a few more: 1.06e-4 here
        assert np.quantile(errors, 0.98) < 1e-4
    assert relative_error(actual, expected) < 2e-3


@pytest.mark.weights
@either_convolution
def test_gradient_on_real_images_agrees_with_pytorch(vgg19_weights, images_folder, convolution):
    names = ("content/tubingen.jpg", "style/starry_night.jpg")
    content, style = (load_image(images_folder / name, size=256) for name in names)
    noise = np.random.default_rng(0).normal(scale=0.1, size=content.shape)
    image = np.clip(content + noise, 0, 1).astype(np.float32)
    actual, expected = gradients(
        vgg19_weights.variables, content, style, image, "float32", convolution=convolution
    )
    assert relative_error(actual, expected) < 1e-4


@pytest.mark.weights
@either_convolution
@pytest.mark.slow
def test_gradient_of_the_real_network_agrees_with_pytorch_in_float64(
    vgg19_weights, x64, convolution
):
    photos = [smooth_image(95, 127, seed=seed) for seed in (1, 2, 3)]
    actual, expected = gradients(
        vgg19_weights.variables, *photos, "float64", convolution=convolution
    )
    assert relative_error(actual, expected) < 1e-5
