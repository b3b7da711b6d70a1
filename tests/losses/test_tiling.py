"""Objectives in tiles: the numbers of the whole image, in the memory of one tile."""

from functools import partial

import jax
import numpy as np
import pytest
from helpers.images import smooth_image
from helpers.masks import as_float64, masks_of
from helpers.records import guided
from jax.sharding import Mesh

from nst_jax.config import Config, Evaluation
from nst_jax.images import load_image
from nst_jax.losses import loss_weights, make_loss, tiling
from nst_jax.models import init_variables
from nst_jax.transfer import make_mesh

pytestmark = pytest.mark.sampled

# The deepest stride is 4, the halo 12 pixels.
LOW = Config.of(
    content_layers={"relu2_2": 1, "conv1_1": 0.5},
    style_layers={"relu1_1": 1, "relu2_2": 0.3, "relu3_1": 2},
)
SMALL = LOW.but(content_layers=["relu2_1"], style_layers=["relu1_1", "relu2_1"])
STYLES = [smooth_image(75, 66, seed=14), smooth_image(48, 91, seed=15)]


def guidance(height, width):
    """Every control at once: two regions, two styles (one of them masked), a preserved part."""
    return {
        "content_masks": masks_of(height, width, 2),
        "style_masks": [masks_of(*STYLES[0].shape[:2], 1)[0], None],
        "region_weights": (0.5, 3.0),
        "blend": {"relu1_1": [[1, 2], [2, 0.1]], "relu3_1": (1.0, 3.0)},
        "preserve": masks_of(height, width, 3)[2],
    }


def evaluate(evaluation, config, variables, size, *, styles=STYLES[:1], mesh=None, **given):
    """``((loss, terms), gradient), targets``."""
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
    """Largest difference in any leaf, relative to the largest value of the leaf."""

    def of_leaf(x, y):
        assert x.shape == y.shape and x.dtype == y.dtype
        return np.abs(x - y).max() / max(np.abs(y).max(), 1e-300)

    return max(jax.tree.leaves(jax.tree.map(of_leaf, found, expected)))


def error_of_tiles(config, variables, size, *, tile, mesh=None, recompute=False, **given):
    """Error of targets, terms and gradient in tiles, compared with those of the whole image."""
    evaluation = Evaluation(tile=tile, recompute_content=recompute)
    (value, gradient), targets = evaluate(
        evaluation, config, variables, size, mesh=mesh, **dict(given)
    )
    (whole, of_whole), of_targets = evaluate(Evaluation(), config, variables, size, **dict(given))
    assert np.abs(of_whole).max() > 0 and gradient.dtype == np.float64
    if recompute:
        assert targets.content == {} and targets.image is not None
        targets = targets._replace(content=of_targets.content, image=None)
    return difference((value, gradient, targets), (whole, of_whole, of_targets))


def count_of(size, config, tile):
    layers = config.loss.content_names + config.loss.style_names
    return tiling.make_grid(size, layers=layers, tile=tile, padding=config.loss.padding).count


