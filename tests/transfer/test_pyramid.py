"""Sizes of scales, resizing against NumPy and Pillow, and warm starts of Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
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
            ((512, 1024), dict(min_size=512, factor=2**0.5), [(256, 512), (362, 724), (512, 1024)]),
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
        assert (sides.max(1) >= min_size - multiple / 2).all()  # min_size holds before rounding

        # Both sides are near those of the same power, so that the proportions are kept.
        powers = factor ** np.arange(1, 200)[:, None]
        exact = np.maximum(np.array(shape) / powers, multiple)
        near = (np.abs(sides[:, None] - exact) <= multiple / 2 + 1e-9).all(2)
        assert near.any(1).all()
        # Every power that is large enough and smaller than the image has a scale.
        large = (max(shape) / powers >= min_size + multiple / 2)[:, 0]
        small = (exact <= np.array(shape) - multiple / 2).all(1)
        assert near.any(0)[large & small].all()

    def test_unknown_factors(self):
        for factor in (1, float("nan")):
            with pytest.raises(ValueError, match="above 1"):
                scale_shapes((8, 8), min_size=2, factor=factor)


# Old and new shape: smaller, larger, one side of each, to one pixel, from one pixel.
SHAPES = [
    ((24, 35), (11, 17)),
    ((11, 17), (24, 35)),
    ((12, 31), (19, 13)),
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
    """Each new pixel as a sum over old ones, first along columns, then along rows, in float64."""
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

    @pytest.mark.optimized
    def test_memory_of_a_long_image(self):
        """That of a few images; a dense matrix, as in ``jax.image.resize``, would be far larger."""
        method, old, new = "cubic", (16, 30000), (11, 21213)
        image = jax.ShapeDtypeStruct((*old, 3), "float32")
        neighbours = (pyramid._neighbours(*sides, method) for sides in zip(old, new, strict=True))
        compiled = pyramid._resize.lower(image, *neighbours, method=method).compile()
        needs = compiled.memory_analysis().temp_size_in_bytes
        assert needs < 6 * 4 * 3 * 16 * 30000

    @pytest.mark.parametrize("old, new", SHAPES[:3])
    def test_linear_keeps_the_range_to_the_last_bit(self, old, new):
        generator = np.random.default_rng(0)
        for ones in (0.5, 0.99, 1):  # the fraction of ones
            mask = jnp.float32(generator.uniform(size=old) < ones)
            resized = resize(mask, shape=new, method="linear")
            assert mask.min() <= resized.min() and resized.max() <= mask.max()

    def test_the_same_shape_returns_the_image(self):
        image = np.ones((5, 4, 3), np.float32)
        assert resize(image, shape=(5, 4)) is image

    def test_dtypes(self, x64):
        """Those of floats are kept; other masks become float32."""
        for dtype in ("bfloat16", "float32", "float64"):
            resized = resize(jnp.ones((5, 4, 2), dtype), shape=(3, 7), method="linear")
            assert resized.shape == (3, 7, 2) and resized.dtype == dtype
        mask = np.arange(20).reshape(5, 4) % 2
        expected = resize(jnp.asarray(mask, "float32"), shape=(3, 7), method="linear")
        for dtype in ("bool", "uint8"):
            resized = resize(jnp.asarray(mask, dtype), shape=(3, 7), method="linear")
            assert resized.dtype == "float32"
            np.testing.assert_array_equal(resized, expected)

    def test_unknown_method(self):
        with pytest.raises(ValueError, match="'cubic' or 'linear'"):
            resize(jnp.ones((4, 4)), shape=(4, 4), method="nearest")


def adam_state(opt_state):
    """The only ``ScaleByAdamState`` in a state."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
    [found] = [node for node in nodes if isinstance(node, optax.ScaleByAdamState)]
    return found


def run(optimizer, gradients, shape):
    """The state after updates with gradients at a fixed image."""
    image = jnp.zeros((*shape, 3))
    state = optax.tree.set(optimizer.init(image), learning_rate=jnp.float32(0.5))
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        _, state = update(jnp.asarray(gradient, image.dtype), state, image)
    return state


def waves(shape, phase):
    """A gradient of a mean over pixels: smooth waves over the image, divided by the pixels."""
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


class TestWarmStart:
    @pytest.mark.parametrize("old, new", [(OLD, NEW), (NEW, OLD), ((9, 8), (7, 13))])
    def test_means_equal_numpy(self, adam, old, new):
        noise = np.random.default_rng(0).normal(size=(4, *old, 3))
        state = run(adam, noise, old)
        before = adam_state(state)
        rescaled = adam_state(rescale_opt_state(state, old_shape=old, new_shape=new))
        ratio = old[0] * old[1] / (new[0] * new[1])
        for mean, changed, factor in [
            (before.mu, rescaled.mu, ratio),
            (before.nu, rescaled.nu, ratio**2),
        ]:
            expected = plain_resize(np.asarray(mean, float), new, "linear") * factor
            np.testing.assert_allclose(changed, expected, rtol=2e-5, atol=1e-5 * expected.max())

    def test_everything_else_stays(self, adam):
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
        """The state is that of the same steps at the new size, with gradient r g."""
        adam = make_optimizer("adam")
        gradient = np.float32([1e-3, -2e-5, 0.3])
        state = run(adam, [np.tile(gradient, (*OLD, 1))] * 40, OLD)
        expected = run(adam, [np.tile(gradient * PIXELS, (*NEW, 1))] * 40, NEW)
        rescaled = rescale_opt_state(state, old_shape=OLD, new_shape=NEW)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), rescaled, expected)

    def test_nu_is_never_negative(self, adam):
        spikes = np.zeros((*OLD, 3))
        spikes[::5, ::3] = 100
        state = run(adam, [spikes, -spikes], OLD)
        nu = adam_state(state).nu
        state = optax.tree.set(state, nu=jnp.where(nu > nu.mean(), nu, 0))
        for new in [NEW, (13, 14), (200, 70)]:
            assert adam_state(rescale_opt_state(state, old_shape=OLD, new_shape=new)).nu.min() >= 0

    def test_dtypes_stay(self):
        optimizer = optax.adam(0.1, mu_dtype="bfloat16")
        states = [optimizer.init(jnp.zeros((*shape, 3))) for shape in (OLD, NEW)]
        rescaled = rescale_opt_state(states[0], old_shape=OLD, new_shape=NEW)
        assert rescaled[0].mu.dtype == "bfloat16"
        found, expected = (jax.tree.map(lambda x: x.dtype, x) for x in (rescaled, states[1]))
        assert found == expected

    def test_a_state_of_another_shape(self, adam):
        state = adam.init(jnp.zeros((4, 6, 3)))
        with pytest.raises(ValueError, match=r"\(4, 6, 3\).*\(6, 4\)"):
            rescale_opt_state(state, old_shape=(6, 4), new_shape=(8, 12))
