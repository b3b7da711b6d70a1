"""The objective with several styles, regions, a preserved region and seamless textures.

The oracle is NumPy in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.guides import numpy_guide
from helpers.images import smooth_image
from helpers.records import guided, stylize
from helpers.traces import count_traces
from jax.test_util import check_grads

from nst_jax.config import Config, deepest, stride
from nst_jax.errors import InputError
from nst_jax.losses import loss_weights, make_loss
from nst_jax.models import features
from nst_jax.transfer import problem
from nst_jax.types import Guidance

pytestmark = pytest.mark.sampled

BASE = Config.of(content_layers=["relu2_2"], style_layers=["relu1_1", "relu2_2"])
SMALL = Config.of(content_layers=["relu2_1"], style_layers=["relu1_1", "relu2_1"])
generator = np.random.default_rng(0)


def as_float64(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def soft_masks(count, height, width):
    return generator.uniform(0.05, 1, size=(count, height, width)).astype(np.float32)


CONTENT, IMAGE, OTHER_IMAGE = (smooth_image(16, 24, seed=seed) for seed in (11, 12, 13))
STYLES = [smooth_image(18, 17, seed=14), smooth_image(12, 27, seed=15)]
THIRD = smooth_image(18, 17, seed=16)
MASKS = soft_masks(2, 16, 24)
STYLE_MASKS = [soft_masks(1, *style.shape[:2])[0] for style in STYLES]
KEEP = soft_masks(1, 16, 24)[0]
KEEP[:5], KEEP[5:8] = 1, 0


COMPUTED = {}  # cache of ``flat_features``


def flat_features(variables, photo, config, *, padding="zero"):
    """Features as arrays of positions by channels, computed once per image."""
    layers = config.loss.content_names + config.loss.style_names
    photo = np.asarray(photo)
    key = (id(variables), photo.shape, photo.tobytes(), layers, config.loss.pooling, padding)
    if key not in COMPUTED:
        COMPUTED[key] = jax.device_get(
            features(variables, photo, layers=layers, pooling=config.loss.pooling, padding=padding)
        )
    return {name: tap.reshape(-1, tap.shape[-1]) for name, tap in COMPUTED[key].items()}


def numpy_style_weights(blend, name, regions, styles):
    factors = blend.get(name) if isinstance(blend, dict) else blend
    if factors is None:
        factors = np.eye(regions) if regions == styles > 1 else np.ones(styles)
    table = np.broadcast_to(np.float64(factors), (regions, styles))
    return np.array([row / row.sum() for row in table])


def numpy_terms(
    config,
    variables,
    image,
    content,
    styles,
    *,
    blend=None,
    content_masks=None,
    style_masks=None,
    region_weights=None,
    preserve=None,
):
    """Content, style and total variation terms by their formulas, from the network's features."""
    image, content = np.float64(image), np.float64(content)
    if preserve is not None:
        alpha = np.float64(preserve)[..., None]
        image = alpha * content + (1 - alpha) * image
    if config.loss.padding == "circular":  # styles wrap around as well
        step = stride(deepest(config.loss.style_names))
        styles, style_masks = (
            [
                x if x is None else x[: x.shape[0] // step * step, : x.shape[1] // step * step]
                for x in given
            ]
            for given in (styles, style_masks or [None] * len(styles))
        )
    # The same padding for all images, because the network responds to a border.
    photo, wanted, *grams = (
        flat_features(variables, x, config, padding=config.loss.padding)
        for x in (image, content, *styles)
    )

    def gram(flat, guide):
        total = np.einsum("n,ni,nj->ij", guide, flat, flat)
        divisor = flat.shape[1] if config.loss.gram_normalization == "chw" else 1
        return total / (guide.sum() * divisor)

    def guide_of(mask, name, flat):
        if mask is None:
            return np.ones(len(flat))
        return numpy_guide(mask, name, config.loss.guides, padding=config.loss.padding).reshape(-1)

    masks = [None] if content_masks is None else content_masks
    weights = np.ones(len(masks)) if region_weights is None else region_weights
    of_styles = style_masks or [None] * len(styles)
    style = 0.0
    for name, factor in config.loss.style_layers:
        style_weights = numpy_style_weights(blend, name, len(masks), len(styles))
        targets = [
            gram(flat[name], guide_of(mask, name, flat[name]))
            for flat, mask in zip(grams, of_styles, strict=True)
        ]
        for mask, weight, row in zip(masks, weights, style_weights, strict=True):
            found = gram(photo[name], guide_of(mask, name, photo[name]))
            if config.loss.style_mixing == "sum":
                loss = sum(b * np.mean((found - a) ** 2) for b, a in zip(row, targets, strict=True))
            else:
                mixed = sum(b * a for b, a in zip(row, targets, strict=True))
                loss = np.mean((found - mixed) ** 2)
            style += factor * weight * loss
    difference = sum(
        factor * np.mean((photo[name] - wanted[name]) ** 2)
        for name, factor in config.loss.content_layers
    )
    z = config.loss.pixel_range * np.float64(image)
    mode = "wrap" if config.loss.padding == "circular" else "edge"
    below = np.pad(z, ((0, 1), (0, 1), (0, 0)), mode=mode)
    steps = np.stack([below[1:, :-1] - z, below[:-1, 1:] - z])
    variation = (np.abs(steps) ** config.loss.tv_order / config.loss.tv_order).sum()
    return (
        config.loss.content_weight * config.loss.mse_factor * difference,
        config.loss.style_weight * config.loss.mse_factor * style,
        config.loss.tv_weight * variation,
    )


def terms_of(config, variables, image, content, styles, **given):
    """Loss and terms without jit: the operations that are compiled serve all tests."""
    loss = make_loss(config.loss)
    targets = targets_of(config, variables, content, styles, **given)
    return loss.head(loss.statistics(variables, jnp.asarray(image), targets), targets)


def targets_of(config, variables, content, styles, **given):
    """Targets of images and masks in float64, as ``check_masks`` returns them."""
    given = {
        name: as_float64(value) if "mask" in name or name == "preserve" else value
        for name, value in given.items()
    }
    return make_loss(config.loss).targets(
        variables, *as_float64((content, styles)), weights=loss_weights(config), **guided(given)
    )


FULL = {
    "blend": {
        "relu1_1": (1.0, 2.0, 3.0),
        "relu3_1": [[1, 0, 1], [0.5, 2, 0]],
        "relu2_2": (0, 1, 0.1),
    },
    "content_masks": MASKS,
    "style_masks": [STYLE_MASKS[0], None, soft_masks(1, 18, 17)[0]],
    "region_weights": (0.5, 3.0),
    "preserve": KEEP,
}


@pytest.mark.parametrize(
    "network, mixing, normalization, guides, padding, order",
    [
        ("full", "average", "hw", "simple", "zero", 1),
        ("full", "sum", "chw", "inside", "circular", 2),
        ("slim", "average", "chw", "all", "zero", 1),
        ("slim", "sum", "hw", "inside", "circular", 2),
    ],
)
@pytest.mark.slow
def test_terms_equal_numpy(x64, networks, network, mixing, normalization, guides, padding, order):
    config = Config.of(
        content_layers={"relu2_2": 0.3, "relu3_1": 2},
        style_layers={"relu1_1": 1, "relu2_2": 0.5, "relu3_1": 3},
        style_mixing=mixing,
        gram_normalization=normalization,
        guides=guides,
        padding=padding,
        tv_order=order,
        pooling="average" if normalization == "hw" else "max",
        mse_factor=0.25,
    )
    variables = networks[network]
    photos, styles = as_float64(((IMAGE, CONTENT), [*STYLES, THIRD]))
    given = dict(FULL)
    if guides == "inside":
        given["blend"] = [[1, 0, 1], [0.5, 2, 0]]
    value, terms = terms_of(config, variables, *photos, styles, **given)
    expected = numpy_terms(config, variables, *photos, styles, **given)
    assert value.dtype == np.float64 and min(expected) > 0
    np.testing.assert_allclose(terms, expected, rtol=1e-9)
    np.testing.assert_allclose(value, sum(expected), rtol=1e-9)


class TestInvariances:
    """Equivalent descriptions give equal losses, in float64."""

    @pytest.fixture(autouse=True)
    def _x64(self, x64, networks):
        self.variables = networks["full"]

    def terms(self, config=BASE, *, image=IMAGE, content=CONTENT, styles=STYLES, **given):
        photos = as_float64((image, content, styles))
        return terms_of(config, self.variables, *photos, **given)

    def same(self, first, second, rtol=1e-12):
        for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            np.testing.assert_allclose(one, other, rtol=rtol)

    ONE, MASKED = {"styles": STYLES[:1]}, {"styles": STYLES[:1], "content_masks": MASKS}
    FULL_MASKS = {
        "content_masks": np.ones((1, 16, 24)),
        "style_masks": [np.ones(style.shape[:2]) for style in STYLES],
    }
    EQUAL = {
        "one full mask is no mask": (FULL_MASKS | {"region_weights": (1,)}, {}),
        "copies of a style are that style": (
            ONE | {"styles": STYLES[:1] * 2, "blend": (0.1, 3)},
            ONE,
        ),
        "copies of a masked style are that style": (
            MASKED | {"styles": STYLES[:1] * 2, "style_masks": STYLE_MASKS[:1] * 2},
            MASKED | {"style_masks": STYLE_MASKS[:1]},
        ),
        "a style of weight 0 is left out": ({"blend": (2, 0)}, ONE),
        "a region of weight 0 is left out": (
            {"content_masks": MASKS, "region_weights": (3, 0), "blend": (1, 2)},
            {"content_masks": MASKS[:1], "region_weights": (3,), "blend": (1, 2)},
        ),
        "style weights are normalised": (
            {"content_masks": MASKS, "blend": [[10, 30], [0.2, 0.2]]},
            {"content_masks": MASKS, "blend": [[1, 3], [1, 1]]},
        ),
        "copies of a region share its weight": (
            {"content_masks": MASKS[[0, 0]], "region_weights": (0.3, 0.7), "blend": (1, 1)},
            {"content_masks": MASKS[:1]},
        ),
    }

    @pytest.mark.slow
    @pytest.mark.parametrize("mixing", ["average", "sum"])
    def test_equal_losses(self, mixing):
        config = BASE.but(style_mixing=mixing)
        for name, (first, second) in self.EQUAL.items():
            found, expected = self.terms(config, **first), self.terms(config, **second)
            np.testing.assert_allclose(found[1], expected[1], rtol=1e-12, err_msg=name)

    def terms_of_array(self, config, image, **given):
        given = {"content_masks": MASKS, "blend": [[1, 3], [2, 0.5]]} | given
        photos = as_float64((CONTENT, STYLES))
        return terms_of(config, self.variables, image, *photos, **given)[0]

    @pytest.mark.slow
    def test_the_preserved_region_has_no_gradient(self):
        def value(image):
            return self.terms_of_array(BASE, image, preserve=KEEP)

        image, content = jnp.asarray(IMAGE, jnp.float64), jnp.asarray(CONTENT, jnp.float64)
        found, gradient = jax.value_and_grad(value)(image)
        assert np.abs(gradient[:5]).max() == 0 and np.abs(gradient[5:8]).min(-1).max() > 0
        assert np.abs(gradient).max(-1)[5:].min() > 0
        alpha = np.float64(KEEP)[..., None]
        composed = alpha * content + (1 - alpha) * image
        expected, whole = jax.value_and_grad(lambda x: self.terms_of_array(BASE, x))(composed)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        atol = 1e-12 * np.abs(whole).max()
        np.testing.assert_allclose(gradient, (1 - alpha) * whole, atol=atol)

    @pytest.mark.slow
    def test_a_seamless_texture_has_no_border(self):
        """The loss is invariant to shifts by multiples of the stride, 4 at relu3_1."""
        shift = (12, 20)
        config = BASE.but(content_layers=(), style_layers=["relu1_1", "relu3_1"])
        config = config.but(padding="circular")
        given = {"content_masks": MASKS, "preserve": KEEP}

        def rolled(photo, axes):
            return np.roll(photo, shift, axes)

        moved = {"content_masks": rolled(MASKS, (1, 2)), "preserve": rolled(KEEP, (0, 1))}
        photos = {"image": rolled(IMAGE, (0, 1)), "content": rolled(CONTENT, (0, 1))}
        for guides in ("simple", "inside"):
            config = config.but(guides=guides)
            self.same(self.terms(config, **given), self.terms(config, **photos, **moved))
        plain = config.but(padding="zero")
        values = [self.terms(plain)[0], self.terms(plain, **photos)[0]]
        assert abs(values[0] - values[1]) > 1e-5 * values[0]


def test_gradient_of_the_loss_with_every_control(x64, networks):
    """To second order, in reverse mode because the convolution has a custom rule."""
    config = SMALL.but(pooling="average", padding="circular", tv_order=2, style_mixing="sum")
    image, content, masks, keep = as_float64(
        (IMAGE[:8, :8], CONTENT[:8, :8], MASKS[:, :8, :8], KEEP[4:12, :8])
    )
    styles = as_float64([style[:8, :8] for style in STYLES])
    blend = {"relu2_1": [[1.0, 3.0], [2.0, 0.5]]}

    @jax.jit
    def value(image, variables, content, styles, masks, keep):
        given = {"content_masks": masks, "preserve": keep, "style_masks": [masks[0], None]}
        loss = make_loss(config.loss)
        targets = loss.targets(
            variables,
            content,
            styles,
            weights=loss_weights(config),
            guidance=Guidance(blend=blend, **given),
        )
        return loss.head(loss.statistics(variables, image, targets), targets)[0]

    rest = (networks["full"], content, styles, masks, keep)
    scale = 1 / value(image, *rest)
    check_grads(
        lambda image: scale * value(image, *rest),
        (image,),
        order=2,
        modes=("rev",),
        atol=1e-5,
        rtol=1e-5,
        eps=1e-7,
    )


TWO = {"styles": STYLES}
REGIONS = {"given": {"content_masks": MASKS}}
CONTROLS = {
    "blend": {**TWO, "given": {"blend": (1, 3)}},
    "sum": {**TWO, "config": {"style_mixing": "sum"}},
    "blend by layer": {**TWO, "given": {"blend": {"relu2_2": (3, 1)}}},
    "masks": REGIONS,
    "inside": {**REGIONS, "config": {"guides": "inside"}},
    "all": {**REGIONS, "config": {"guides": "all"}},
    "style masks": {"given": {"style_masks": STYLE_MASKS}},
    "region weights": {"given": {"content_masks": MASKS, "region_weights": (0.5, 2.0)}},
    "preserve": {"given": {"preserve": KEEP}},
    "circular": {"config": {"padding": "circular"}},
    "average pooling": {"config": {"pooling": "average"}},
    "layer weights": {"config": {"style_layers": {"relu1_1": 0.3, "relu2_2": 2.0}}},
}
PAIRS = [
    ("sum", "style masks"),
    ("blend", "masks"),
    ("blend by layer", "preserve"),
    ("inside", "circular"),
    ("all", "average pooling"),
    ("region weights", "layer weights"),
]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(PAIRS)), ids=[" + ".join(pair) for pair in PAIRS])
def test_pairs_of_controls(x64, networks, index):
    """Losses equal NumPy's, and a batch equals its elements; the networks alternate."""
    parts = [CONTROLS[name] for name in PAIRS[index]]
    config, given, styles = BASE, {}, STYLES[:1]
    for part in parts:
        config = config.but(**part.get("config", {}))
        given |= part.get("given", {})
        styles = part.get("styles", styles)
    if "style_masks" in given:
        given["style_masks"] = given["style_masks"][: len(styles)]
    variables = networks[("full", "slim")[index % 2]]
    content, styles, images = as_float64((CONTENT, styles, np.stack([IMAGE, OTHER_IMAGE])))
    targets = targets_of(config, variables, content, styles, **given)
    loss = make_loss(config.loss)

    def value(image):
        return loss.head(loss.statistics(variables, image, targets), targets)

    value_and_grad = jax.value_and_grad(value, has_aux=True)
    (values, terms), gradients = jax.vmap(value_and_grad)(images)
    (single, _), gradient = value_and_grad(images[0])
    np.testing.assert_allclose(values[0], single, rtol=1e-10)
    atol = 1e-10 * np.abs(gradient).max()
    np.testing.assert_allclose(gradients[0], gradient, rtol=0, atol=atol)
    assert np.abs(gradients[1] - gradient).max() > 1e6 * atol
    expected = numpy_terms(config, variables, images[1], content, styles, **given)
    np.testing.assert_allclose([term[1] for term in terms], expected, rtol=1e-9)