GUIDED = {"styles": STYLES, "guided": True}
RECOMPUTE = {"recompute": True}
CASES = {  # config, size, tile, options
    "every control": (LOW, (63, 70), 16, GUIDED),
    "sum of losses, inside, recomputed content": (
        LOW.but(style_mixing="sum", guides="inside", content_layers=["relu2_1", "relu3_2"]),
        (58, 85),
        24,
        GUIDED | RECOMPUTE,
    ),
    "circular, all": (
        LOW.but(guides="all", padding="circular", tv_order=2),
        (64, 76),
        16,
        GUIDED | RECOMPUTE,
    ),
    "circular, windows wider than the image": (LOW.but(padding="circular"), (8, 12), 4, {}),
    "no content, windows along one axis": (LOW.but(content_layers=()), (37, 86), 20, {}),
    "default layers": (Config(), (205, 179), 16, {}),
    "reflect, average-scaled, inside": (
        LOW.but(padding="reflect", pooling="average-scaled", guides="inside"),
        (60, 72),
        16,
        GUIDED | RECOMPUTE,
    ),
    "replicate, l2, tiles of one stride": (
        LOW.but(padding="replicate", pooling="l2"),
        (36, 40),
        1,
        {},
    ),
    "replicate-input": (LOW.but(padding="replicate-input"), (58, 85), 24, RECOMPUTE),
    "slim": (  # products, whose bias counts the positions that a window owns
        LOW.but(content_layers=["relu2_2"], style_layers=["relu2_2"], padding="replicate"),
        (61, 70),
        16,
        GUIDED | RECOMPUTE | {"blend": None},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_tiles_give_the_targets_loss_and_gradient_of_the_whole(x64, networks, case):
    config, size, tile, options = CASES[case]
    if "guided" in options:
        options = guidance(*size) | options
        del options["guided"]
    assert count_of(size, config, tile) > 1
    network = networks["slim" if case == "slim" else "full"]
    assert error_of_tiles(config, network, size, tile=tile, **options) < 1e-12


@pytest.mark.slow
def test_circular_styles_are_cropped_to_the_stride(x64, networks):
    """The rows beyond the last multiple of the stride have no effect."""
    config = LOW.but(padding="circular")
    style, mask = STYLES[0], masks_of(*STYLES[0].shape[:2], 1)[0]  # 75x66 px, stride 4
    run = partial(evaluate, Evaluation(), config, networks["full"], (16, 16))
    cropped = run(styles=[style[:72, :64]], style_masks=[mask[:72, :64]])[1]
    assert difference(run(styles=[style], style_masks=[mask])[1], cropped) == 0


def test_a_tile_as_large_as_the_image_is_the_whole(x64, networks):
    def program(tile):
        loss = make_loss(LOW.loss, evaluation=Evaluation(tile=tile))

        def value(variables, image):
            targets = loss.targets(variables, image, [image], weights=loss_weights(LOW))
            return loss.head(loss.statistics(variables, image, targets), targets)

        image = jax.ShapeDtypeStruct((40, 43, 3), float)
        return str(jax.make_jaxpr(value)(networks["full"], image))

    assert program(40) == program(0) != program(16)


def test_a_halo_one_stride_too_small_is_found(x64, networks, monkeypatch):
    """The comparison above is sharp enough to find an error in a few features."""
    halo = tiling.halo
    monkeypatch.setattr(tiling, "halo", lambda layers: halo(layers) - 2)
    assert error_of_tiles(SMALL, networks["full"], (34, 75), tile=16) > 1e-9


@pytest.mark.parametrize(
    "devices, size, count",
    [((4,), (34, 75), 10), ((3, 1), (34, 20), 2)],
)
@pytest.mark.slow
def test_tiles_divided_among_devices(x64, networks, devices, size, count):
    """Not divisible by the number of devices; or fewer than devices, on a mesh of two axes."""
    flat = make_mesh(devices=jax.devices()[: np.prod(devices)])
    mesh = flat if len(devices) == 1 else Mesh(flat.devices.reshape(devices), ("a", "b"))
    assert count_of(size, SMALL, 16) == count
    given = guidance(*size) | {"styles": STYLES, "blend": None, "mesh": mesh}
    assert error_of_tiles(SMALL, networks["full"], size, tile=16, **given) < 1e-12


def temporary_bytes(evaluation, variables, side):
    """Temporary memory of the compiled loss and gradient of a square image."""
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
    """An image of four times the size needs less additional memory than the image itself."""
    variables = jax.eval_shape(
        partial(init_variables, channels=(32, 32, 1, 1, 1)), jax.random.key(0)
    )
    tiled, whole, recomputed = (
        [temporary_bytes(evaluation, variables, side) for side in (256, 512)]
        for evaluation in (
            Evaluation(tile=64),
            Evaluation(),
            Evaluation(tile=64, recompute_content=True),
        )
    )
    image = 4 * 3 * (512**2 - 256**2)
    assert 3.8 * whole[0] < whole[1] < 4.2 * whole[0] and tiled[1] < 0.2 * whole[1]
    assert tiled[1] - tiled[0] < image and recomputed[1] - recomputed[0] < image


@pytest.mark.weights
@pytest.mark.optimized
@pytest.mark.slow
def test_tiles_of_real_images_in_float32(vgg19_weights, images_folder):
    config = Config().but(convolution="direct")
    content, style = (
        load_image(images_folder / name, size=512)
        for name in ("content/tubingen.jpg", "style/starry_night.jpg")
    )
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

        return everything(vgg19_weights.variables, content, style, image)

    (value, terms), gradient = evaluate(224)
    (whole, of_whole), expected = evaluate(0)
    assert gradient.dtype == np.float32 and count_of(content.shape, config, 224) > 1
    np.testing.assert_allclose([value, *terms], [whole, *of_whole], rtol=1e-5)
    assert difference(gradient, expected) < 1e-5
