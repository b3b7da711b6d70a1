"""Precision of the network: what is asked of the device, and how far results deviate."""

from collections import Counter
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.images import smooth_image
from helpers.records import guided
from jax.lax import Precision

from nst_jax.config import Config, Evaluation
from nst_jax.errors import InputError
from nst_jax.images import load_image
from nst_jax.losses import loss_weights, make_loss
from nst_jax.models import prepare_kernels
from nst_jax.transfer import stylize
from nst_jax.weights import load_weights

pytestmark = pytest.mark.sampled

SLIM = Path(__file__).resolve().parents[2] / "weights" / "vgg19-slim.safetensors"
LOW = Config.of(
    content_layers=["relu2_2"],
    style_layers=["relu1_1", "relu2_2", "relu3_1"],
    convolution="direct",
)
CONVOLUTIONS = 5  # of one pass to conv3_1


def evaluate(evaluation, config, variables, image, content, styles, **given):
    """``((loss, terms), gradient), targets``."""
    loss = make_loss(config.loss, evaluation=evaluation)
    targets = loss.targets(
        variables, content, styles, weights=loss_weights(config), **guided(given)
    )
    of = jax.value_and_grad(
        lambda image: loss.head(loss.statistics(variables, image, targets), targets), has_aux=True
    )
    return of(image), targets


@pytest.fixture(scope="module")
def tiny_networks(variables, slim_variables):
    return {"full": variables, "slim": slim_variables}


