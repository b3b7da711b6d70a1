"""Every loss of the content and style terms, combined with masks, styles, batches, tiles, networks.

Losses are separated by their weights. These are traced, so that one program gives the values and
gradients of all losses.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_losses as oracle
from helpers.images import smooth_image
from helpers.masks import as_float64, masks_of
from helpers.records import guided

from nst_jax.config import Config, to_flat
from nst_jax.config.factors import CONTENT_LOSSES, STYLE_LOSSES
from nst_jax.errors import InputError
from nst_jax.losses import layer_guides, loss_weights, make_loss, style_term
from nst_jax.losses.content import grid_positions
from nst_jax.models import features
from nst_jax.transfer.problem import check_shape

CONTENT_LAYERS = {"relu2_2": 1, "relu1_1": 0.5}
STYLE_LAYERS = {"relu1_1": 1, "relu2_2": 0.3}
MATCHED = ("relu2_2",)
LOW = Config.of(
    content_layers=CONTENT_LAYERS,
    style_layers=STYLE_LAYERS,
    content_losses=("features", "self-similarity", "laplacian4"),
    style_losses=STYLE_LOSSES,
    histogram_layers=MATCHED,
    gram_normalization="hw",
    content_weight=1.0,
    style_weight=1.0,
)
SIZE = (42, 51)  # not multiples of the stride 4
CONTENT, IMAGE, OTHER = (smooth_image(*SIZE, seed=seed) for seed in (1, 2, 3))
STYLES = [smooth_image(45, 38, seed=4), smooth_image(34, 51, seed=5)]
MASKS = masks_of(*SIZE, 2)
STYLE_MASKS = [masks_of(45, 38, 1)[0], None]


def separate(config, statistics, targets, loss):
    """The value of each loss alone, ``{name: scalar}``."""

    def with_weights(term, names):
        def value(factors):
            by_name = {name: factors[i] for i, name in enumerate(names)}
            weights = targets.weights._replace(**{f"{term}_losses": by_name})
            return getattr(loss.head(statistics, targets._replace(weights=weights))[1], term)

        return dict(zip(names, jax.vmap(value)(jnp.eye(len(names))), strict=True))

    found = {}
    for term in ("content", "style"):
        found |= with_weights(term, [name for name, _ in to_flat(config)[f"{term}_losses"]])
    return found


def evaluate(config, variables, images, *, styles=STYLES[:1], content=CONTENT, vmap=False, **given):
    """Values and gradients of every loss for each image, ``{name: [B]}``, ``{name: [B, ...]}``."""
    loss = make_loss(config.loss)

    @jax.jit
    def everything(variables, images, content, styles, given):
        targets = loss.targets(
            variables, content, styles, weights=loss_weights(config), **guided(given)
        )

        def values(image):
            return separate(config, loss.statistics(variables, image, targets), targets, loss)

        def both(image):
            return values(image), jax.jacrev(values)(image)

        return jax.vmap(both)(images) if vmap else jax.lax.map(both, images)

    given = as_float64(given) if given else {}
    images, styles = as_float64(np.stack(images)), as_float64(list(styles))
    return everything(variables, images, as_float64(content), styles, given)


def taps_of(variables, image):
    """``{layer: [h, w, C]}``."""
    layers = tuple({**CONTENT_LAYERS, **STYLE_LAYERS})
    return jax.device_get(features(variables, as_float64(image), layers=layers))


def flat_features(variables, image, mask):
    """``{style layer: (features [n, C], mask [n])}``."""
    guides = layer_guides(as_float64(mask), layers=tuple(STYLE_LAYERS))
    taps = taps_of(variables, image)
    return {
        name: (taps[name].reshape(-1, taps[name].shape[-1]), np.ravel(guides[name]))
        for name in STYLE_LAYERS
    }


def numpy_moments(flat, mask):
    fraction = mask / mask.sum()
    return fraction @ flat, (flat * fraction[:, None]).T @ flat


def numpy_histogram_loss(region, styles, blend, mixing):
    """Of a region's and the styles' features and masks, channel by channel."""
    flat, mask = region
    total = 0.0
    for c in range(flat.shape[1]):
        tables = [oracle.quantiles(style[:, c], of_style) for style, of_style in styles]
        low, high = min(t[0] for t in tables), max(t[-1] for t in tables)
        mixed = [sum(b * t for b, t in zip(blend, tables, strict=True))]
        for weight, table in zip(*(([1.0], mixed) if mixing == "average" else (blend, tables))):
            goal = oracle.matched(flat[:, c], mask, table, low, high)
            total += weight * np.sum(mask * (flat[:, c] - goal) ** 2)
    return total / flat.shape[1] / mask.sum()


def numpy_style_losses(variables, image, styles, *, masks, style_masks, weights, blend, mixing):
    total = dict.fromkeys(STYLE_LOSSES, 0.0)
    pairs = zip(styles, style_masks, strict=True)
    styles = [
        flat_features(variables, x, np.ones(x.shape[:2]) if m is None else m) for x, m in pairs
    ]
    for mask, weight, row in zip(masks, weights, blend, strict=True):
        region = flat_features(variables, image, mask)
        for layer, factor in STYLE_LAYERS.items():
            found = numpy_moments(*region[layer])
            moments = [numpy_moments(*style[layer]) for style in styles]
            mixed = [sum(b * x[i] for b, x in zip(row, moments, strict=True)) for i in (0, 1)]
            each = [(1.0, mixed)] if mixing == "average" else zip(row, moments, strict=True)
            for b, target in each:
                for loss, value in oracle.moment_losses(found, target).items():
                    total[loss] += factor * weight * b * value
            if layer in MATCHED:
                value = numpy_histogram_loss(region[layer], [x[layer] for x in styles], row, mixing)
                total["histogram"] += factor * weight * value
    return total


def numpy_content_losses(variables, image, content):
    taps, targets = taps_of(variables, image), taps_of(variables, content)
    total = {"features": 0.0, "self-similarity": 0.0}
    for name, factor in CONTENT_LAYERS.items():
        total["features"] += factor * np.mean((taps[name] - targets[name]) ** 2)
        grid = np.ix_(*map(grid_positions, taps[name].shape[:2]))
        sampled = [x[grid].reshape(-1, x.shape[-1]) for x in (taps[name], targets[name])]
        found, target = map(oracle.similarity, sampled)
        total["self-similarity"] += factor * np.abs(found - target).sum(0).mean()
    difference = 255 * (np.float64(image) - content)
    return total | {"laplacian4": np.mean(oracle.laplacian(difference, 4) ** 2)}


@pytest.mark.parametrize("network, mixing", [("full", "average"), ("slim", "sum")])
@pytest.mark.slow
def test_values_of_two_styles_in_two_regions_are_numpys(x64, networks, network, mixing):
    variables, config = networks[network], LOW.but(style_mixing=mixing)
    blend, weights = np.array([[0.25, 0.75], [0.8, 0.2]]), np.array([0.5, 3.0])
    given = {"region_weights": weights, "blend": blend}
    given |= {"content_masks": MASKS, "style_masks": STYLE_MASKS}
    found, _ = evaluate(config, variables, [IMAGE], styles=STYLES, **given)
    expected = numpy_content_losses(variables, IMAGE, CONTENT) | numpy_style_losses(
        variables,
        IMAGE,
        STYLES,
        masks=MASKS,
        style_masks=STYLE_MASKS,
        weights=weights,
        blend=blend,
        mixing=mixing,
    )
    assert set(expected) == set(found) and min(expected.values()) > 0
    for name, value in expected.items():
        rtol = 1e-8 if name == "wasserstein" else 1e-10
        np.testing.assert_allclose(found[name][0], value, rtol=rtol, err_msg=name)


COMBINED = {  # config, network, options
    "tile, masks, sum": (
        {"tile": 12, "style_mixing": "sum"},
        "full",
        {"content_masks": MASKS, "style_masks": STYLE_MASKS},
    ),
    "batch": ({}, "full", {"vmap": True}),
    "tile, batch, slim": ({"tile": 12}, "slim", {"vmap": True}),
}


@pytest.mark.parametrize("case", COMBINED)
@pytest.mark.slow
def test_tiles_and_batches_have_the_values_and_gradients_of_whole_single_images(
    x64, networks, case
):
    changed, network, given = COMBINED[case]
    config, variables, images = LOW.but(**changed), networks[network], [IMAGE, OTHER]
    found = evaluate(config, variables, images, styles=STYLES, **given)
    plain = {name: value for name, value in given.items() if name != "vmap"}
    expected = evaluate(config.but(tile="off"), variables, images, styles=STYLES, **plain)
    for kind, bound in zip((0, 1), (1e-10, 1e-11), strict=True):
        for name, value in expected[kind].items():
            largest = np.abs(value).max()
            assert largest > 0
            # Singular covariances limit the precision of the Wasserstein distance.
            limit = (1e-7 if name == "wasserstein" else bound) * largest
            assert np.abs(found[kind][name] - value).max() < limit, (name, kind)


@pytest.mark.slow
def test_gradients_are_finite_differences(x64, networks):
    """Except for histograms, whose gradient is not the derivative of the value."""
    smooth = LOW.but(
        content_layers={"conv2_1": 1},
        style_layers={"conv1_1": 1, "conv2_1": 2},
        histogram_layers=("conv1_1",),
        pooling="average",
    )
    content, image, style = (x[:14, :13] for x in (CONTENT, IMAGE, STYLES[0]))
    options = {"content": content, "styles": [style]}
    _, gradients = evaluate(smooth, networks["full"], [image], **options)
    direction = np.random.default_rng(1).normal(size=image.shape)
    step = 1e-5
    (ahead, _), (behind, _) = (
        evaluate(smooth, networks["full"], [image + sign * step * direction], **options)
        for sign in (1, -1)
    )
    for name in gradients:
        slope = np.sum(gradients[name][0] * direction)
        difference = (ahead[name][0] - behind[name][0]) / (2 * step)
        if name == "histogram":
            assert abs(difference / slope - 1) > 1e-3
        else:
            np.testing.assert_allclose(slope, difference, rtol=1e-5, err_msg=name)


def test_coarse_laplacians_by_tiles(x64, networks):
    """The squares are larger than the stride of every layer."""
    config = Config.of(
        content_layers={"relu1_1": 1}, style_layers=["relu1_1"], content_losses=["laplacian16"]
    )
    content, image = (smooth_image(230, 250, seed=seed) for seed in (6, 7))
    whole, gradient = evaluate(config, networks["full"], [image], content=content)
    tiled, of_tiles = evaluate(config.but(tile=20), networks["full"], [image], content=content)
    np.testing.assert_allclose(tiled["laplacian16"], whole["laplacian16"], rtol=1e-12)
    largest = np.abs(gradient["laplacian16"]).max()
    assert np.abs(of_tiles["laplacian16"] - gradient["laplacian16"]).max() < 1e-12 * largest


def test_images_smaller_than_a_laplacians_square_are_refused():
    config = Config.of(content_losses=["laplacian16"], content_layers=["relu1_1"])
    config = config.but(style_layers=["relu1_1"])
    check_shape(16, 40, config=config)
    with pytest.raises(InputError, match="40x15 px, but laplacian16 averages squares of 16 px"):
        check_shape(15, 40, config=config)


@pytest.mark.parametrize("padding", ["zero", "circular"])
def test_large_styles_in_tiles_have_the_moments_of_the_whole(x64, networks, monkeypatch, padding):
    """The style is processed in tiles although the image is not."""
    config = LOW.but(padding=padding)
    loss = make_loss(config.loss)
    content, style, mask = as_float64([CONTENT[:40, :48], STYLES[0], STYLE_MASKS[0]])

    def moments():
        def style_moments(variables, content, style, mask):
            options = {"weights": loss_weights(config), **guided({"style_masks": [mask]})}
            return loss.targets(variables, content, [style], **options).style

        return jax.jit(style_moments)(networks["full"], content, style, mask)

    whole = moments()
    monkeypatch.setattr(style_term, "STYLE_TILE", 8)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13), moments(), whole
    )


def test_all_losses_are_covered_here():
    names = {name for name, _ in LOW.loss.content_losses + LOW.loss.style_losses}
    assert names | {"laplacian16"} == {*CONTENT_LOSSES, *STYLE_LOSSES}
