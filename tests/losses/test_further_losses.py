"""Every loss of the style and content terms with everything that it may be combined with.

Losses are taken apart by their factors, which are traced: one program gives the values and
gradients of all of them.
"""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import smooth_image
from helpers.masks import as_float64, masks_of
from helpers.records import guided

from nst_jax.config import Config, to_flat
from nst_jax.config.factors import CONTENT_LOSSES, STYLE_LOSSES
from nst_jax.errors import InputError
from nst_jax.losses import layer_guides, loss_weights, make_loss, style_term
from nst_jax.losses.histogram import BINS, QUANTILES
from nst_jax.models import features
from nst_jax.transfer.problem import check_shape

pytestmark = pytest.mark.sampled

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
SIZE = (42, 51)  # no multiples of the stride 4
CONTENT, IMAGE, OTHER = (smooth_image(*SIZE, seed=seed) for seed in (1, 2, 3))
STYLES = [smooth_image(45, 38, seed=4), smooth_image(34, 51, seed=5)]
MASKS = masks_of(*SIZE, 2)
STYLE_MASKS = [masks_of(45, 38, 1)[0], None]
REGIONS = {"content_masks": MASKS, "style_masks": STYLE_MASKS, "region_weights": (0.5, 3.0)}
MODES = ("mask", "styles", "vmap", "tile", "slim")


def apart(config, statistics, targets, loss):
    """The values of all losses by themselves, ``{name: scalar}``."""

    def with_factors(term, names):
        def value(factors):
            one = {name: factors[i] for i, name in enumerate(names)}
            weights = targets.weights._replace(**{f"{term}_losses": one})
            return getattr(loss.head(statistics, targets._replace(weights=weights))[1], term)

        return dict(zip(names, jax.vmap(value)(jnp.eye(len(names))), strict=True))

    found = {}
    for term in ("content", "style"):
        found |= with_factors(term, [name for name, _ in to_flat(config)[f"{term}_losses"]])
    return found


def evaluate(config, variables, images, *, styles=STYLES[:1], content=CONTENT, by="alone", **given):
    """Values and gradients of every loss for each image, ``{name: [B]}``, ``{name: [B, ...]}``.

    Args:
      by: ``"vmap"``, ``"map"`` for one image after another, or ``"values"`` for these alone.
    """
    loss = make_loss(config.loss)

    @jax.jit
    def everything(variables, images, content, styles, given):
        targets = loss.targets(
            variables, content, styles, weights=loss_weights(config), **guided(given)
        )

        def values(image):
            return apart(config, loss.statistics(variables, image, targets), targets, loss)

        def both(image):
            return values(image), jax.jacrev(values)(image)

        if by == "values":
            return jax.lax.map(values, images), None
        return jax.vmap(both)(images) if by == "vmap" else jax.lax.map(both, images)

    given = as_float64(given) if given else {}
    images, styles = as_float64(np.stack(images)), as_float64(list(styles))
    return everything(variables, images, as_float64(content), styles, given)


def numpy_histogram(flat, mask, low, high):
    """Counts ``[C, BINS]``, by hand."""
    counts = np.zeros((flat.shape[1], BINS))
    for c in range(flat.shape[1]):
        place = np.clip((flat[:, c] - low[c]) / max(high[c] - low[c], 1e-300), 0, 1) * BINS
        np.add.at(counts[c], np.minimum(place.astype(int), BINS - 1), mask)
    return counts


def numpy_cumulative(counts):
    sums = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(counts, axis=1)], axis=1)
    return sums / sums[:, -1:]


