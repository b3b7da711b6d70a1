"""The network: geometry, pooling, padding, convolution, and every tap against PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_CHANNELS
from helpers.images import smooth_image
from jax.test_util import check_grads

from nst_jax.config import CONVS, TAPS, stride
from nst_jax.errors import InputError
from nst_jax.models import convolution, vgg
from nst_jax.models.convolution import winograd_kernel


def test_shapes_of_taps(variables):
    taps = vgg.features(variables, smooth_image(37, 50, seed=1), layers=TAPS)
    assert tuple(taps) == TAPS and TAPS[:3] == ("conv1_1", "relu1_1", "conv1_2")
    for name, tap in taps.items():
        sides = 37 // stride(name), 50 // stride(name)
        assert tap.shape == (*sides, TINY_CHANNELS[int(name[4]) - 1])
        relu = taps[name.replace("conv", "relu")]
        np.testing.assert_array_equal(relu, np.maximum(tap, 0))


def test_nothing_is_computed_beyond_the_deepest_tap(variables, content):
    def count_convolutions(layers):
        function = lambda image: vgg.features(variables, image, layers=layers)  # noqa: E731
        return str(jax.make_jaxpr(function)(content)).count("conv_general_dilated[")

    assert count_convolutions(("relu1_1",)) == 1
    assert count_convolutions(("relu4_1", "conv3_1")) == 9


def test_random_variables_have_the_tree_of_the_module():
    key, image = jax.random.key(0), jnp.zeros((16, 16, 3))
    tree = jax.eval_shape(lambda: vgg.init_variables(key, channels=TINY_CHANNELS))
    module = jax.eval_shape(lambda: vgg.VGG19(channels=TINY_CHANNELS).init(key, image))
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, dict(module))


REDUCTIONS = {
    "max": np.max,
    "average": np.mean,
    "average-scaled": lambda x, axis: np.sum(x, axis) / 2,
    "l2": lambda x, axis: 0.78 * np.sqrt(np.sum(np.square(x), axis)),
}


@pytest.mark.parametrize("pooling", REDUCTIONS)
def test_pooling_reduces_windows_and_drops_odd_rows(x64, pooling):
    for side in (9, 1):
        x = np.random.default_rng(0).normal(size=(side, side + 1, 2))
        windows = [
            [x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] for j in range((side + 1) // 2)]
            for i in range(side // 2)
        ]
        expected = [[REDUCTIONS[pooling](w, axis=(0, 1)) for w in row] for row in windows]
        expected = np.reshape(expected, (side // 2, (side + 1) // 2, 2))
        np.testing.assert_allclose(vgg.pool(jnp.asarray(x), pooling=pooling), expected, rtol=1e-6)
    narrow = x.astype(jnp.bfloat16)
    found = vgg.pool(jnp.asarray(narrow), pooling=pooling)
    wide = vgg.pool(jnp.asarray(narrow, jnp.float32), pooling=pooling)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(found), wide, rtol=2**-8)  # rounded once
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6, 2)))
    check_grads(partial(vgg.pool, pooling=pooling), (x,), order=1)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_gradient_of_l2_pooling_without_activations_is_0(dtype):
    """Also for values whose square is 0; otherwise x / |x|, however short x is."""
    x = np.zeros((2, 8, 1), dtype)
    x[0, 2], x[:, 4:6], x[1, 7] = 1e-30, [[[3e-18], [0]], [[0], [4e-18]]], 2
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(vgg.pool(x, pooling="l2")))(x)
    assert value.dtype == gradient.dtype == dtype
    expected = np.zeros((2, 8, 1))
    expected[0, 4], expected[1, 5], expected[1, 7] = 0.6, 0.8, 1
    rtol = 1e-6 if dtype is np.float32 else 2**-7
    np.testing.assert_allclose(np.float64(gradient), 0.78 * expected, rtol=rtol)


def plain_convolution(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


either_convolution = pytest.mark.parametrize(
    "transform", [lambda kernel: kernel, winograd_kernel], ids=["direct", "winograd"]
)


@either_convolution
def test_convolution_has_the_gradients_of_a_plain_one(x64, transform):
    """Both gradients, the second derivative, and a batch under vmap."""
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
    gradient = jax.grad(lambda x: jnp.sum(conv(x, kernel) ** 2))
    batch = np.stack([x, 2 * x])
    singles = np.stack([gradient(one) for one in batch])
    np.testing.assert_allclose(jax.vmap(gradient)(batch), singles, rtol=1e-10)


@partial(jax.jit, static_argnames=("layers", "pooling", "padding"))
def value_and_grad(variables, image, *, layers=TAPS, **options):
    return jax.value_and_grad(
        lambda image: sum(
            jnp.sum(tap**2)
            for tap in vgg.features(variables, image, layers=layers, **options).values()
        )
    )(image)


def test_prepared_kernels_change_nothing(variables, content):
    """Features and gradients are the same bits; deeper kernels are left out."""
    layers = ("relu1_1", "conv2_2")
    prepared = convolution.prepare_kernels(variables, layers=layers)
    assert tuple(prepared["prepared"]) == CONVS[:4]
    found = value_and_grad(prepared, content, layers=layers)
    expected = value_and_grad(variables, content, layers=layers)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_winograd_changes_rounding_only(variables, content, x64):
    options = {"layers": ("relu3_2",), "pooling": "l2", "padding": "reflect"}
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables)
    prepared = convolution.prepare_kernels(wide, convolution="winograd", winograd_channels=8)
    sides = {name: kernels["forward"].shape[0] for name, kernels in prepared["prepared"].items()}
    assert sides["conv2_2"] == 3 and sides["conv3_1"] == 6 and set(sides) == set(CONVS)
    image = content.astype(np.float64)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max()),
        value_and_grad(prepared, image, **options),
        value_and_grad(wide, image, **options),
    )


def test_unknown_layers_and_convolutions_are_refused(variables, content):
    with pytest.raises(ValueError, match="convolution is 'fft': expected 'direct' or 'winograd'"):
        convolution.prepare_kernels(variables, convolution="fft")
    with pytest.raises(InputError, match="unknown layer 'relu6_1'"):
        vgg.features(variables, content, layers=("relu6_1",))


@pytest.mark.parametrize("padding, least", [("zero", 16), ("replicate", 16), ("reflect", 32)])
def test_an_image_that_is_too_small_is_refused(variables, padding, least):
    layers = ("relu1_1", "relu5_1")
    take = partial(vgg.features, variables, layers=layers, padding=padding)
    message = f"{least + 4}x{least - 1} px, but .*layer relu5_1 .* at least {least} px"
    with pytest.raises(InputError, match=message) as error:
        take(jnp.zeros((least - 1, least + 4, 3)))
    assert ("reflect" in str(error.value)) == (padding == "reflect")
    shape = jax.eval_shape(take, jnp.zeros((least, least + 4, 3)))["relu5_1"].shape
    assert shape[:2] == (least // 16, (least + 4) // 16)


MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap", "zero": "constant"}


@pytest.mark.parametrize("padding", [*MODES, "replicate-input"])
def test_paddings_agree_with_numpy(x64, variables, padding):
    """For two layers on a tiny image, and for a batch under ``vmap``."""
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    images = np.stack([smooth_image(2, 5, seed=seed) for seed in (1, 2)]).astype(np.float64)
    modes = ["edge", "constant"] if padding == "replicate-input" else [MODES[padding]] * 2
    x = (images - variables["preprocessing"]["mean"]) / variables["preprocessing"]["std"]
    for name, mode in zip(("conv1_1", "conv1_2"), modes, strict=True):
        layer, seen = variables["params"][name], x if name == "conv1_1" else np.maximum(x, 0)
        seen = np.pad(seen, ((0, 0), (1, 1), (1, 1), (0, 0)), mode)
        x = layer["bias"] + sum(
            seen[:, i : i + 2, j : j + 5] @ layer["kernel"][i, j]
            for i in range(3)
            for j in range(3)
        )
    take = partial(vgg.features, layers=("conv1_2",), padding=padding)
    batch = jax.vmap(take, in_axes=(None, 0))(variables, images)["conv1_2"]
    single = take(variables, images[0])["conv1_2"]
    np.testing.assert_allclose(batch, x, atol=1e-12 * np.abs(x).max())
    np.testing.assert_allclose(single, x[0], atol=1e-12 * np.abs(x).max())


def worst_relative_error(variables, image, **options):
    """The largest error of a tap relative to its largest value, against PyTorch."""
    torch_reference = pytest.importorskip("torch_reference")
    reference = torch_reference.Vgg(variables, **options)
    expected = reference(torch_reference.to_torch(image), TAPS)
    actual = jax.jit(
        lambda variables, image: vgg.features(variables, image, layers=TAPS, **options)
    )(variables, image)
    errors = {}
    for name in TAPS:
        tap = expected[name][0].permute(1, 2, 0).numpy()
        errors[name] = np.abs(actual[name] - tap).max() / np.abs(tap).max()
    return max(errors.values())


@pytest.mark.parametrize(
    "pooling, padding",
    [
        ("max", "zero"),
        ("l2", "reflect"),
        ("average-scaled", "replicate-input"),
        ("average", "circular"),
    ],
)
def test_every_tap_and_the_gradient_agree_with_pytorch(x64, variables, pooling, padding):
    """In double precision, on an image with many pixels near a border in every layer."""
    reference = pytest.importorskip("torch_reference")
    options = {"pooling": pooling, "padding": padding}
    image = smooth_image(37, 51, seed=3).astype(np.float64)
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    pixels = reference.to_torch(image, dtype=reference.torch.float64).requires_grad_()
    network = reference.Vgg(variables, dtype=reference.torch.float64, **options)
    taps = network(pixels, TAPS)
    scales = {name: tap.abs().max().item() for name, tap in taps.items()}
    sum((tap / scales[name]).square().sum() for name, tap in taps.items()).backward()
    wanted = pixels.grad[0].permute(1, 2, 0).numpy() * 255

    @jax.jit
    def ours(variables, image):
        def value(image):
            taps = vgg.features(variables, image, layers=TAPS, **options)
            return sum(jnp.sum((tap / scales[name]) ** 2) for name, tap in taps.items()), taps

        return jax.grad(value, has_aux=True)(image)

    gradient, found = ours(variables, image)
    for name in TAPS:
        tap = taps[name][0].detach().permute(1, 2, 0).numpy()
        assert np.abs(found[name] - tap).max() < 1e-12 * scales[name]
    assert np.abs(gradient - wanted).max() < 1e-11 * np.abs(wanted).max()


@pytest.mark.weights
@pytest.mark.parametrize("pooling, padding", [("max", "zero"), ("l2", "replicate-input")])
@pytest.mark.slow
def test_every_tap_of_the_real_network_agrees_with_pytorch(vgg19_weights, pooling, padding):
    image = smooth_image(191, 253, seed=3)
    options = {"pooling": pooling, "padding": padding}
    assert worst_relative_error(vgg19_weights.variables, image, **options) < 1e-5
