"""Shares of styles: who counts how much in which region and layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nst_jax.errors import InputError
from nst_jax.losses.guides import check_blend, style_shares

LAYERS = ("relu1_1", "relu2_1", "relu3_1")


def shares(blend=None, *, regions=1, styles=2):
    found = style_shares(blend, layers=LAYERS, regions=regions, styles=styles)
    assert tuple(found) == LAYERS
    for table in found.values():
        assert table.shape == (regions, styles) and table.dtype == np.float32
        np.testing.assert_allclose(table.sum(1), np.ones(regions), rtol=1e-6)
    return found


def same(found, expected):
    for table in found.values():
        np.testing.assert_allclose(table, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "regions, styles, expected",
    [
        (1, 1, [[1]]),
        (1, 4, [[0.25] * 4]),
        (3, 1, [[1]] * 3),
        (2, 2, [[1, 0], [0, 1]]),
        (3, 3, np.eye(3)),
    ],
)
def test_default(regions, styles, expected):
    same(shares(regions=regions, styles=styles), expected)


def test_factors_for_all_regions():
    same(shares((1.0, 3.0)), [[0.25, 0.75]])
    same(shares((1.0, 0.0), regions=3), [[1, 0]] * 3)
    same(shares((5.0,), regions=2, styles=1), [[1]] * 2)


def test_factors_of_each_region():
    same(shares([[1.0, 3.0], [2.0, 0.0]], regions=2), [[0.25, 0.75], [1, 0]])
    rows = np.random.default_rng(0).uniform(size=(3, 4))
    same(shares(rows.astype(np.float32), regions=3, styles=4), rows / rows.sum(1, keepdims=True))


@pytest.mark.parametrize("kind", [tuple, list, np.array, jnp.array, np.uint8, np.float32])
def test_numbers_of_any_kind(kind):
    same(shares(kind([1, 3])), [[0.25, 0.75]])


def test_a_square_table_is_not_mistaken_for_a_vector():
    same(shares([[1, 1], [0, 1]], regions=2), [[0.5, 0.5], [0, 1]])


def test_factors_of_layers():
    found = shares({"relu2_1": (3, 1), "relu3_1": np.array([[1, 0]])})
    np.testing.assert_allclose(found["relu1_1"], [[0.5, 0.5]])
    np.testing.assert_allclose(found["relu2_1"], [[0.75, 0.25]])
    np.testing.assert_allclose(found["relu3_1"], [[1, 0]])
    same(shares({}), [[0.5, 0.5]])
    mixed = shares({"relu2_1": (1, 1)}, regions=2)
    np.testing.assert_array_equal(mixed["relu1_1"], np.eye(2))
    np.testing.assert_array_equal(mixed["relu2_1"], np.full((2, 2), 0.5))


def test_all_layers_named_need_no_default():
    """3 regions and 2 styles have none."""
    table = [[1, 0], [0, 1], [1, 1]]
    same(shares(dict.fromkeys(LAYERS, table), regions=3), [[1, 0], [0, 1], [0.5, 0.5]])


def test_under_every_transformation(variant):
    table = np.array([[1.0, 3.0], [2.0, 2.0]], np.float32)
    found = variant(lambda t: style_shares(t, layers=LAYERS, regions=2, styles=2), table)
    same(found, [[0.25, 0.75], [0.5, 0.5]])


def test_factors_are_traced():
    traces = []

    @jax.jit
    def traced(blend):
        traces.append(None)
        return style_shares(blend, layers=LAYERS, regions=1, styles=2)

    for factors in [(1.0, 1.0), (1.0, 3.0), (0.0, 2.0)]:
        same(traced(factors), [np.array(factors) / sum(factors)])
    assert len(traces) == 1


@pytest.mark.parametrize(
    "blend, regions, styles, message",
    [
        ((1, 2, 3), 1, 2, "3 blend factors for 2 styles: expected one each"),
        ((1,), 2, 2, "1 blend factors for 2 styles"),
        (
            [[1, 2]],
            3,
            2,
            r"shape \(1, 2\) for 3 regions and 2 styles: expected \[2\] or \[3, 2\]",
        ),
        (1.0, 1, 2, r"shape \(\) for 1 regions"),
        (np.ones((1, 1, 2)), 1, 2, r"shape \(1, 1, 2\)"),
        (None, 3, 2, "2 styles for 3 regions: expected one style, one for each region, or to"),
        (None, 2, 3, "3 styles for 2 regions"),
        ({"relu2_1": (1, 2, 3)}, 1, 2, "3 blend factors for 2 styles"),
        ({"relu2_1": (1, 1)}, 3, 2, "2 styles for 3 regions"),
        (
            {"relu2_1": (1, 1), "relu4_1": (1, 1)},
            1,
            2,
            "layer relu4_1, which is no style layer: expected one of relu1_1, relu2_1, relu3_1",
        ),
    ],
)
def test_unfit_shapes_are_refused(blend, regions, styles, message):
    with pytest.raises(InputError, match=message):
        style_shares(blend, layers=LAYERS, regions=regions, styles=styles)


@pytest.mark.parametrize(
    "blend",
    [
        (1, 2),
        (0, 0.5),
        [[1, 0], [0, 1]],
        np.array([1, 2]),
        jnp.array([[1.0, 2.0]]),
        {},
        {"relu1_1": (1, 0), "relu2_1": [[1, 0], [0, 2]]},
    ],
)
def test_numbers_that_are_factors(blend):
    found = check_blend(blend)
    if isinstance(blend, dict):
        assert list(found) == list(blend)
    else:
        found, blend = {"": found}, {"": blend}
    for layer, factors in found.items():
        assert isinstance(factors, np.ndarray) and factors.dtype == float
        given = np.asarray(blend[layer], float)
        np.testing.assert_allclose(factors, given / given.sum(-1, keepdims=True), rtol=1e-15)


@pytest.mark.parametrize(
    "blend, shown",
    [
        ((1, -1), r"\(1, -1\)"),
        ((1.0, np.nan), r"\(1.0, nan\)"),
        ((np.inf, 1.0), r"\(inf, 1.0\)"),
        ((0, 0), r"\(0, 0\)"),
        ((), r"\(\)"),
        ([[1, 2], [0, 0]], r"\(\[1, 2\], \[0, 0\]\)"),
        (np.array([[1, 2], [0, 0]]), r"\[0\D+0\D"),
        ([[1, 2], [3]], r"\(\[1, 2\], \[3\]\)"),
        ("half", "style_blend"),
        (("much", "little"), r"\('much', 'little'\)"),
        (None, "None"),
        ((1.0, 1e39), "style_blend"),  # infinite in float32
        ((1e-60, 0.0), "style_blend"),  # zero in float32
        ({"relu1_1": (1, 1), "relu2_1": (1, -2)}, r"\(1, -2\)"),
        ({"relu1_1": (1, 1), "relu2_1": (0, 0)}, r"\(0, 0\)"),
        ({"relu1_1": "x"}, "style_blend"),
    ],
)
def test_numbers_that_are_none(blend, shown):
    with pytest.raises(InputError, match=shown) as caught:
        check_blend(blend)
    message = str(caught.value)
    assert message.startswith("style_blend is ") and len(message.splitlines()) == 1
    assert message.endswith("expected finite numbers, 0 or more, and one above 0")


@pytest.mark.parametrize("blend", [(3e38, 3e38), (1e-40, 1e-40)])
def test_shares_of_extreme_factors(blend):
    """Which sums in float32 would make 0 or NaN."""
    if blend[0] < 1e-38:
        with pytest.raises(InputError, match="one above 0"):
            check_blend((0.0, 1e-46))
    shares = style_shares(check_blend(blend), layers=("relu1_1",), regions=1, styles=2)
    np.testing.assert_array_equal(shares["relu1_1"], [[0.5, 0.5]])
