"""Coarse to fine: sizes of scales, resizing against NumPy and Pillow, Adam's moments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import smooth_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nst_jax.optim import make_optimizer
from nst_jax.transfer import pyramid
from nst_jax.transfer.pyramid import rescale_opt_state, resize, scale_shapes

pytestmark = pytest.mark.sampled


class TestScaleShapes:
    @pytest.mark.parametrize(
        "shape, options, expected",
        [
            ((480, 640), dict(min_size=160, factor=2), [(120, 160), (240, 320), (480, 640)]),
            ((480, 640), dict(min_size=161, factor=2), [(240, 320), (480, 640)]),
            ((640, 480), dict(min_size=300, factor=1.5), [(427, 320), (640, 480)]),
            ((512, 1024), dict(min_size=512, factor=2**0.5), [(256, 512), (362, 724), (512, 1024)]),
            ((90, 100), dict(min_size=100, factor=2), [(90, 100)]),
            ((90, 100), dict(min_size=101, factor=2), [(90, 100)]),
            ((90, 100), dict(min_size=None, factor=2), [(90, 100)]),
            ((65, 95), dict(min_size=40, factor=2, multiple=16), [(32, 48), (65, 95)]),
            ((3, 2), dict(min_size=1, factor=1.3), [(1, 1), (2, 1), (2, 2), (3, 2)]),
            # Rounding up to the multiple would make scales larger than the image.
            ((110, 110), dict(min_size=1, factor=1.1, multiple=64), [(64, 64), (110, 110)]),
            ((10, 200), dict(min_size=1, factor=2, multiple=16), [(10, 200)]),
        ],
    )
    def test_examples(self, shape, options, expected):
        assert scale_shapes(shape, **options) == expected

    @given(
        shape=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
        min_size=st.integers(1, 4500),
        factor=st.floats(1.05, 8),
        multiple=st.sampled_from([1, 2, 8, 16]),
    )
    def test_properties(self, shape, min_size, factor, multiple):
        shapes = scale_shapes(shape, min_size=min_size, factor=factor, multiple=multiple)
        assert shapes[-1] == shape
        for coarse, fine in zip(shapes, shapes[1:], strict=False):
            assert coarse != fine and coarse[0] <= fine[0] and coarse[1] <= fine[1]
        sides = np.array(shapes[:-1]).reshape(-1, 2)
        assert (sides % multiple == 0).all() and (sides > 0).all()
        assert (sides.max(1) >= min_size - multiple / 2).all()  # it holds before rounding

        # Both sides are near those of one and the same power, so that the aspect ratio is kept.
        powers = factor ** np.arange(1, 200)[:, None]
        exact = np.maximum(np.array(shape) / powers, multiple)
        near = (np.abs(sides[:, None] - exact) <= multiple / 2 + 1e-9).all(2)
        assert near.any(1).all()
        # No power is left out that stays large enough and smaller than the image.
        large = (max(shape) / powers >= min_size + multiple / 2)[:, 0]
        small = (exact <= np.array(shape) - multiple / 2).all(1)
        assert near.any(0)[large & small].all()

    @pytest.mark.parametrize("factor", [1, 0.5, -2, float("nan")])
    def test_other_factors(self, factor):
        with pytest.raises(ValueError, match="above 1"):
            scale_shapes((8, 8), min_size=2, factor=factor)


# Old and new shape: smaller, larger, one of each, by little, one side alone, to one pixel, from it.
SHAPES = [
    ((24, 35), (11, 17)),
    ((11, 17), (24, 35)),
    ((12, 31), (19, 13)),
    ((20, 21), (19, 22)),
    ((40, 30), (3, 2)),
    ((16, 9), (16, 20)),
    ((7, 5), (1, 1)),
    ((1, 1), (4, 3)),
]
PILLOW = {"linear": Image.Resampling.BILINEAR, "cubic": Image.Resampling.BICUBIC}
METHODS = sorted(PILLOW)


def triangle(x):
    return np.clip(1 - abs(x), 0, None)


def keys(x, a=-0.5):
    x = abs(x)
    inside = (a + 2) * x**3 - (a + 3) * x**2 + 1
    outside = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x < 1, inside, np.where(x < 2, outside, 0))


def plain_resize(image, shape, method):
    """Rows, then columns, each new pixel a sum over the old ones, in double precision."""
    kernel = {"linear": triangle, "cubic": keys}[method]
    for axis, new in enumerate(shape):
        old = image.shape[axis]
        width = max(old / new, 1)
        lines = []
        for index in range(new):
            centre = (index + 0.5) * old / new
            weights = kernel((np.arange(old) + 0.5 - centre) / width)
            lines.append(np.tensordot(weights / weights.sum(), image, (0, axis)))
        image = np.stack(lines, axis)
    return image


class TestResize:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("old, new", SHAPES)
    def test_matches_numpy(self, x64, old, new, method):
        image = np.random.default_rng(0).normal(size=(*old, 3))
        resized = resize(jnp.asarray(image), shape=new, method=method)
        np.testing.assert_allclose(resized, plain_resize(image, new, method), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("old, new", SHAPES)
    def test_matches_pillow(self, old, new, method):
        image = np.random.default_rng(0).uniform(size=old).astype(np.float32)
        resized = resize(jnp.asarray(image), shape=new, method=method)
        expected = Image.fromarray(image).resize(new[::-1], PILLOW[method])
        np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("channels", [(), (3,)])
    @pytest.mark.parametrize("old, new", [((31, 47), (47, 31)), ((61, 3), (2, 64))])
    def test_matches_jax(self, x64, old, new, channels, method):
        """Of which it takes the memory of some images only."""
        image = jnp.asarray(np.random.default_rng(0).normal(size=(*old, *channels)))
        expected = jax.image.resize(
            image, (*new, *channels), method, antialias=True, precision="highest"
        )
        for dtype, atol in (("float64", 1e-12), ("float32", 1e-6)):
            found = resize(image.astype(dtype), shape=new, method=method)
            if method == "linear":
                expected = jnp.clip(expected, image.min(), image.max())
            np.testing.assert_allclose(found, expected, rtol=0, atol=atol)

    @pytest.mark.optimized
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("old, new", [((16, 30000), (11, 21213)), ((11, 21213), (16, 30000))])
    def test_memory_of_a_long_image(self, old, new, method):
        image = jax.ShapeDtypeStruct((*old, 3), "float32")
        taps = (pyramid._taps(*sides, method) for sides in zip(old, new, strict=True))
        compiled = pyramid._resize.lower(image, *taps, method=method).compile()
        needs = compiled.memory_analysis().temp_size_in_bytes
        assert needs < 6 * 4 * 3 * 16 * 30000

    @pytest.mark.parametrize("method", METHODS)
    def test_transforms(self, variant, method):
        image = smooth_image(12, 15, seed=0)
        resized = variant(lambda image: resize(image, shape=(9, 21), method=method), image)
        np.testing.assert_allclose(resized, plain_resize(image, (9, 21), method), atol=1e-5)

    def test_is_cubic_by_default(self):
        image = smooth_image(6, 5, seed=0)
        expected = resize(image, shape=(8, 8), method="cubic")
        np.testing.assert_array_equal(resize(image, shape=(8, 8)), expected)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("old, new", SHAPES)
    def test_constants_stay(self, old, new, method):
        colour = np.float32([0.1, -3, 1])
        resized = resize(jnp.asarray(np.tile(colour, (*old, 1))), shape=new, method=method)
        np.testing.assert_allclose(resized, np.tile(colour, (*new, 1)), rtol=2e-6)

    @pytest.mark.parametrize("old, new", SHAPES)
    def test_linear_keeps_the_range_to_the_last_bit(self, old, new):
        generator = np.random.default_rng(0)
        for share in (0.5, 0.99, 1):  # of ones
            mask = jnp.float32(generator.uniform(size=old) < share)
            resized = resize(mask, shape=new, method="linear")
            assert mask.min() <= resized.min() and resized.max() <= mask.max()

    def test_cubic_is_neither_clipped_nor_quantised(self):
        step = jnp.repeat(jnp.float32([0, 1]), 8)[None].repeat(3, 0)
        resized = np.asarray(resize(step, shape=(3, 37)))
        assert resized.min() < -0.03 and resized.max() > 1.03
        ramp = jnp.linspace(0.4, 0.41, 16)[None].repeat(3, 0)
        middle = np.asarray(resize(ramp, shape=(3, 64)))[0, 8:-8]
        np.testing.assert_allclose(np.diff(middle), 0.01 / 15 / 4, rtol=1e-2)

    @pytest.mark.parametrize("method", METHODS)
    def test_the_same_shape_is_the_same_object(self, method):
        for shape in [(5, 4), (5, 4, 3)]:
            image = np.ones(shape, np.float32)
            assert resize(image, shape=(5, 4), method=method) is image

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
    def test_keeps_the_type(self, x64, method, dtype):
        for shape, expected in [((5, 4), (3, 7)), ((5, 4, 2), (3, 7, 2))]:
            resized = resize(jnp.ones(shape, dtype), shape=(3, 7), method=method)
            assert resized.shape == expected and resized.dtype == dtype

    @pytest.mark.parametrize("dtype", ["bool", "uint8", "int32"])
    def test_other_numbers_become_floats(self, dtype):
        mask = np.arange(20).reshape(5, 4) % 2
        resized = resize(jnp.asarray(mask, dtype), shape=(3, 7), method="linear")
        expected = resize(jnp.asarray(mask, "float32"), shape=(3, 7), method="linear")
        assert resized.dtype == "float32"
        np.testing.assert_array_equal(resized, expected)

    def test_other_methods(self):
        for shape in [(4, 4), (8, 8)]:
            with pytest.raises(ValueError, match="'cubic' or 'linear'"):
                resize(jnp.ones((4, 4)), shape=shape, method="nearest")


def adam_state(opt_state):
    """The one state of Adam in a state."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
    [found] = [node for node in nodes if isinstance(node, optax.ScaleByAdamState)]
    return found


