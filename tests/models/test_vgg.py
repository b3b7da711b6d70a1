"""The network: geometry, pooling, its convolution, and every tap against PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_CHANNELS, smooth_image
from jax.test_util import check_grads

from nst_jax.config import CONVS, TAPS, stride
from nst_jax.errors import InputError
from nst_jax.models import convolution, vgg
from nst_jax.models.convolution import winograd_kernel


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


REDUCTIONS = {
    "max": np.max,
    "average": np.mean,
    "average-scaled": lambda x, axis: np.sum(x, axis) / 2,
    "l2": lambda x, axis: 0.78 * np.sqrt(np.sum(np.square(x), axis)),
}


@pytest.mark.parametrize("side", [8, 9, 1])
def test_pooling_drops_odd_rows(side):
    x = np.random.default_rng(0).normal(size=(side, side + 1, 2)).astype(np.float32)
    windows = [
        [x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] for j in range((side + 1) // 2)]
        for i in range(side // 2)
    ]
    for pooling, reduce in REDUCTIONS.items():
        expected = np.array([[reduce(w, axis=(0, 1)) for w in row] for row in windows])
        actual = vgg.pool(jnp.asarray(x), pooling=pooling)
        np.testing.assert_allclose(
            actual, expected.reshape(side // 2, (side + 1) // 2, 2), rtol=1e-6
        )


@pytest.mark.parametrize("pooling", REDUCTIONS)
def test_gradient_of_pooling(x64, pooling):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6, 2)))
    check_grads(partial(vgg.pool, pooling=pooling), (x,), order=2)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_gradient_of_l2_pooling_where_nothing_is_active(dtype):
    """0 of zeros, of what is 0 once squared too, and of a length otherwise, however short."""
    x = np.zeros((2, 8, 1), dtype)
    x[0, 2], x[:, 4:6], x[1, 7] = 1e-30, [[[3e-18], [0]], [[0], [4e-18]]], 2
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(vgg.pool(x, pooling="l2")))(x)
    assert value.dtype == gradient.dtype == dtype
    expected = np.zeros((2, 8, 1))
    expected[0, 4], expected[1, 5], expected[1, 7] = 0.6, 0.8, 1
    rtol = 1e-6 if dtype is np.float32 else 2**-7
    np.testing.assert_allclose(np.float64(gradient), 0.78 * expected, rtol=rtol)


@pytest.mark.parametrize("pooling", REDUCTIONS)
def test_pooling_in_bfloat16_is_rounded_once(pooling):
    x = np.random.default_rng(0).uniform(size=(8, 8, 3)).astype(jnp.bfloat16)
    found = vgg.pool(jnp.asarray(x), pooling=pooling)
    wide = vgg.pool(jnp.asarray(x, jnp.float32), pooling=pooling)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(found), wide, rtol=2**-8)


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


@partial(jax.jit, static_argnames=("layers", "pooling", "padding"))
def value_and_grad(variables, image, *, layers=TAPS, **options):
    return jax.value_and_grad(
        lambda image: sum(
            jnp.sum(tap**2)
            for tap in vgg.features(variables, image, layers=layers, **options).values()
        )
    )(image)


@pytest.mark.parametrize(
    "options",
    [{}, {"layers": ("relu3_2",), "pooling": "l2", "padding": "reflect"}],
    ids=["as trained", "other"],
)
def test_winograd_changes_rounding_only(variables, content, x64, monkeypatch, options):
    monkeypatch.setattr(convolution, "WINOGRAD_CHANNELS", 8)
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables)
    prepared = convolution.prepare_kernels(wide, convolution="winograd")
    sides = {name: kernels["forward"].shape[0] for name, kernels in prepared["prepared"].items()}
    assert sides["conv2_2"] == 3 and sides["conv3_1"] == 6 and set(sides) == set(CONVS)
    image = content.astype(np.float64)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max()),
        value_and_grad(prepared, image, **options),
        value_and_grad(wide, image, **options),
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


@pytest.mark.parametrize("padding, least", [("zero", 16), ("replicate", 16), ("reflect", 32)])
def test_too_small_a_image_is_refused(variables, padding, least):
    """A mirror shows what lies next to the border, and a map of one row has nothing there."""
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
def test_paddings_are_those_of_numpy(x64, variables, padding):
    """Of two layers and maps as small as they come, one or several under ``vmap``."""
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
    """Largest error of any tap relative to the tap's largest value, against PyTorch."""
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


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("shape", [(48, 64), (37, 51)])
def test_every_tap_agrees_with_pytorch(variables, shape, pooling):
    image = smooth_image(*shape, seed=3)
    assert worst_relative_error(variables, image, pooling=pooling) < 1e-5


@pytest.mark.parametrize(
    "pooling, padding",
    [
        ("l2", "zero"),
        ("l2", "reflect"),
        ("max", "replicate"),
        ("average-scaled", "replicate-input"),
        ("average", "circular"),
    ],
)
def test_every_tap_and_the_gradient_agree_with_pytorch(x64, variables, pooling, padding):
    """In double precision, and with many pixels at a border in every layer."""
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
@pytest.mark.parametrize(
    "pooling, padding", [("max", "zero"), ("average", "zero"), ("l2", "replicate-input")]
)
@pytest.mark.parametrize("shape", [(192, 256), (191, 253)])
@pytest.mark.slow
def test_every_tap_of_the_real_network_agrees_with_pytorch(vgg19_weights, shape, pooling, padding):
    image = smooth_image(*shape, seed=3)
    options = {"pooling": pooling, "padding": padding}
    assert worst_relative_error(vgg19_weights.variables, image, **options) < 1e-5
