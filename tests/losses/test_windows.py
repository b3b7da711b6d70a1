"""Windows of an image, and how far a feature sees, against a network's own receptive fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nst_jax.config import TAPS, deepest, reach, stride
from nst_jax.losses.tiling import counted, cut, halo, make_grid, over_maps, ownership, spans
from nst_jax.models import init_variables, network_features
from nst_jax.types import Keep, LossWeights, Regions, Targets, Window

quickly = settings(max_examples=300, deadline=None, database=None)


@st.composite
def axes(draw, wrap=False):
    """An axis's length, and the tile, halo and stride that it is divided by."""
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
    def test_of_a_image_with_borders(self, axis):
        length, given = axis
        tile, beyond, step = given["tile"], given["halo"], given["stride"]
        size, starts, owned, wrapped = spans(length, **given)
        rest = length % step
        assert wrapped == (0, 0) and len(starts) == len(owned)
        # Every row is owned once, in order.
        np.testing.assert_array_equal(np.concatenate([np.arange(*o) for o in owned]), range(length))
        assert (owned[:, 0] < owned[:, 1]).all() and not (owned[:, 0] % step).any()
        # Windows lie inside, where the features of the whole are.
        ends = starts + size
        assert starts[0] == 0 and ends[-1] == length and (ends <= length).all()
        assert not (starts % step).any() and (np.diff(starts) > 0).all()
        # A halo on each side, or the image's true border.
        assert ((owned[:, 0] - starts >= beyond) | (starts == 0)).all()
        assert ((ends - owned[:, 1] >= beyond) | (ends == length)).all()
        # No larger than a tile with its halos, and no more than needed of them.
        inside = length - rest - 2 * beyond
        assert len(starts) == 1 if inside <= tile else 1 < len(starts) <= -(-inside // tile)
        assert size <= tile + 2 * beyond + rest
        inner = owned[1:-1, 1] - owned[1:-1, 0]
        assert (inner <= tile).all()

    @quickly
    @given(axes(wrap=True))
    @example((16, {"tile": 8, "halo": 40, "stride": 8}))  # a window wider than the axis
    def test_of_a_image_whose_borders_meet(self, axis):
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
        # Also in the middle of a whole one no border of the network's is met.
        assert (owned[:, 0] - starts >= beyond).all() and (ends - owned[:, 1] >= beyond).all()
        # Rows before the first begin at a feature of every layer.
        assert not any(x % step for x in (*starts, *owned[:, 0], before, behind))
        assert 1 < len(starts) <= -(-length // tile) and size <= tile + 2 * beyond

    def test_windows_are_even(self):
        """Of 17 rows beyond what the borders' windows own two of nine and not of 16 and 1."""
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


class TestPieces:
    """What a window has of a layer of stride 4."""

    def test_cut(self):
        x = np.arange(2 * 7 * 9 * 3).reshape(2, 7, 9, 3)
        found = cut(jnp.asarray(x), jnp.array([8, 4]), size=(15, 21), step=4, axis=1)
        np.testing.assert_array_equal(found, x[:, 2:5, 1:6])

    def test_ownership_at_a_layer(self):
        """In pixels of the image; a layer's feature belongs to who owns its first pixel."""
        start, owned = jnp.array([8, 4]), jnp.array([[8, 16], [12, 23]])
        window = ownership(start, owned, size=(18, 19), dtype=np.float32)
        assert window.rows.dtype == window.columns.dtype == np.float32
        np.testing.assert_array_equal(np.flatnonzero(window.rows), range(8))
        np.testing.assert_array_equal(np.flatnonzero(window.columns), range(8, 19))
        own = counted(window, shape=(4, 4), step=4)
        np.testing.assert_array_equal(own, np.outer([1, 1, 0, 0], [0, 0, 1, 1]))
        pixels = counted(window, shape=(18, 19, 3))
        assert pixels.shape == (18, 19) and pixels.sum() == 8 * 11

    def test_every_map_of_the_targets_is_transformed(self):
        """And nothing else: Gram matrices, sizes and shares are of the whole image."""
        ones = jnp.ones
        targets = Targets(
            content={"relu2_1": ones((4, 4, 2)), "relu4_1": ones((1, 1, 5))},
            style={"relu1_1": ones((2, 3, 3))},
            sizes={"relu1_1": ones(())},
            weights=LossWeights(*ones(3), {}, {}),
            shares={"relu1_1": ones((1, 2))},
            regions=Regions({"relu3_1": ones((2, 2, 2))}, {"relu3_1": ones(2)}, ones(2)),
            keep=Keep(ones((8, 8)), ones((8, 8, 3))),
            image=ones((8, 8, 3)),
            window=Window(ones(8), ones(8), ones(2)),
        )
        seen = []

        def transform(x, step, axis):
            seen.append((x.shape, step, axis))
            return x * 2

        found = over_maps(targets, transform)
        expected = [
            ((4, 4, 2), 2, 0),
            ((1, 1, 5), 8, 0),
            ((2, 2, 2), 4, 1),
            ((8, 8), 1, 0),
            ((8, 8, 3), 1, 0),
            ((8, 8, 3), 1, 0),
        ]
        assert sorted(seen) == sorted(expected)
        changed = jax.tree.map(lambda x: float(x.mean()) == 2, found)
        assert changed == targets._replace(
            content={"relu2_1": True, "relu4_1": True},
            style={"relu1_1": False},
            sizes={"relu1_1": False},
            weights=LossWeights(False, False, False, {}, {}),
            shares={"relu1_1": False},
            regions=Regions({"relu3_1": True}, {"relu3_1": False}, False),
            keep=Keep(True, True),
            image=True,
            window=Window(False, False, False),
        )
        bare = Targets({}, {}, {}, LossWeights(1, 1, 1, {}, {}), {})
        assert over_maps(bare, transform) == bare


def positive_network():
    """Of positive kernels: of a positive image no ReLU and no average hides a pixel."""
    variables = init_variables(jax.random.key(0), channels=(1,) * 5)
    for layer in variables["params"].values():
        layer["kernel"] = jnp.ones_like(layer["kernel"]) / layer["kernel"].size
    variables["preprocessing"] = {"mean": jnp.zeros(3), "std": jnp.ones(3)}
    return variables


@pytest.mark.parametrize(
    "tap",
    ["conv1_1", "relu1_2", "conv2_1", "relu2_2", "relu3_1", "conv4_2", "relu5_1", "relu5_4"],
)
def test_reach_is_that_of_the_network(tap):
    """Rows that the 21st feature of a column of 41 sees, by its gradient."""
    step, position = stride(tap), 20
    variables = positive_network()

    def feature(image):
        taps = network_features(variables, image, layers=(tap,), pooling="average")
        return taps[tap][position, 0, 0]

    gradient = jax.jit(jax.grad(feature))(jnp.ones((41 * step, step, 3)))
    rows, start = np.flatnonzero(np.abs(gradient).sum((1, 2)) > 0), position * step
    np.testing.assert_array_equal(rows, range(rows[0], rows[-1] + 1))
    assert start - rows[0] == reach(tap) == rows[-1] - (start + step - 1)


@pytest.mark.parametrize("tap", TAPS)
def test_halo_holds_the_reach(tap):
    layers = ("relu1_1", tap)
    step = stride(deepest(layers))
    assert reach(tap) <= halo(layers) < reach(tap) + step and halo(layers) % step == 0