def run(optimizer, gradients, shape):
    """State after updates with gradients; the image stays where it is."""
    image = jnp.zeros((*shape, 3))
    state = optax.tree.set(optimizer.init(image), learning_rate=jnp.float32(0.5))
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        _, state = update(jnp.asarray(gradient, image.dtype), state, image)
    return state


def waves(shape, phase):
    """Gradient of a mean over pixels: smooth waves over the whole image / pixels."""
    height, width = shape
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    y, x = np.meshgrid(y, x, indexing="ij")
    colours = [np.cos(2 * np.pi * (x + k * y) + phase * (k + 1)) + 2 for k in range(3)]
    return np.stack(colours, -1) / (height * width)


@pytest.fixture(params=["none", "spectral"])
def adam(request):
    return make_optimizer("adam", preconditioner=request.param)


OLD, NEW = (24, 32), (34, 45)
PIXELS = (24 * 32) / (34 * 45)


class TestRescaleMoments:
    @pytest.mark.parametrize("old, new", [(OLD, NEW), (NEW, OLD), ((9, 8), (7, 13)), (OLD, OLD)])
    def test_moments(self, adam, old, new):
        noise = np.random.default_rng(0).normal(size=(4, *old, 3))
        state = run(adam, noise, old)
        moments = adam_state(state)
        rescaled = adam_state(rescale_opt_state(state, old_shape=old, new_shape=new))
        ratio = old[0] * old[1] / (new[0] * new[1])
        for moment, changed, factor in [
            (moments.mu, rescaled.mu, ratio),
            (moments.nu, rescaled.nu, ratio**2),
        ]:
            expected = plain_resize(np.asarray(moment, float), new, "linear") * factor
            np.testing.assert_allclose(changed, expected, rtol=2e-5, atol=1e-5 * expected.max())

    def test_all_else_stays(self, adam):
        state = run(adam, [waves(OLD, 0), waves(OLD, 1)], OLD)
        rescaled = rescale_opt_state(state, old_shape=OLD, new_shape=NEW)
        fresh = run(adam, [], NEW)
        assert jax.tree.structure(rescaled) == jax.tree.structure(fresh)
        for got, expected in zip(jax.tree.leaves(rescaled), jax.tree.leaves(fresh), strict=True):
            assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        assert [x.shape for x in jax.tree.leaves(rescaled)].count((*NEW, 3)) == 2
        for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(rescaled), strict=True):
            assert after is before or after.shape == (*NEW, 3)
        assert adam_state(rescaled).count == 2
        assert rescaled.hyperparams["learning_rate"] == 0.5

    def test_a_constant_gradient(self):
        """The state is as though the steps had been taken at the new size, with g * r."""
        adam = make_optimizer("adam")
        gradient = np.float32([1e-3, -2e-5, 0.3])
        state = run(adam, [np.tile(gradient, (*OLD, 1))] * 40, OLD)
        expected = run(adam, [np.tile(gradient * PIXELS, (*NEW, 1))] * 40, NEW)
        rescaled = rescale_opt_state(state, old_shape=OLD, new_shape=NEW)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), rescaled, expected)

    def test_sizes_of_steps_stay(self, adam):
        """mu / sqrt(nu) at the new size is the old one's, where moments are smooth."""
        state = run(adam, [waves(OLD, phase) for phase in (0, 0.5, 1)], OLD)
        rescaled = rescale_opt_state(state, old_shape=OLD, new_shape=NEW)
        step, carried = (m.mu / np.sqrt(m.nu) for m in (adam_state(state), adam_state(rescaled)))
        expected = plain_resize(np.asarray(step, float), NEW, "linear")
        error = np.sqrt(np.mean((carried - expected) ** 2) / np.mean(expected**2))
        assert error < 0.03

    def test_goes_on_as_if_it_had_begun_at_the_new_size(self, adam):
        """The same smooth objective at both sizes gives almost the same next update."""
        phases = np.linspace(0, 2, 20)
        state = run(adam, [waves(OLD, phase) for phase in phases], OLD)
        rescaled = rescale_opt_state(state, old_shape=OLD, new_shape=NEW)
        whole = run(adam, [waves(NEW, phase) for phase in phases], NEW)
        image, gradient = jnp.zeros((*NEW, 3)), jnp.float32(waves(NEW, 2.1))
        got, _ = adam.update(gradient, rescaled, image)
        expected, _ = adam.update(gradient, whole, image)
        difference = np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2))
        assert difference < 0.03

    def test_nu_is_never_negative(self, adam):
        spikes = np.zeros((*OLD, 3))
        spikes[::5, ::3] = 100
        state = run(adam, [spikes, -spikes], OLD)
        nu = adam_state(state).nu
        state = optax.tree.set(state, nu=jnp.where(nu > nu.mean(), nu, 0))
        for new in [NEW, (13, 14), (200, 70)]:
            assert adam_state(rescale_opt_state(state, old_shape=OLD, new_shape=new)).nu.min() >= 0

    def test_jit(self, adam):
        state = run(adam, [waves(OLD, 0), waves(OLD, 1)], OLD)
        expected = rescale_opt_state(state, old_shape=OLD, new_shape=NEW)
        rescale = jax.jit(rescale_opt_state, static_argnames=("old_shape", "new_shape"))
        got = rescale(state, old_shape=OLD, new_shape=NEW)
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
    def test_keeps_types(self, x64, dtype):
        optimizer = optax.adam(0.1, mu_dtype=dtype)
        state = optimizer.init(jnp.zeros((4, 6, 3), jnp.float32))
        rescaled = rescale_opt_state(state, old_shape=(4, 6), new_shape=(5, 9))
        fresh = optimizer.init(jnp.zeros((5, 9, 3), jnp.float32))
        assert fresh[0].mu.dtype == dtype
        types = [jax.tree.map(lambda x: x.dtype, state) for state in (rescaled, fresh)]
        assert types[0] == types[1]

    def test_a_state_of_another_shape(self, adam):
        state = adam.init(jnp.zeros((4, 6, 3)))
        with pytest.raises(ValueError, match=r"\(4, 6, 3\).*\(6, 4\)"):
            rescale_opt_state(state, old_shape=(6, 4), new_shape=(8, 12))
