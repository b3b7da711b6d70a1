"""Windows of an image, and the reach of features against the receptive fields of the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nst_jax.config import TAPS, deepest, reach, stride
from nst_jax.losses.tiling import (
    crop,
    halo,
    make_grid,
    make_window,
    ownership,
    spans,
    transform_maps,
)
from nst_jax.models import init_variables, network_features
from nst_jax.types import LossWeights, Preserved, Regions, Targets, Window

quickly = settings(max_examples=300, deadline=None, database=None)


@st.composite
def axes(draw, wrap=False):
    """Length of an axis, and the tile, halo and stride of its windows."""
    step = draw(st.sampled_from([1, 2, 4, 8, 16]))
    tile, beyond = draw(st.integers(1, 8)) * step, draw(st.integers(1, 9)) * step
    length = draw(st.integers(step, 60 * step))
    length = length // step * step if wrap else length
    return length, {"tile": tile, "halo": beyond, "stride": step}


class TestSpans:
    @quickly
    @given(axes())
    @example((1, {"tile": 1, "halo": 1, "stride": 1}))
    @example((4 * 16 + 15, {"tile": 16, "halo": 16, "stride": 16}))
    def test_of_an_image_with_borders(self, axis):
        length, given = axis
        tile, beyond, step = given["tile"], given["halo"], given["stride"]
        size, starts, owned, wrapped = spans(length, **given)
        rest = length % step
        assert wrapped == (0, 0) and len(starts) == len(owned)
        # Every row is owned once, in order.
        np.testing.assert_array_equal(np.concatenate([np.arange(*o) for o in owned]), range(length))
        assert (owned[:, 0] < owned[:, 1]).all() and not (owned[:, 0] % step).any()
        # Windows lie inside the image and begin at multiples of the stride.
        ends = starts + size
        assert starts[0] == 0 and ends[-1] == length and (ends <= length).all()
        assert not (starts % step).any() and (np.diff(starts) > 0).all()
        # Each side has a halo or is the border of the image.
        assert ((owned[:, 0] - starts >= beyond) | (starts == 0)).all()
        assert ((ends - owned[:, 1] >= beyond) | (ends == length)).all()
        # Windows are no larger than a tile with its halos, and no more than needed.
        inside = length - rest - 2 * beyond
        assert len(starts) == 1 if inside <= tile else 1 < len(starts) <= -(-inside // tile)
        assert size <= tile + 2 * beyond + rest
        inner = owned[1:-1, 1] - owned[1:-1, 0]
        assert (inner <= tile).all()

    @quickly
    @given(axes(wrap=True))
    @example((16, {"tile": 8, "halo": 40, "stride": 8}))  # a window wider than the axis
    def test_of_an_image_with_circular_padding(self, axis):
        length, given = axis
        tile, beyond, step = given["tile"], given["halo"], given["stride"]
        size, starts, owned, (before, behind) = spans(length, **given, wrap=True)
        if length <= tile:
            assert (size, starts.tolist(), owned.tolist()) == (length, [0], [[0, length]])
            assert (before, behind) == (0, 0)
            return
        rows = np.concatenate([np.arange(*o) for o in owned])
        np.testing.assert_array_equal(rows - before, range(length))
        ends = starts + size
        assert starts[0] == 0 and ends[-1] == before + length + behind
        # Every side has a halo.
        assert (owned[:, 0] - starts >= beyond).all() and (ends - owned[:, 1] >= beyond).all()
        # Everything begins at a multiple of the stride.
        assert not any(x % step for x in (*starts, *owned[:, 0], before, behind))
        assert 1 < len(starts) <= -(-length // tile) and size <= tile + 2 * beyond

    def test_windows_are_even(self):
        """17 rows inside the halos are divided into 9 and 8, not into 16 and 1."""
        found = spans(2 * 3 + 17, tile=16, halo=3, stride=1)
        assert found.size == 9 + 6 and found.owned.tolist() == [[0, 12], [12, 23]]


def test_grid():
    layers = ("relu2_1", "relu3_1")  # a stride of 4, a halo of 12
    grid = make_grid((70, 61, 3), layers=layers, tile=13)
    for axis, length in ((grid.rows, 70), (grid.columns, 61)):
        expected = spans(length, tile=16, halo=12, stride=4)
        jax.tree.map(np.testing.assert_array_equal, axis, expected)
    assert (grid.count, grid.size) == (3 * 3, (42, 37))
    assert make_grid((43, 40), layers=layers, tile=16).count == 1
    wrapped = make_grid((40, 48), layers=layers, tile=16, padding="circular")
    assert wrapped.count == 3 * 3 and wrapped.rows.wrapped == (12, 3 * 16 + 12 - 40)


class TestWindow:
    def test_crop(self):
        x = np.arange(2 * 7 * 9 * 3).reshape(2, 7, 9, 3)
        found = crop(jnp.asarray(x), jnp.array([8, 4]), size=(15, 21), step=4, axis=1)
        np.testing.assert_array_equal(found, x[:, 2:5, 1:6])

    def test_ownership_at_a_layer(self):
        """A feature belongs to the window that owns its first pixel."""
        start, owned = jnp.array([8, 4]), jnp.array([[8, 16], [12, 23]])
        window = make_window(start, owned, size=(18, 19), dtype=np.float32)
        assert window.rows.dtype == window.columns.dtype == np.float32
        np.testing.assert_array_equal(np.flatnonzero(window.rows), range(8))
        np.testing.assert_array_equal(np.flatnonzero(window.columns), range(8, 19))
        own = ownership(window, shape=(4, 4), step=4)
        np.testing.assert_array_equal(own, np.outer([1, 1, 0, 0], [0, 0, 1, 1]))
        pixels = ownership(window, shape=(18, 19, 3))
        assert pixels.shape == (18, 19) and pixels.sum() == 8 * 11

    def test_maps_of_the_targets_are_transformed_and_nothing_else(self):
        """Gram matrices, sizes and weights belong to the whole image."""
        ones = jnp.ones
        targets = Targets(
            content={"relu2_1": ones((4, 4, 2)), "relu4_1": ones((1, 1, 5))},
            style={"relu1_1": ones((2, 3, 3))},
            sizes={"relu1_1": ones(())},
            weights=LossWeights(*ones(3), {}, {}),
            style_weights={"relu1_1": ones((1, 2))},
            regions=Regions({"relu3_1": ones((2, 2, 2))}, {"relu3_1": ones(2)}, ones(2)),
            preserved=Preserved(ones((8, 8)), ones((8, 8, 3))),
            image=ones((8, 8, 3)),
            window=Window(ones(8), ones(8), ones(2)),
            laplacian={"laplacian4": ones((2, 2))},
        )
        zeros = transform_maps(targets, lambda x, step, axis: x * 0)
        changed = jax.tree.map(lambda x: not x.any(), zeros)
        assert changed == jax.tree.map(lambda x: False, targets)._replace(
            content={"relu2_1": True, "relu4_1": True},
            regions=Regions({"relu3_1": True}, {"relu3_1": False}, False),
            preserved=Preserved(True, True),
            image=True,
            laplacian={"laplacian4": True},
        )
        # By the strides of their layers, with the height at the given axis, all maps are 8 px high.
        transform_maps(
            targets, lambda x, step, axis: np.testing.assert_equal(x.shape[axis] * step, 8)
        )


def positive_network():
    """A network of positive kernels: for a positive image no ReLU hides a pixel."""
    variables = init_variables(jax.random.key(0), channels=(1,) * 5)
    for layer in variables["params"].values():
        layer["kernel"] = jnp.ones_like(layer["kernel"]) / layer["kernel"].size
    variables["preprocessing"] = {"mean": jnp.zeros(3), "std": jnp.ones(3)}
    return variables


@pytest.mark.parametrize(
    "tap",
    ["conv1_1", "relu2_2", "relu3_1", "relu5_4"],
)
def test_reach_is_that_of_the_network(tap):
    """The rows that the middle feature of a column depends on, by its gradient."""
    step, position = stride(tap), 20
    variables = positive_network()

    def feature(image):
        taps = network_features(variables, image, layers=(tap,), pooling="average")
        return taps[tap][position, 0, 0]

    gradient = jax.jit(jax.grad(feature))(jnp.ones((41 * step, step, 3)))
    rows, start = np.flatnonzero(np.abs(gradient).sum((1, 2)) > 0), position * step
    np.testing.assert_array_equal(rows, range(rows[0], rows[-1] + 1))
    assert start - rows[0] == reach(tap) == rows[-1] - (start + step - 1)


def test_halo_is_the_reach_rounded_up_to_the_stride():
    for tap in TAPS:
        layers = ("relu1_1", tap)
        step = stride(deepest(layers))
        assert reach(tap) <= halo(layers) < reach(tap) + step and halo(layers) % step == 0
