"""Images by tiles: the numbers of the whole image, in the memory of one tile."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import smooth_image
from helpers.masks import as_float64, masks_of
from helpers.records import guided, make_problem
from jax.sharding import Mesh

from nst_jax.config import Config, Evaluation
from nst_jax.images import load_image
from nst_jax.losses import loss_weights, make_loss, style_term, tiling
from nst_jax.models import init_variables
from nst_jax.transfer import ExecutionPlan, make_mesh
from nst_jax.types import Guidance
from nst_jax.weights import load_weights

pytestmark = pytest.mark.sampled

SLIM = Path(__file__).resolve().parents[2] / "weights" / "vgg19-slim.safetensors"
# A stride of 4 and a halo of 12.
LOW = Config.of(
    content_layers={"relu2_2": 1, "conv1_1": 0.5},
    style_layers={"relu1_1": 1, "relu2_2": 0.3, "relu3_1": 2},
)
generator = np.random.default_rng(0)


STYLES = [smooth_image(75, 66, seed=14), smooth_image(48, 91, seed=15)]


def guidance(height, width):
    """Every control at once: two regions, three styles of which two are masked, a kept part."""
    return {
        "content_masks": masks_of(height, width, 2),
        "style_masks": [masks_of(*STYLES[0].shape[:2], 1)[0], None],
        "region_weights": (0.5, 3.0),
        "blend": {"relu1_1": [[1, 2], [2, 0.1]], "relu3_1": (1.0, 3.0)},
        "preserve": masks_of(height, width, 3)[2],
    }


def evaluate(evaluation, config, variables, size, *, styles=STYLES[:1], mesh=None, **given):
    """Targets, loss with its terms, and gradient, in one program."""
    content, image = (smooth_image(*size, seed=seed) for seed in (11, 12))
    masks = {name: given.pop(name) for name in list(given) if "mask" in name or name == "preserve"}
    loss = make_loss(config.loss, evaluation=evaluation, mesh=mesh)

    @jax.jit
    def everything(variables, content, styles, image, masks):
        weights = loss_weights(config)
        targets = loss.targets(variables, content, styles, weights=weights, **guided(masks | given))
        of = jax.value_and_grad(
            lambda image: loss.head(loss.statistics(variables, image, targets), targets),
            has_aux=True,
        )
        return of(image), targets

    return everything(variables, *as_float64((content, styles, image, masks)))


def difference(found, expected):
    """Greatest of all leaves' greatest differences, each over its greatest value."""

    def of_leaf(x, y):
        assert x.shape == y.shape and x.dtype == y.dtype
        return np.abs(x - y).max() / max(np.abs(y).max(), 1e-300)

    return max(jax.tree.leaves(jax.tree.map(of_leaf, found, expected)))


def error_of_tiles(config, variables, size, *, tile, mesh=None, again=False, **given):
    """How far the tiles' targets, terms and gradient are from those of the whole."""
    evaluation = Evaluation(tile=tile, recompute_content=again)
    (value, gradient), targets = evaluate(
        evaluation, config, variables, size, mesh=mesh, **dict(given)
    )
    (whole, of_whole), of_targets = evaluate(Evaluation(), config, variables, size, **dict(given))
    assert np.abs(of_whole).max() > 0 and gradient.dtype == np.float64
    if again:
        assert targets.content == {} and targets.image is not None
        targets = targets._replace(content=of_targets.content, image=None)
    return difference((value, gradient, targets), (whole, of_whole, of_targets))


def count_of(size, config, tile):
    layers = config.loss.content_names + config.loss.style_names
    return tiling.make_grid(size, layers=layers, tile=tile, padding=config.loss.padding).count


