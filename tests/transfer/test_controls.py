"""The objective with several styles, regions, kept parts and tiling, against NumPy in float64."""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import smooth_image
from helpers.guides import numpy_guide
from helpers.records import guided, stylize
from helpers.traces import count_traces
from jax.test_util import check_grads

from nst_jax.color import MODES
from nst_jax.config import Config, deepest, stride
from nst_jax.errors import InputError
from nst_jax.losses import gram as losses
from nst_jax.losses import loss_weights, make_loss, mixed_losses, total_variation
from nst_jax.models import ProjectedFeatures, features
from nst_jax.transfer import problem
from nst_jax.types import Guidance

pytestmark = pytest.mark.sampled

BASE = Config.of(content_layers=["relu2_2"], style_layers=["relu1_1", "relu2_2"])
SMALL = Config.of(content_layers=["relu2_1"], style_layers=["relu1_1", "relu2_1"])
generator = np.random.default_rng(0)


def as_float64(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


@pytest.fixture(scope="session")
def networks(variables, slim_variables):
    """Both in float64; tests with them ask for ``x64``."""
    with jax.enable_x64(True):
        return {"full": as_float64(variables), "slim": as_float64(slim_variables)}


def soft_masks(count, height, width):
    return generator.uniform(0.05, 1, size=(count, height, width)).astype(np.float32)


CONTENT, IMAGE, OTHER_IMAGE = (smooth_image(16, 24, seed=seed) for seed in (11, 12, 13))
STYLES = [smooth_image(18, 17, seed=14), smooth_image(12, 27, seed=15)]
THIRD = smooth_image(18, 17, seed=16)
MASKS = soft_masks(2, 16, 24)
STYLE_MASKS = [soft_masks(1, *style.shape[:2])[0] for style in STYLES]
KEEP = soft_masks(1, 16, 24)[0]
KEEP[:5], KEEP[5:8] = 1, 0


COMPUTED = {}


def flat_features(variables, photo, config, *, padding="zero"):
    """Features as arrays of positions by channels, computed once for each image."""
    layers = config.loss.content_names + config.loss.style_names
    photo = np.asarray(photo)
    key = (id(variables), photo.shape, photo.tobytes(), layers, config.loss.pooling, padding)
    if key not in COMPUTED:
        COMPUTED[key] = jax.device_get(
            features(variables, photo, layers=layers, pooling=config.loss.pooling, padding=padding)
        )
    return {name: tap.reshape(-1, tap.shape[-1]) for name, tap in COMPUTED[key].items()}


def numpy_shares(blend, name, regions, styles):
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
    """Content, style and total variation as the documents have them; features are the network's."""
    image, content = np.float64(image), np.float64(content)
    if preserve is not None:
        alpha = np.float64(preserve)[..., None]
        image = alpha * content + (1 - alpha) * image
    if config.loss.padding == "circular":  # opposite borders of styles meet, as those of the image
        step = stride(deepest(config.loss.style_names))
        styles, style_masks = (
            [
                x if x is None else x[: x.shape[0] // step * step, : x.shape[1] // step * step]
                for x in given
            ]
            for given in (styles, style_masks or [None] * len(styles))
        )
    # All images with the same padding: the network answers to a border too.
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
        shares = numpy_shares(blend, name, len(masks), len(styles))
        targets = [
            gram(flat[name], guide_of(mask, name, flat[name]))
            for flat, mask in zip(grams, of_styles, strict=True)
        ]
        for mask, weight, row in zip(masks, weights, shares, strict=True):
            own = gram(photo[name], guide_of(mask, name, photo[name]))
            if config.loss.style_mixing == "sum":
                loss = sum(b * np.mean((own - a) ** 2) for b, a in zip(row, targets, strict=True))
            else:
                mixed = sum(b * a for b, a in zip(row, targets, strict=True))
                loss = np.mean((own - mixed) ** 2)
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
    """Loss and terms, operation by operation: the tests share what is compiled."""
    loss = make_loss(config.loss)
    targets = targets_of(config, variables, content, styles, **given)
    return loss.head(loss.statistics(variables, jnp.asarray(image), targets), targets)


def targets_of(config, variables, content, styles, **given):
    """Images and masks in float64, as ``check_masks`` gives them."""
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
    "network, mixing, normalization",
    [
        ("full", "average", "hw"),
        ("full", "sum", "chw"),
        ("slim", "average", "chw"),
        ("slim", "sum", "hw"),
    ],
)
@pytest.mark.parametrize(
    "guides, padding, order", [("simple", "zero", 1), ("inside", "circular", 2), ("all", "zero", 1)]
)
@pytest.mark.slow
def test_every_term_has_its_value(
    x64, networks, network, mixing, normalization, guides, padding, order
):
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
    """Other descriptions of the same thing; float64 in numbers, tiny in size."""

    @pytest.fixture(autouse=True)
    def _x64(self, x64, networks):
        self.variables = networks["full"]

    def terms(self, config=BASE, *, image=IMAGE, content=CONTENT, styles=STYLES, **given):
        photos = as_float64((image, content, styles))
        return terms_of(config, self.variables, *photos, **given)

    def same(self, first, second, rtol=1e-12):
        for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            np.testing.assert_allclose(one, other, rtol=rtol)

    @pytest.mark.parametrize("guides", ["simple", "inside", "all"])
    def test_one_full_mask_is_no_mask(self, guides):
        config = BASE.but(guides=guides)
        masks = [np.ones(style.shape[:2]) for style in STYLES]
        full = self.terms(
            config, content_masks=np.ones((1, 16, 24)), style_masks=masks, region_weights=(1,)
        )
        self.same(full, self.terms())

    @pytest.mark.parametrize("mixing", ["average", "sum"])
    def test_copies_of_a_style_are_that_style(self, mixing):
        config = BASE.but(style_mixing=mixing)
        one = self.terms(config, styles=STYLES[:1])
        self.same(self.terms(config, styles=STYLES[:1] * 2, blend=(0.1, 3)), one)
        masked = {"content_masks": MASKS, "style_masks": STYLE_MASKS[:1]}
        one = self.terms(config, styles=STYLES[:1], **masked)
        masked["style_masks"] = STYLE_MASKS[:1] * 2
        self.same(self.terms(config, styles=STYLES[:1] * 2, **masked), one)

    def test_a_factor_of_zero_leaves_a_style_out(self):
        self.same(self.terms(blend=(2, 0)), self.terms(styles=STYLES[:1]))

    def test_a_region_of_weight_zero_is_left_out(self):
        two = self.terms(content_masks=MASKS, region_weights=(3, 0), blend=(1, 2))
        one = self.terms(content_masks=MASKS[:1], region_weights=(3,), blend=(1, 2))
        self.same(two, one)

    def test_the_scale_of_blend_factors_is_free(self):
        masks = {"content_masks": MASKS}
        same_rows = self.terms(**masks, blend=[[10, 30], [0.2, 0.2]])
        self.same(self.terms(**masks, blend=[[1, 3], [1, 1]]), same_rows)

    def test_two_copies_of_a_region_share_its_weight(self):
        twice = self.terms(content_masks=MASKS[[0, 0]], region_weights=(0.3, 0.7), blend=(1, 1))
        self.same(twice, self.terms(content_masks=MASKS[:1]))

    def test_masks_of_hard_regions_are_those_of_cropped_features(self):
        """Without anything mixed across the border: the first layer's Gram matrix of one half."""
        mask = np.zeros((1, 16, 24))
        mask[:, :, :10] = 1
        content = jnp.asarray(CONTENT, jnp.float64)
        targets = targets_of(BASE, self.variables, content, [content], content_masks=mask)
        statistics = make_loss(BASE.loss).statistics(self.variables, content, targets)
        found = statistics.style["relu1_1"].gram
        half = features(self.variables, content, layers=("relu1_1",))["relu1_1"][:, :10]
        expected = np.einsum("hwi,hwj->ij", half, half)
        np.testing.assert_allclose(found, expected[None], rtol=1e-12)
        assert targets.regions.sizes["relu1_1"].tolist() == [160]

    @pytest.mark.parametrize("padding", ["zero", "circular"])
    @pytest.mark.parametrize("hard", [False, True])
    def test_a_mask_and_the_rest_partition_the_sums(self, hard, padding):
        config = BASE.but(padding=padding)
        mask = np.float64(MASKS[0] > 0.5 if hard else MASKS[0])
        parts = self.grams(config, content_masks=np.stack([mask, 1 - mask]))
        self.same(jax.tree.map(lambda gram: gram.sum(0, keepdims=True), parts), self.grams(config))

    def test_inside_and_all_of_the_rest_partition_the_sums(self):
        mask = np.zeros((1, 16, 24))
        mask[:, :, :15] = 1
        inside = self.grams(BASE.but(guides="inside"), content_masks=mask)
        rest = self.grams(BASE.but(guides="all"), content_masks=1 - mask)
        self.same(jax.tree.map(jnp.add, inside, rest), self.grams(BASE))

    def grams(self, config, **given):
        targets = targets_of(config, self.variables, CONTENT, STYLES[:1], **given)
        image = jnp.asarray(IMAGE, jnp.float64)
        return make_loss(config.loss).statistics(self.variables, image, targets).style

    @pytest.mark.parametrize("masked", [False, True])
    def test_a_texture_s_own_image_is_free(self, masked):
        config = BASE.but(content_layers=(), tv_weight=0.0)
        given = {"content_masks": MASKS[:1], "style_masks": MASKS[:1]} if masked else {}
        value, _ = self.terms(config, image=IMAGE, styles=[IMAGE], **given)
        other, _ = self.terms(config, image=OTHER_IMAGE, styles=[IMAGE], **given)
        assert value < 1e-25 and other > 1

    def test_a_texture_takes_nothing_of_the_content(self):
        config = BASE.but(content_layers=())
        first = self.terms(config, content=CONTENT)
        self.same(self.terms(config, content=np.full_like(CONTENT, 0.3)), first, rtol=0)
        assert first[1].content == 0

    @pytest.mark.parametrize("masked", [False, True])
    def test_sum_and_average_differ_by_a_constant(self, masked):
        given = {"blend": (1, 3)}
        if masked:
            given = {"blend": [[1, 3], [2, 0.5]], "content_masks": MASKS, "region_weights": (2, 5)}
        weights, regions = given.get("region_weights", (1,)), 2 if masked else 1
        styles = as_float64(STYLES)
        flat = [flat_features(self.variables, style, BASE) for style in styles]
        constant = 0.0
        for name, _ in BASE.loss.style_layers:
            grams = [f[name].T @ f[name] / f[name].size for f in flat]
            for weight, row in zip(
                weights, numpy_shares(given["blend"], name, regions, 2), strict=True
            ):
                mixed = sum(b * a for b, a in zip(row, grams, strict=True))
                constant += weight * sum(
                    b * np.mean((a - mixed) ** 2) for b, a in zip(row, grams, strict=True)
                )
        found = []
        for photo in (IMAGE, OTHER_IMAGE):
            total, average = (
                self.terms(BASE.but(style_mixing=mixing), image=photo, **given)[1].style
                for mixing in ("sum", "average")
            )
            found.append(total - average)
        np.testing.assert_allclose(found, BASE.loss.style_weight * constant, rtol=1e-9)

    def test_sum_and_average_have_one_gradient(self):
        def gradient(mixing):
            config = BASE.but(style_mixing=mixing)
            value = lambda image: self.terms_of_array(config, image)  # noqa: E731
            return jax.grad(value)(jnp.asarray(IMAGE, jnp.float64))

        first = gradient("sum")
        np.testing.assert_allclose(gradient("average"), first, atol=1e-12 * jnp.abs(first).max())

    def terms_of_array(self, config, image, **given):
        given = {"content_masks": MASKS, "blend": [[1, 3], [2, 0.5]]} | given
        photos = as_float64((CONTENT, STYLES))
        return terms_of(config, self.variables, image, *photos, **given)[0]

    def test_what_is_kept_has_no_gradient(self):
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

    @pytest.mark.parametrize("shift", [(4, 0), (0, 8), (12, 20)])
    def test_a_tile_has_no_border(self, shift):
        """Of any multiple of the stride, 4 at relu3_1."""
        config = BASE.but(content_layers=(), style_layers=["relu1_1", "relu3_1"])
        config = config.but(padding="circular")
        given = {"content_masks": MASKS, "preserve": KEEP}

        def rolled(photo, axes):
            return np.roll(photo, shift, axes)

        moved = {"content_masks": rolled(MASKS, (1, 2)), "preserve": rolled(KEEP, (0, 1))}
        photos = {"image": rolled(IMAGE, (0, 1)), "content": rolled(CONTENT, (0, 1))}
        for guides in ("simple", "inside", "all"):
            config = config.but(guides=guides)
            self.same(self.terms(config, **given), self.terms(config, **photos, **moved))
        plain = config.but(padding="zero")
        values = [self.terms(plain)[0], self.terms(plain, **photos)[0]]
        assert abs(values[0] - values[1]) > 1e-5 * values[0]

    @pytest.mark.parametrize("pooling", ["max", "average"])
    def test_circular_features_are_those_within_a_tiling(self, pooling):
        """32 px are more than relu3_1 sees to either side."""
        layers = ("conv1_1", "relu1_2", "relu2_2", "relu3_1")
        of = partial(features, layers=layers, pooling=pooling)
        photo = jnp.asarray(smooth_image(32, 36, seed=17), jnp.float64)
        found = jax.jit(partial(of, padding="circular"))(self.variables, photo)
        whole = jax.jit(of)(self.variables, jnp.tile(photo, (3, 3, 1)))
        for name in layers:
            height, width = found[name].shape[:2]
            middle = whole[name][height : 2 * height, width : 2 * width]
            np.testing.assert_allclose(found[name], middle, atol=1e-11)


class TestGradients:
    @pytest.mark.parametrize("padding", ["zero", "circular"])
    def test_loss_with_every_control(self, x64, networks, padding):
        """To second order, in reverse as the convolution has a custom rule."""
        config = SMALL.but(pooling="average", padding=padding, tv_order=2, style_mixing="sum")
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

    def check(self, function, *arguments):
        check_grads(jax.jit(function), arguments, order=2, modes=("fwd", "rev"))

    def test_masked_gram_sum(self, x64):
        own, mask = generator.normal(size=(5, 4, 3)), generator.uniform(size=(5, 4))
        kernel, bias = generator.normal(size=(3, 6)), generator.normal(size=6)
        self.check(lambda own: losses.gram_sum(own, mask=mask), own)
        self.check(
            lambda own: losses.gram_sum(ProjectedFeatures(own, kernel, bias), mask=mask), own
        )

    @pytest.mark.parametrize("mixing", ["average", "sum"])
    def test_mixed_style_loss(self, x64, mixing):
        grams, targets = generator.normal(size=(2, 4, 4)), generator.normal(size=(3, 4, 4))
        self.check(
            lambda *args: mixed_losses(
                losses.style_loss, args[0], args[1], shares=args[2], mixing=mixing
            ),
            grams,
            targets,
            generator.uniform(size=(2, 3)),
        )

    @pytest.mark.parametrize("order", [1, 2])
    def test_circular_total_variation(self, x64, order):
        image = generator.uniform(size=(5, 6, 3))
        self.check(lambda x: total_variation(x, order=order, padding="circular"), image)


class TestTerms:
    def test_masked_gram_matrix(self, variant):
        flat, mask = generator.normal(size=(2, 5, 3)), generator.uniform(size=(2, 5))
        flat, mask = flat.astype(np.float32), mask.astype(np.float32)
        for normalization, channels in (("hw", 1), ("chw", 3)):
            found = variant(
                lambda f, m, by=normalization: losses.gram_matrix(f, mask=m, normalization=by),
                flat,
                mask,
            )
            expected = np.einsum("hw,hwi,hwj->ij", mask, flat, flat, dtype=np.float64)
            expected = expected / (mask.sum() * channels)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    def test_gram_matrix_of_nothing_is_zero(self):
        ones = jnp.ones((3, 4, 2))
        assert (losses.gram_matrix(ones, mask=jnp.zeros((3, 4))) == 0).all()

    @pytest.mark.parametrize("mixing", ["average", "sum"])
    def test_mixed_style_loss(self, variant, mixing):
        shapes = (2, 4, 4), (3, 4, 4), (2, 3)
        grams, targets, shares = (generator.uniform(size=s).astype(np.float32) for s in shapes)
        found = variant(
            lambda *args: mixed_losses(losses.style_loss, *args[:2], shares=args[2], mixing=mixing),
            grams,
            targets,
            shares,
        )
        for r in range(2):
            if mixing == "average":
                mixed = sum(shares[r, s] * targets[s] for s in range(3))
                expected = np.mean((grams[r] - mixed) ** 2)
            else:
                expected = sum(shares[r, s] * np.mean((grams[r] - targets[s]) ** 2) for s in (0, 1))
                expected += shares[r, 2] * np.mean((grams[r] - targets[2]) ** 2)
            np.testing.assert_allclose(found[r], expected, rtol=1e-5)

    def test_unknown_mixing_is_refused(self):
        with pytest.raises(ValueError, match="mixing is 'product': expected 'average' or 'sum'"):
            mixed_losses(
                losses.style_loss,
                jnp.ones((1, 2, 2)),
                jnp.ones((1, 2, 2)),
                shares=jnp.ones((1, 1)),
                mixing="product",
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
    "layer factors": {"config": {"style_layers": {"relu1_1": 0.3, "relu2_2": 2.0}}},
}
PAIRS = list(combinations(CONTROLS, 2))


@pytest.mark.parametrize("index", range(len(PAIRS)), ids=[" + ".join(pair) for pair in PAIRS])
def test_pairs_of_controls(x64, networks, index):
    """Each with one of the two networks in turn: values are the oracle's, batches the singles'."""
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
    """What is shown of an optimised image: the content's chroma, and what is kept."""
    image, content, alpha = np.float64(image), np.float64(CONTENT), np.float64(KEEP)[..., None]
    if color in ("luminance", "keep-yiq"):
        yiq = np.concatenate([(image @ YIQ.T)[..., :1], (content @ YIQ.T)[..., 1:]], -1)
        image = yiq @ np.linalg.inv(YIQ).T
    return alpha * content + (1 - alpha) * image


class TestStylize:
    @pytest.mark.parametrize("color", MODES)
    @pytest.mark.slow
    def test_regions_and_kept_parts_in_every_colour_mode(self, variables, color):
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
        if color != "keep-lab":
            np.testing.assert_allclose(
                result.image, finished(result.state.best_image, color), atol=1e-6
            )
            np.testing.assert_allclose(shown[-1], finished(result.state.image, color), atol=1e-6)
        if color in ("luminance", "keep-yiq"):
            chroma, expected = ((np.float64(x) @ YIQ.T)[..., 1:] for x in (result.image, CONTENT))
            np.testing.assert_allclose(chroma, expected, atol=1e-5)

    def test_the_kept_part_is_exact_in_frequencies(self, variables):
        """Where the optimiser's coordinates are not pixels, the kept ones move with the others."""
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
        result = stylize(variables, CONTENT, [], config=config)
        assert result.loss < 0.5 * result.history.loss[0]
        assert (result.history.terms.style == 0).all()

    def test_a_reconstruction_keeps_a_part(self, variables):
        config = RUN.but(style_layers=(), tv_weight=0.0)
        result = stylize(variables, CONTENT, [], config=config, preserve=KEEP)
        assert result.loss < result.history.loss[0]
        np.testing.assert_array_equal(result.image[:5], CONTENT[:5])

    def test_shares_of_copies_change_nothing(self, variables):
        one, two = (
            stylize(variables, CONTENT, [STYLES[0]] * 2, config=RUN, blend=blend)
            for blend in (None, (1, 3))
        )
        np.testing.assert_allclose(two.history.loss, one.history.loss, rtol=1e-5)
        np.testing.assert_allclose(two.image, one.image, atol=1e-4)

    def test_other_numbers_do_not_recompile(self, variables, monkeypatch):
        traces = count_traces(monkeypatch)
        config = RUN.but(guides="inside", steps=1)
        losses_found, targets_compiled = [], []
        for blend, weights, keep in [
            ([[1.0, 3.0], [1.0, 1.0]], (1.0, 2.0), KEEP),
            ([[0.5, 0.1], [0.0, 9.0]], (1.0, 2.0), KEEP),
            ([[0.5, 0.1], [0.0, 9.0]], (3.0, 0.0), KEEP),
            ([[0.5, 0.1], [0.0, 9.0]], (3.0, 0.0), np.flip(KEEP)),
        ]:
            result = stylize(
                variables,
                CONTENT,
                STYLES,
                config=config,
                blend=blend,
                content_masks=MASKS,
                region_weights=weights,
                preserve=keep,
            )
            losses_found.append(result.loss)
            targets_compiled.append(problem.compute_targets._cache_size())
        assert len(traces) == 1 and len(set(targets_compiled)) == 1
        assert len(set(losses_found)) == 4

    @pytest.mark.parametrize(
        "given, message",
        [
            ({"blend": (1, -1)}, "style_blend is"),
            ({"blend": {"relu5_1": (1, 1)}}, "layer relu5_1, which is no style layer"),
            ({"content_masks": np.ones((3, 16, 24))}, "2 styles for 3 regions"),
            ({"content_masks": [np.ones((8, 12))]}, "content mask 1 has shape"),
            ({"style_masks": [None]}, "1 style masks for 2 styles"),
            ({"region_weights": (1,)}, "no regions"),
            ({"content_masks": MASKS, "style_layers": ()}, "no effect without style layers"),
            ({"style_masks": [None] * 2, "style_layers": ()}, "no effect without style layers"),
            ({"preserve": KEEP, "region_weights": (1, 2)}, "2 region weights for 1 regions"),
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
    def test_unfit_controls_are_refused(self, variables, given, message):
        given = dict(given)
        names = [name for name in given if name in ("guides", "padding", "style_layers")]
        config = RUN.but(**{name: given.pop(name) for name in names})
        with pytest.raises(InputError, match=message):
            stylize(variables, given.pop("content", CONTENT), STYLES, config=config, **given)
