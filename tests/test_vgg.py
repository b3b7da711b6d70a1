"""The network: geometry, pooling, its convolution, and every tap against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_CHANNELS, smooth_picture
from jax.test_util import check_grads

from nst_jax import convolution, vgg
from nst_jax.errors import InputError
from nst_jax.layers import CONVS, TAPS, stride
from nst_jax.winograd import winograd_kernel


def test_names():
    assert len(CONVS) == 16 and CONVS[0] == "conv1_1" and CONVS[-1] == "conv5_4"
    assert len(TAPS) == 32 and TAPS[:3] == ("conv1_1", "relu1_1", "conv1_2")


@pytest.mark.parametrize("shape", [(16, 16), (37, 50)])
def test_shapes_of_taps(variables, shape):
    taps = vgg.features(variables, jnp.zeros((*shape, 3)), layers=TAPS)
    assert tuple(taps) == TAPS
    for name, tap in taps.items():
        sides = tuple(side // stride(name) for side in shape)
        assert tap.shape == (*sides, TINY_CHANNELS[int(name[4]) - 1])


def test_relu_is_the_positive_part_of_conv(variables, content):
    taps = vgg.features(variables, content, layers=("conv2_2", "relu2_2"))
    np.testing.assert_array_equal(taps["relu2_2"], np.maximum(taps["conv2_2"], 0))


def test_nothing_is_computed_beyond_the_deepest_tap(variables, content):
    def count_convolutions(layers):
        function = lambda image: vgg.features(variables, image, layers=layers)  # noqa: E731
        return str(jax.make_jaxpr(function)(content)).count("conv_general_dilated[")

    assert count_convolutions(("relu1_1",)) == 1
    assert count_convolutions(("relu4_1", "conv3_1")) == 9


def test_init_variables_have_the_tree_of_the_module():
    key, image = jax.random.key(0), jnp.zeros((16, 16, 3))
    own = jax.eval_shape(lambda: vgg.init_variables(key, channels=TINY_CHANNELS))
    module = jax.eval_shape(lambda: vgg.VGG19(channels=TINY_CHANNELS).init(key, image))
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, dict(module))


@pytest.mark.parametrize("side", [8, 9, 1])
def test_pooling_drops_odd_rows(side):
    x = np.random.default_rng(0).normal(size=(side, side + 1, 2)).astype(np.float32)
    windows = [
        [x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] for j in range((side + 1) // 2)]
        for i in range(side // 2)
    ]
    for pooling, reduce in {"max": np.max, "average": np.mean}.items():
        expected = np.array([[reduce(w, axis=(0, 1)) for w in row] for row in windows])
        actual = vgg.pool(jnp.asarray(x), pooling=pooling)
        np.testing.assert_allclose(
            actual, expected.reshape(side // 2, (side + 1) // 2, 2), rtol=1e-6
        )


def plain_convolution(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


either_convolution = pytest.mark.parametrize(
    "transform", [lambda kernel: kernel, winograd_kernel], ids=["direct", "winograd"]
)


@either_convolution
def test_convolution_has_the_gradients_of_the_plain_one(x64, transform):
    generator = np.random.default_rng(0)
    x, kernel = generator.normal(size=(1, 6, 5, 3)), generator.normal(size=(3, 3, 3, 4))
    cotangent = generator.normal(size=(1, 6, 5, 4))

    def conv(x, kernel):
        return convolution.conv(
            x, kernel, *map(transform, (kernel, convolution.transpose_kernel(kernel)))
        )

    value, pullback = jax.vjp(conv, x, kernel)
    expected, plain_pullback = jax.vjp(plain_convolution, x, kernel)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for actual, reference in zip(pullback(cotangent), plain_pullback(cotangent), strict=True):
        np.testing.assert_allclose(actual, reference, rtol=1e-12)
    check_grads(
        lambda x, kernel: jnp.sum(conv(x, kernel) ** 3), (x, kernel), order=2, modes=("rev",)
    )


def test_prepared_kernels_change_nothing(variables, content):
    """Neither features nor gradients, whether they are made once or in place."""
    once = value_and_grad(convolution.prepare_kernels(variables), content)
    jax.tree.map(np.testing.assert_array_equal, once, value_and_grad(variables, content))


@jax.jit
def value_and_grad(variables, image):
    return jax.value_and_grad(
        lambda image: sum(
            jnp.sum(tap**2) for tap in vgg.features(variables, image, layers=TAPS).values()
        )
    )(image)


def test_winograd_changes_rounding_only(variables, content, x64, monkeypatch):
    monkeypatch.setattr(convolution, "WINOGRAD_CHANNELS", 8)
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables)
    prepared = convolution.prepare_kernels(wide, convolution="winograd")
    sides = {name: kernels["forward"].shape[0] for name, kernels in prepared["prepared"].items()}
    assert sides["conv2_2"] == 3 and sides["conv3_1"] == 6 and set(sides) == set(CONVS)
    picture = content.astype(np.float64)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max()),
        value_and_grad(prepared, picture),
        value_and_grad(wide, picture),
    )


def test_only_the_layers_that_are_asked_for_are_prepared(variables, content):
    layers = ("relu1_1", "conv2_2")
    prepared = convolution.prepare_kernels(variables, layers=layers)
    assert tuple(prepared["prepared"]) == CONVS[:4]
    taps = vgg.features(prepared, content, layers=layers)
    jax.tree.map(
        np.testing.assert_array_equal, taps, vgg.features(variables, content, layers=layers)
    )


def test_unknown_convolution_is_refused(variables):
    with pytest.raises(ValueError, match="convolution is 'fft': expected 'direct' or 'winograd'"):
        convolution.prepare_kernels(variables, convolution="fft")


@either_convolution
def test_convolution_under_vmap(transform, x64):
    generator = np.random.default_rng(0)
    x, kernel = generator.normal(size=(4, 1, 6, 5, 3)), generator.normal(size=(3, 3, 3, 4))
    prepared = transform(kernel), transform(convolution.transpose_kernel(kernel))

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(convolution.conv(x, kernel, *prepared) ** 2))(x)

    singles = np.stack([gradient(one) for one in x])
    np.testing.assert_allclose(jax.vmap(gradient)(x), singles, rtol=1e-10)


def test_unknown_layer_is_refused(variables, content):
    with pytest.raises(InputError, match="unknown layer 'relu6_1'"):
        vgg.features(variables, content, layers=("relu6_1",))


def test_too_small_a_picture_is_refused(variables):
    with pytest.raises(InputError, match="20x15 px, but layer relu5_1 .* at least 16 px"):
        vgg.features(variables, jnp.zeros((15, 20, 3)), layers=("relu1_1", "relu5_1"))


def worst_relative_error(variables, image, pooling):
    """Largest error of any tap relative to the tap's largest value, against PyTorch."""
    torch_reference = pytest.importorskip("torch_reference")
    reference = torch_reference.Vgg(variables, pooling=pooling)
    expected = reference(torch_reference.to_torch(image), TAPS)
    actual = jax.jit(
        lambda variables, image: vgg.features(variables, image, layers=TAPS, pooling=pooling)
    )(variables, image)
    errors = {}
    for name in TAPS:
        tap = expected[name][0].permute(1, 2, 0).numpy()
        errors[name] = np.abs(actual[name] - tap).max() / np.abs(tap).max()
    return max(errors.values())


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("shape", [(48, 64), (37, 51)])
def test_every_tap_agrees_with_pytorch(variables, shape, pooling):
    assert worst_relative_error(variables, smooth_picture(*shape, seed=3), pooling) < 1e-5


@pytest.mark.weights
@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("shape", [(192, 256), (191, 253)])
def test_every_tap_of_the_real_network_agrees_with_pytorch(vgg19_weights, shape, pooling):
    image = smooth_picture(*shape, seed=3)
    assert worst_relative_error(vgg19_weights.variables, image, pooling) < 1e-5