class Oracle:
    """All losses in NumPy from features, float64."""

    def __init__(self, variables, content, styles, *, masks, style_masks, weights, blend, mixing):
        self.variables, self.content, self.mixing = variables, content, mixing
        self.masks, self.weights, self.blend = masks, weights, blend
        self.styles = [
            self.flat(style, None if mask is None else mask)
            for style, mask in zip(styles, style_masks, strict=True)
        ]

    def features(self, image):
        layers = tuple({**CONTENT_LAYERS, **STYLE_LAYERS})
        taps = features(self.variables, as_float64(image), layers=layers)
        return {name: np.asarray(tap) for name, tap in taps.items()}

    def flat(self, image, mask):
        """``{layer: (features [n, C], mask [n])}``."""
        mask = np.ones(image.shape[:2]) if mask is None else mask
        guides = layer_guides(as_float64(mask), layers=tuple(STYLE_LAYERS))
        taps = self.features(image)
        return {
            name: (taps[name].reshape(-1, taps[name].shape[-1]), np.ravel(guides[name]))
            for name in STYLE_LAYERS
        }

    @staticmethod
    def moments(flat, mask):
        share = mask / mask.sum()
        return share @ flat, (flat * share[:, None]).T @ flat

    @staticmethod
    def distances(found, wanted):
        (mean, gram), (goal, target) = found, wanted
        spread, wanted_spread = gram - np.outer(mean, mean), target - np.outer(goal, goal)
        deviations = [np.sqrt(np.diag(s).clip(0) + 1e-5) for s in (spread, wanted_spread)]
        eps = 1e-4 * np.eye(len(mean))
        a, b = spread + eps, wanted_spread + eps
        roots = [np.linalg.eigh(matrix) for matrix in (a, b)]
        roots = [(vectors * np.sqrt(values)) @ vectors.T for values, vectors in roots]
        nuclear = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
        together = np.trace(a + b) - 2 * nuclear
        means = np.mean((mean - goal) ** 2)
        return {
            "gram": np.mean((gram - target) ** 2),
            "covariance": np.mean((spread - wanted_spread) ** 2),
            "mean-std": means + np.mean((deviations[0] - deviations[1]) ** 2),
            "wasserstein": means + together / len(mean),
        }

    def histogram_losses(self, name, flat, mask, shares):
        """Of a region; shares of the styles."""
        tables = []
        for style_flat, style_mask in (style[name] for style in self.styles):
            kept = style_flat[style_mask > 0]
            low, high = kept.min(0), kept.max(0)
            share = numpy_cumulative(numpy_histogram(style_flat, style_mask, low, high))
            steps = np.linspace(0, 1, QUANTILES + 1)
            edges = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, BINS + 1)
            tables.append(np.stack([np.interp(steps, s, e) for s, e in zip(share, edges)]))
        low, high = np.min(tables, 0)[:, 0], np.max(tables, 0)[:, -1]
        share = numpy_cumulative(numpy_histogram(flat, mask, low, high))

        def unmatched(table):
            total = 0.0
            for c in range(flat.shape[1]):
                steps = np.linspace(0, 1, QUANTILES + 1)
                at_edges = np.interp(share[c], steps, table[c])
                edges = np.linspace(low[c], high[c], BINS + 1)
                goal = np.interp(flat[:, c], edges, at_edges)
                total += np.sum(mask * (flat[:, c] - goal) ** 2)
            return total / flat.shape[1] / mask.sum()

        if self.mixing == "average":
            return unmatched(np.tensordot(shares, tables, 1))
        return sum(share * unmatched(table) for share, table in zip(shares, tables, strict=True))

    def style_losses(self, image):
        total = dict.fromkeys(STYLE_LOSSES, 0.0)
        for mask, weight, shares in zip(self.masks, self.weights, self.blend, strict=True):
            regions = self.flat(image, mask)
            for name, factor in STYLE_LAYERS.items():
                factor, found = factor * weight, self.moments(*regions[name])
                each = [self.moments(*style[name]) for style in self.styles]
                if self.mixing == "average":
                    mixed = [sum(b * x[i] for b, x in zip(shares, each)) for i in (0, 1)]
                    losses = self.distances(found, mixed)
                else:
                    apart = [self.distances(found, x) for x in each]
                    losses = {k: sum(b * x[k] for b, x in zip(shares, apart)) for k in apart[0]}
                if name in MATCHED:
                    losses["histogram"] = self.histogram_losses(name, *regions[name], shares)
                for key, value in losses.items():
                    total[key] += factor * value
        return total

    def content_losses(self, image):
        taps, wanted = self.features(image), self.features(self.content)
        total = {"features": 0.0, "self-similarity": 0.0}
        for name, factor in CONTENT_LAYERS.items():
            total["features"] += factor * np.mean((taps[name] - wanted[name]) ** 2)
            matrices = []
            for tap in (taps[name], wanted[name]):
                places = []
                for length in tap.shape[:2]:
                    count = min(32, length)
                    places.append([int((i + 0.5) * length / count) for i in range(count)])
                rows = np.stack([tap[i, j] for i in places[0] for j in places[1]])
                lengths = np.linalg.norm(rows, axis=1, keepdims=True)
                unit = rows / np.where(lengths > 0, lengths, 1)
                distance = 1 - unit @ unit.T
                distance[distance < 1e-14] = 0
                matrices.append(distance / distance.sum(0, keepdims=True))
            total["self-similarity"] += factor * np.abs(matrices[0] - matrices[1]).sum(0).mean()
        grey = [self.pooled_grey(photo) for photo in (image, self.content)]
        total["laplacian4"] = np.mean((self.numpy_laplacian(grey[0] - grey[1])) ** 2)
        return total

    @staticmethod
    def pooled_grey(image):
        rows, columns = image.shape[0] // 4, image.shape[1] // 4
        squares = 255 * np.asarray(image, np.float64)[: 4 * rows, : 4 * columns].sum(-1)
        return squares.reshape(rows, 4, columns, 4).mean((1, 3))

    @staticmethod
    def numpy_laplacian(x):
        around = np.pad(x, 1, mode="edge")
        return sum(np.roll(around, s, a)[1:-1, 1:-1] for s in (1, -1) for a in (0, 1)) - 4 * x