def equations(jaxpr):
    """All operations of a program, including those of inner programs."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            if is_program(value):
                yield from equations(getattr(value, "jaxpr", value))


def is_program(value):
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def operations(function, *arguments):
    """Count the convolutions and the matrix products by (precision, types)."""
    found = {"conv_general_dilated": Counter(), "dot_general": Counter()}
    for equation in equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        if equation.primitive.name in found:
            types = tuple(str(x.aval.dtype) for x in (*equation.invars, *equation.outvars))
            precision = equation.params["precision"]
            pair = precision if isinstance(precision, tuple) else (precision,) * 2
            found[equation.primitive.name][pair, types] += 1
    return found["conv_general_dilated"], found["dot_general"]


HIGHEST = (Precision.HIGHEST,) * 2
OF_CONVOLUTIONS = {
    "float32": Precision.HIGHEST,
    "tf32": Precision.HIGH,
    "bfloat16": Precision.DEFAULT,
}


@pytest.mark.parametrize(
    "precision, name, options",
    [
        ("float32", "full", {}),
        ("tf32", "full", {}),
        ("bfloat16", "slim", {}),
        ("bfloat16", "full", {"remat": True}),
        ("tf32", "slim", {"tile": 4}),
    ],
)
def test_what_is_asked_of_the_device(tiny_networks, precision, name, options):
    """Forward and backward, with prepared kernels and without; Gram matrices are always exact."""
    evaluation = Evaluation(precision=precision, **options)
    photo = jax.ShapeDtypeStruct((33, 40, 3), np.float32)
    function = partial(evaluate, evaluation, LOW)
    network = tiny_networks[name]
    prepared = prepare_kernels(network, dtype="bfloat16" if precision == "bfloat16" else None)
    convolutions, products = operations(function, network, photo, photo, [photo])
    assert operations(function, prepared, photo, photo, [photo]) == (convolutions, products)
    expected = (OF_CONVOLUTIONS[precision],) * 2
    kind = "bfloat16" if precision == "bfloat16" else "float32"
    # Content, style and image forward, then the gradient.
    assert convolutions.total() >= 4 * CONVOLUTIONS
    assert {pair for pair, _ in convolutions} == {expected}
    assert {name for _, types in convolutions for name in types} == {kind}
    assert products and {pair for pair, _ in products} == {HIGHEST}
    # Products of features are summed in float32.
    sums = [types for _, types in products if types[:2] == (kind, kind)]
    assert sums and {types[2] for types in sums} == {"float32"}


def test_bfloat16_kernels_give_the_numbers_of_kernels_rounded_in_each_step(variables, content):
    prepared = prepare_kernels(variables, dtype="bfloat16")
    for name, pair in prepared["prepared"].items():
        assert {str(kernel.dtype) for kernel in pair.values()} == {"bfloat16"}
        own = np.asarray(variables["params"][name]["kernel"])
        assert variables["params"][name]["kernel"].dtype == np.float32
        np.testing.assert_allclose(np.float32(pair["forward"]), own, rtol=2**-8)
        flipped = np.float32(pair["backward"])[::-1, ::-1].swapaxes(2, 3)
        np.testing.assert_array_equal(flipped, np.float32(pair["forward"]))
    run = partial(evaluate, Evaluation(precision="bfloat16"), LOW)
    photos = content**2, content, [content[::-1]]
    (value, gradient), _ = jax.jit(run)(prepared, *photos)
    (expected, of_plain), _ = jax.jit(run)(variables, *photos)
    np.testing.assert_allclose(value[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, of_plain, atol=1e-3 * np.abs(of_plain).max())


@pytest.mark.parametrize(
    "name, options",
    [("full", {"remat": True, "recompute_content": True}), ("slim", {"tile": 8})],
)
def test_bfloat16_keeps_sums_and_image_in_float32(tiny_networks, content, style, name, options):
    network = tiny_networks[name]
    evaluation = Evaluation(precision="bfloat16", **options)
    mask = smooth_image(36, 48, seed=4)[..., 0]
    arguments = network, content**2, content, [style]
    given = {"content_masks": np.stack([mask, 1 - mask]), "preserve": mask}
    (value, gradient), targets = jax.jit(partial(evaluate, evaluation, LOW))(*arguments, **given)
    (expected, wanted), _ = jax.jit(partial(evaluate, Evaluation(), LOW))(*arguments, **given)
    assert {str(x.dtype) for x in jax.tree.leaves((value, gradient))} == {"float32"}
    assert {str(x.dtype) for x in jax.tree.leaves(targets.style)} == {"float32"}
    assert {str(x.dtype) for x in jax.tree.leaves(targets.regions)} == {"float32"}
    loss = make_loss(LOW.loss, evaluation=evaluation)
    statistics = jax.eval_shape(loss.statistics, network, content, targets)
    assert {str(x.dtype) for x in jax.tree.leaves(statistics)} == {"float32"}
    np.testing.assert_allclose(value[0], expected[0], rtol=0.02)
    assert 0 < np.linalg.norm(gradient - wanted) < 0.2 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    "name, again, options",
    [("slim", True, {}), ("full", False, {"pooling": "l2", "padding": "reflect"})],
)
def test_bfloat16_of_constant_images_is_finite(tiny_networks, name, again, options):
    network = tiny_networks[name]
    evaluation = Evaluation(precision="bfloat16", recompute_content=again)
    run = jax.jit(partial(evaluate, evaluation, LOW.but(**options)))
    white = np.ones((24, 20, 3), np.float32)
    for image, content, style in ((0, 0, 0), (1, 1, 1), (0, 1, 0.5)):
        found = run(network, image * white, content * white, [style * white])
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
        if image == content:
            assert found[0][0][1].content == 0


@pytest.mark.slow
def test_a_slim_network_optimises_in_bfloat16(slim_variables, content, style):
    config = LOW.but(precision="bfloat16", steps=8)
    result = stylize(slim_variables, content, style, config=config)
    assert result.status == "done" and result.image.dtype == np.float32
    assert result.loss < 0.8 * result.history.loss[0]


def test_tf32_needs_a_gpu(variables, content, style):
    with pytest.raises(InputError, match="tf32 needs an NVIDIA GPU, .* on cpu: choose float32 or"):
        stylize(variables, content, style, config=LOW.but(precision="tf32"))


@pytest.mark.weights
@pytest.mark.parametrize("name", ["full", "slim"])
@pytest.mark.slow
@pytest.mark.optimized
def test_bfloat16_of_the_real_networks(vgg19_weights, images_folder, name):
    """The loss within 2 %, its gradient within 20 %, near the content image."""
    variables = vgg19_weights.variables if name == "full" else load_weights(SLIM).variables
    content, style = (
        load_image(images_folder / name, size=128)
        for name in ("content/tubingen.jpg", "style/starry_night.jpg")
    )
    noise = np.random.default_rng(0).normal(scale=0.1, size=content.shape)
    image = np.clip(content + noise, 0, 1).astype(np.float32)
    found = {}
    for precision in ("float32", "bfloat16"):
        config = Config.of(precision=precision)
        run = jax.jit(partial(evaluate, config.execution.evaluation, config))
        found[precision] = run(variables, image, content, [style])
    (((value, terms), gradient), targets), (((exact, of_exact), wanted), of_style) = (
        found[precision] for precision in ("bfloat16", "float32")
    )
    np.testing.assert_allclose([value, *terms], [exact, *of_exact], rtol=0.02)
    for layer, moments in targets.style.items():
        error = np.linalg.norm(moments.gram - of_style.style[layer].gram)
        assert error < 0.01 * np.linalg.norm(of_style.style[layer].gram)
    assert np.linalg.norm(gradient - wanted) < 0.2 * np.linalg.norm(wanted)