WITH_ALL = {"styles": STYLES, "guided": True}
CASES = {
    "sides of no multiples": (LOW, (61, 83), 16, {}),
    "every control": (LOW, (63, 70), 16, WITH_ALL),
    "sum of losses, inside, computed again": (
        LOW.but(style_mixing="sum", guides="inside", content_layers=["relu2_1", "relu3_2"]),
        (58, 85),
        24,
        WITH_ALL | {"again": True},
    ),
    "circular, all": (
        LOW.but(guides="all", padding="circular", tv_order=2),
        (64, 76),
        16,
        WITH_ALL | {"again": True},
    ),
    "circular, windows wider than the image": (
        LOW.but(padding="circular"),
        (8, 12),
        4,
        {},
    ),
    "kept part, windows along one side, computed again": (
        LOW,
        (37, 86),
        20,
        {"preserve": masks_of(37, 86, 1)[0], "again": True},
    ),
    "texture, tiles of one stride": (LOW.but(content_layers=()), (47, 38), 1, {}),
    "content alone": (LOW.but(style_layers=(), tv_weight=0.0), (58, 60), 16, {}),
    "shallow content, deep style, multiples of 16": (
        LOW.but(
            content_layers=["conv1_1"],
            style_layers=["relu1_2", "relu4_1"],
            pooling="average",
            tv_order=2,
            gram_normalization="hw",
            mse_factor=0.25,
        ),
        (112, 96),
        16,
        {},
    ),
    "deep content, shallow style, computed again": (
        LOW.but(content_layers=["conv3_2"], style_layers=["relu1_1"], pooling="average"),
        (59, 70),
        16,
        {"again": True},
    ),
    "default layers": (Config(), (205, 179), 16, {}),
    "reflect, l2": (LOW.but(padding="reflect", pooling="l2"), (61, 83), 16, {}),
    "reflect, average-scaled, inside, multiples of 4, computed again": (
        LOW.but(padding="reflect", pooling="average-scaled", guides="inside"),
        (60, 72),
        16,
        WITH_ALL | {"again": True},
    ),
    "replicate, average-scaled, all": (
        LOW.but(padding="replicate", pooling="average-scaled", guides="all"),
        (63, 70),
        16,
        WITH_ALL,
    ),
    "replicate, l2, tiles of one stride": (
        LOW.but(padding="replicate", pooling="l2"),
        (36, 40),
        1,
        {},
    ),
    "replicate-input, l2": (
        LOW.but(padding="replicate-input", pooling="l2"),
        (58, 85),
        24,
        {"again": True},
    ),
    "replicate-input, multiples of 4": (
        LOW.but(padding="replicate-input"),
        (64, 60),
        16,
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_tiles_are_the_whole(x64, networks, case):
    """To 1e-12: targets, loss, every term and the gradient."""
    config, size, tile, options = CASES[case]
    if options.get("guided"):
        masks = [masks_of(*style.shape[:2], 1)[0] for style in options["styles"]]
        options = guidance(*size) | {"style_masks": [masks[0], None]} | options
    options = {name: value for name, value in options.items() if name != "guided"}
    assert count_of(size, config, tile) > 1
    assert error_of_tiles(config, networks["full"], size, tile=tile, **options) < 1e-12


@pytest.mark.parametrize("padding", ["zero", "reflect", "circular"])
def test_large_styles_by_tiles(x64, networks, monkeypatch, padding):
    """Of sides that are no multiples of the stride, while the image itself is taken whole."""
    config = LOW.but(padding=padding)
    given = {"styles": STYLES, "style_masks": [masks_of(*STYLES[0].shape[:2], 1)[0], None]}
    _, whole = evaluate(Evaluation(), config, networks["full"], (16, 16), **dict(given))
    sizes = []

    def counted_tiles(*args, **options):
        sizes.append(options["tile"])
        return tiling.tiled(*args, **options)

    monkeypatch.setattr(style_term, "tiled", counted_tiles)
    monkeypatch.setattr(style_term, "STYLE_TILE", 16)
    _, found = evaluate(Evaluation(), config, networks["full"], (16, 16), **dict(given))
    assert sizes == [16, 16] and difference(found, whole) < 1e-12


@pytest.mark.slow
def test_a_circular_style_is_cropped_to_the_stride(x64, networks):
    """As though it had been given so, whatever the rows beyond are."""
    config = LOW.but(padding="circular")
    style, mask = STYLES[0], masks_of(*STYLES[0].shape[:2], 1)[0]  # 75x66 px, stride 4
    run = partial(evaluate, Evaluation(), config, networks["full"], (16, 16))
    expected, *others = (
        run(styles=[one], style_masks=[of])[1]
        for one, of in ((style[:72, :64], mask[:72, :64]), (style, mask), (style[:73], mask[:73]))
    )
    assert difference(others, [expected, expected]) == 0


@pytest.mark.slow
def test_tiles_of_a_slim_network(x64, networks):
    """Of its products: their sums with the bias have a count of the window's own positions."""
    config = LOW.but(content_layers=["relu2_2"], style_layers=["relu2_2"], padding="replicate")
    given = guidance(61, 70) | {"styles": STYLES, "again": True, "blend": None}
    assert error_of_tiles(config, networks["slim"], (61, 70), tile=16, **given) < 1e-12


def test_a_tile_as_large_as_the_image_is_the_whole(x64, networks):
    """The same program."""

    def program(tile):
        loss = make_loss(LOW.loss, evaluation=Evaluation(tile=tile))

        def value(variables, image):
            targets = loss.targets(variables, image, [image], weights=loss_weights(LOW))
            return loss.head(loss.statistics(variables, image, targets), targets)

        image = jax.ShapeDtypeStruct((40, 43, 3), float)
        return str(jax.make_jaxpr(value)(networks["full"], image))

    assert program(40) == program(0) != program(16)


@pytest.mark.slow
def test_images_of_a_batch_by_tiles(x64, networks):
    """Under ``vmap``, each with a content of its own, against the whole of each alone."""
    variables, keeps = networks["full"], as_float64(masks_of(45, 50, 2))
    contents, images = (
        as_float64(np.stack([smooth_image(45, 50, seed=seed + i) for i in range(2)]))
        for seed in (50, 60)
    )

    def gradient(tile):
        loss = make_loss(LOW.loss, evaluation=Evaluation(tile=tile))

        def of_image(variables, style, content, image, keep):
            weights = loss_weights(LOW)
            targets = loss.targets(
                variables, content, [style], weights=weights, guidance=Guidance(preserve=keep)
            )
            return jax.value_and_grad(
                lambda image: loss.head(loss.statistics(variables, image, targets), targets),
                has_aux=True,
            )(image)

        return of_image

    shared = variables, jnp.asarray(STYLES[0], float)
    batched = jax.jit(jax.vmap(gradient(16), in_axes=(None, None, 0, 0, 0)))
    found = batched(*shared, contents, images, keeps)
    single = jax.jit(gradient(0))
    expected = [single(*shared, *one) for one in zip(contents, images, keeps, strict=True)]
    assert difference(found, jax.tree.map(lambda *x: jnp.stack(x), *expected)) < 1e-12


@pytest.mark.slow
def test_a_run_that_sees_luminance_only(x64, networks):
    """Through ``make_problem``; a step of 1 down the gradient shows it."""
    content, style, image = as_float64([smooth_image(61, 58, seed=i) for i in (1, 2, 3)])
    found = {}
    for tile in (16, "off"):
        config = LOW.but(color="luminance", tile=tile, convolution="direct")
        problem = make_problem(
            networks["full"], content, [style], config=config, optimizer=optax.sgd(1.0)
        )
        assert problem.execution_plan == ExecutionPlan(tile=16 if tile == 16 else 0)
        state = problem.solver.init(image, problem.variables, problem.targets)
        step = jax.jit(problem.solver.step)
        state, info = step(state, problem.variables, problem.targets)
        found[tile] = state.image - image, info.loss, info.terms, problem.targets
    assert np.abs(found[16][0]).max() > 10
    assert difference(found[16], found["off"]) < 1e-12


SMALL = LOW.but(content_layers=["relu2_1"], style_layers=["relu1_1", "relu2_1"])


def test_a_halo_one_stride_too_small_is_found(x64, networks, monkeypatch):
    """The comparison is sharp: so little is missing that few features differ."""
    halo = tiling.halo
    monkeypatch.setattr(tiling, "halo", lambda layers: halo(layers) - 2)
    assert error_of_tiles(SMALL, networks["full"], (34, 75), tile=16) > 1e-9


@pytest.mark.parametrize(
    "devices, size, count",
    [((4,), (34, 75), 10), ((3, 1), (34, 20), 2)],
)
@pytest.mark.slow
def test_tiles_divided_among_devices(x64, networks, devices, size, count):
    """Also where they do not come out even, with fewer than devices, and on any mesh."""
    flat = make_mesh(devices=jax.devices()[: np.prod(devices)])
    mesh = flat if len(devices) == 1 else Mesh(flat.devices.reshape(devices), ("a", "b"))
    assert count_of(size, SMALL, 16) == count
    given = guidance(*size) | {"styles": STYLES, "blend": None, "mesh": mesh}
    assert error_of_tiles(SMALL, networks["full"], size, tile=16, **given) < 1e-12


def temporary_bytes(evaluation, variables, side):
    """Temporary memory of loss and gradient of a square image, compiled only."""
    loss = make_loss(SMALL.loss, evaluation=evaluation)
    image = jax.ShapeDtypeStruct((side, side, 3), np.float32)
    targets = jax.eval_shape(
        partial(loss.targets, weights=loss_weights(SMALL)), variables, image, [image]
    )

    def value(image, variables, targets):
        return loss.head(loss.statistics(variables, image, targets), targets)[0]

    compiled = jax.jit(jax.value_and_grad(value)).lower(image, variables, targets).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.optimized
def test_memory_is_that_of_a_tile():
    """Four times as large an image takes less than its own size more, and the whole all again."""
    variables = jax.eval_shape(
        partial(init_variables, channels=(32, 32, 1, 1, 1)), jax.random.key(0)
    )
    tiled, whole, again = (
        [temporary_bytes(evaluation, variables, side) for side in (256, 512)]
        for evaluation in (
            Evaluation(tile=64),
            Evaluation(),
            Evaluation(tile=64, recompute_content=True),
        )
    )
    image = 4 * 3 * (512**2 - 256**2)
    assert 3.8 * whole[0] < whole[1] < 4.2 * whole[0] and tiled[1] < 0.2 * whole[1]
    assert tiled[1] - tiled[0] < image and again[1] - again[0] < image


@pytest.mark.weights
@pytest.mark.optimized
@pytest.mark.parametrize("network", ["full", "slim"])
@pytest.mark.slow
def test_tiles_of_real_images(vgg19_weights, images_folder, network):
    """With the real networks in float32."""
    config = Config().but(convolution="direct")
    content, style = (
        load_image(images_folder / name, size=512)
        for name in ("content/tubingen.jpg", "style/starry_night.jpg")
    )
    variables = vgg19_weights.variables if network == "full" else load_weights(SLIM).variables
    noise = np.random.default_rng(0).normal(scale=0.1, size=content.shape)
    image = np.clip(content + noise, 0, 1).astype(np.float32)

    def evaluate(tile):
        loss = make_loss(config.loss, evaluation=Evaluation(tile=tile))

        @jax.jit
        def everything(variables, content, style, image):
            targets = loss.targets(variables, content, [style], weights=loss_weights(config))
            return jax.value_and_grad(
                lambda image: loss.head(loss.statistics(variables, image, targets), targets),
                has_aux=True,
            )(image)

        return everything(variables, content, style, image)

    (value, terms), gradient = evaluate(224)
    (whole, of_whole), expected = evaluate(0)
    assert gradient.dtype == np.float32 and count_of(content.shape, config, 224) > 1
    np.testing.assert_allclose([value, *terms], [whole, *of_whole], rtol=1e-5)
    assert difference(gradient, expected) < 1e-5