def setting(modes, mixing):
    """What the modes mean for ``evaluate`` and for the oracle."""
    config = LOW.but(style_mixing=mixing, tile=12 if "tile" in modes else "off")
    masked, several = "mask" in modes, "styles" in modes
    styles = STYLES if several else STYLES[:1]
    given = dict(REGIONS, style_masks=STYLE_MASKS[: len(styles)]) if masked else {}
    if masked:
        given["region_weights"] = np.array(REGIONS["region_weights"])
    blend = np.ones((2 if masked else 1, 1))
    if several:
        blend = np.array([[0.25, 0.75], [0.8, 0.2]][: len(blend)])
        given["blend"] = blend
    oracle = {
        "masks": MASKS if masked else [None],
        "weights": REGIONS["region_weights"] if masked else [1.0],
        "style_masks": STYLE_MASKS[: len(styles)] if masked else [None] * len(styles),
        "blend": blend,
        "mixing": mixing,
    }
    return config, styles, given, oracle


PAIRS = [*combinations(MODES, 2)]
SOME = {  # every mode with two others
    *(("mask", "tile"), ("styles", "tile"), ("styles", "vmap")),
    *(("vmap", "slim"), ("mask", "slim")),
}


@pytest.mark.parametrize(
    "modes",
    [
        pytest.param(pair, id="-".join(pair), marks=[] if pair in SOME else pytest.mark.campaign)
        for pair in PAIRS
    ],
)
@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_every_pair_has_numpy_s_values_and_the_gradients_of_the_plain_way(networks, modes):
    mixing = "sum" if PAIRS.index(modes) % 2 else "average"
    config, styles, given, options = setting(modes, mixing)
    variables = networks["slim" if "slim" in modes else "full"]
    images = [IMAGE, OTHER] if "vmap" in modes else [IMAGE]
    another_way = {"vmap", "tile"} & set(modes)
    by = "vmap" if "vmap" in modes else "map" if another_way else "values"
    values, gradients = evaluate(config, variables, images, styles=styles, by=by, **given)
    oracle = Oracle(variables, CONTENT, styles, **options)
    for index, image in enumerate(images):
        expected = oracle.style_losses(image) | oracle.content_losses(image)
        assert set(expected) == set(values) and min(expected.values()) > 0
        for name, value in expected.items():
            rtol = 1e-8 if name == "wasserstein" else 1e-10
            np.testing.assert_allclose(values[name][index], value, rtol=rtol, err_msg=name)
    if not another_way:
        return
    plain = config.but(tile="off")
    _, wanted = evaluate(plain, variables, images, styles=styles, by="map", **given)
    for name, gradient in wanted.items():
        largest = np.abs(gradient).max()
        assert largest > 0
        # The distance's gradient of singular covariances is as exact as their inverse.
        bound = (1e-7 if name == "wasserstein" else 1e-11) * largest
        assert np.abs(gradients[name] - gradient).max() < bound, name


@pytest.mark.slow
def test_gradients_are_finite_differences(x64, networks):
    """But for histograms, whose gradient is not that of the value."""
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
    """Their squares are larger than the stride of any layer that is asked for."""
    config = Config.of(
        content_layers={"relu1_1": 1}, style_layers=["relu1_1"], content_losses=["laplacian16"]
    )
    options = {
        "content": smooth_image(230, 250, seed=6),
        "styles": STYLES[:1],
    }
    image = smooth_image(230, 250, seed=7)
    whole, gradient = evaluate(config, networks["full"], [image], **options)
    tiled, of_tiles = evaluate(config.but(tile=20), networks["full"], [image], **options)
    np.testing.assert_allclose(tiled["laplacian16"], whole["laplacian16"], rtol=1e-12)
    largest = np.abs(gradient["laplacian16"]).max()
    assert np.abs(of_tiles["laplacian16"] - gradient["laplacian16"]).max() < 1e-12 * largest


def test_images_without_a_square_are_refused():
    config = Config.of(
        content_layers={"relu1_1": 1}, style_layers=["relu1_1"], content_losses=["laplacian16"]
    )
    check_shape(16, 40, config=config)
    with pytest.raises(InputError, match="40x15 px, but laplacian16 averages squares of 16 px"):
        check_shape(15, 40, config=config)


@pytest.mark.parametrize("mask", [None, STYLE_MASKS[0]], ids=["whole", "masked"])
def test_large_styles_are_taken_in_tiles_with_the_same_statistics(x64, networks, monkeypatch, mask):
    config = LOW
    given = {} if mask is None else {"style_masks": [as_float64(mask)]}

    def moments():
        loss, style = make_loss(config.loss), as_float64(STYLES[0])
        return jax.jit(
            lambda variables, style, given: (
                loss.targets(
                    variables, style, [style], weights=loss_weights(config), **guided(given)
                ).style
            )
        )(networks["full"], style, given)

    whole = moments()
    monkeypatch.setattr(style_term, "STYLE_TILE", 8)
    tiled = moments()
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13), whole, tiled
    )


def test_all_losses_have_been_here():
    names = {name for name, _ in LOW.loss.content_losses + LOW.loss.style_losses}
    assert names | {"laplacian16"} == {*CONTENT_LOSSES, *STYLE_LOSSES}