RUN = SMALL.but(optimizer="adam", steps=3, init="noise", noise_scale=0.1)
YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def finished(image, color):
    """The result of an optimised image: the content's chroma and preserved region put back."""
    image, content, alpha = np.float64(image), np.float64(CONTENT), np.float64(KEEP)[..., None]
    if color in ("luminance", "keep-yiq"):
        yiq = np.concatenate([(image @ YIQ.T)[..., :1], (content @ YIQ.T)[..., 1:]], -1)
        image = yiq @ np.linalg.inv(YIQ).T
    return alpha * content + (1 - alpha) * image


class TestStylize:
    @pytest.mark.parametrize("color", ["luminance", "match-histogram"])
    @pytest.mark.slow
    def test_regions_and_a_preserved_region_in_colour_modes(self, variables, color):
        shown = []
        result = stylize(
            variables,
            CONTENT,
            STYLES,
            config=RUN.but(color=color),
            content_masks=MASKS,
            style_masks=[STYLE_MASKS[0], None],
            region_weights=(1, 2),
            preserve=KEEP,
            callback=lambda progress: shown.append(np.asarray(progress.image)),
            every=1,
        )
        assert result.status == "done" and len(shown) == 3
        for image in (np.asarray(result.image), *shown):
            assert image.shape == CONTENT.shape and np.isfinite(image).all()
            np.testing.assert_array_equal(image[:5], CONTENT[:5])
            assert np.abs(image - CONTENT)[5:8].mean() > 0.01
        best, last = result.state.best_image, result.state.image
        np.testing.assert_allclose(result.image, finished(best, color), atol=1e-6)
        np.testing.assert_allclose(shown[-1], finished(last, color), atol=1e-6)
        if color == "luminance":
            chroma, expected = ((np.float64(x) @ YIQ.T)[..., 1:] for x in (result.image, CONTENT))
            np.testing.assert_allclose(chroma, expected, atol=1e-5)

    @pytest.mark.slow
    def test_the_preserved_region_is_exact_in_frequencies(self, variables):
        """Although the optimiser's coordinates are not pixels, so that its pixels move as well."""
        config = RUN.but(preconditioner="spectral")
        result = stylize(variables, CONTENT, STYLES[0], config=config, preserve=KEEP)
        assert np.abs(result.state.image - CONTENT)[:5].max() > 1e-3
        np.testing.assert_array_equal(result.image[:5], CONTENT[:5])

    def test_a_texture_ignores_the_content(self, variables):
        config = RUN.but(content_layers=(), padding="circular")
        results = [
            stylize(variables, content, STYLES[0], config=config)
            for content in (CONTENT, np.ones_like(CONTENT))
        ]
        np.testing.assert_array_equal(results[0].image, results[1].image)
        np.testing.assert_array_equal(results[0].history.loss, results[1].history.loss)
        assert results[0].loss < results[0].history.loss[0]

    def test_a_reconstruction_needs_no_style(self, variables):
        config = RUN.but(style_layers=(), tv_weight=0.0, steps=20)
        result = stylize(variables, CONTENT, [], config=config, preserve=KEEP)
        assert result.loss < 0.5 * result.history.loss[0]
        assert (result.history.terms.style == 0).all()
        np.testing.assert_array_equal(result.image[:5], CONTENT[:5])

    def test_other_numbers_do_not_recompile(self, variables, monkeypatch):
        traces = count_traces(monkeypatch)
        config = RUN.but(guides="inside", steps=1)
        found, targets_compiled = [], []
        blends = [[1.0, 3.0], [1.0, 1.0]], [[0.5, 0.1], [0.0, 9.0]]
        for blend, weights, keep in [
            (blends[0], (1.0, 2.0), KEEP),
            (blends[1], (1.0, 2.0), KEEP),
            (blends[1], (3.0, 0.0), np.flip(KEEP)),
        ]:
            given = dict(content_masks=MASKS, blend=blend, region_weights=weights, preserve=keep)
            found.append(stylize(variables, CONTENT, STYLES, config=config, **given).loss)
            targets_compiled.append(problem.compute_targets._cache_size())
        assert len(traces) == 1 and len(set(targets_compiled)) == 1
        assert len(set(found)) == 3

    @pytest.mark.parametrize(
        "given, message",
        [
            ({"blend": {"relu5_1": (1, 1)}}, "layer relu5_1, which is no style layer"),
            ({"content_masks": np.ones((3, 16, 24))}, "2 styles for 3 regions"),
            ({"style_masks": [None]}, "1 style masks for 2 styles"),
            ({"region_weights": (1,)}, "no regions"),
            ({"content_masks": MASKS, "style_layers": ()}, "no effect without style layers"),
            ({"preserve": np.ones((16, 24))}, "nothing is left to stylize"),
            (
                {"preserve": np.eye(16, 24) == 0, "guides": "inside"},
                "leaves nothing in layer relu1_1",
            ),
            (
                {"content": CONTENT[:, :-1], "padding": "circular"},
                "multiples of 2 px: .*crop it",
            ),
        ],
    )
    def test_refusals(self, variables, given, message):
        given = dict(given)
        names = [name for name in given if name in ("guides", "padding", "style_layers")]
        config = RUN.but(**{name: given.pop(name) for name in names})
        content = given.pop("content", CONTENT)
        with pytest.raises(InputError, match=message):
            stylize(variables, content, STYLES, config=config, **given)
