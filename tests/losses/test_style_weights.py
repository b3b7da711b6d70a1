"""Style weights of regions and layers, and their checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nst_jax.errors import InputError
from nst_jax.losses.guides import check_blend, style_weights

LAYERS = ("relu1_1", "relu2_1", "relu3_1")


def check(blend, expected, *, regions=1, styles=2):
    """Check the weights of all layers."""
    found = style_weights(blend, layers=LAYERS, regions=regions, styles=styles)
    assert tuple(found) == LAYERS
    for table in found.values():
        assert table.shape == (regions, styles) and table.dtype == np.float32
        np.testing.assert_allclose(table, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "regions, styles, expected",
    [(1, 4, [[0.25] * 4]), (3, 1, [[1]] * 3), (3, 3, np.eye(3))],
)
def test_by_default_regions_have_their_own_styles_or_all_alike(regions, styles, expected):
    check(None, expected, regions=regions, styles=styles)


def test_weights_of_all_regions_or_of_each():
    check((1.0, 3.0), [[0.25, 0.75]])
    check((1.0, 0.0), [[1, 0]] * 3, regions=3)
    check([[1.0, 3.0], [2.0, 0.0]], [[0.25, 0.75], [1, 0]], regions=2)
    for kind in (np.array, jnp.array, np.uint8):
        check(kind([1, 3]), [[0.25, 0.75]])


def test_weights_of_layers():
    """Other layers have the default; if all layers are named, none is needed."""
    found = style_weights(
        {"relu2_1": (3, 1), "relu3_1": np.array([[1, 0]])}, layers=LAYERS, regions=1, styles=2
    )
    for layer, expected in zip(LAYERS, ([[0.5, 0.5]], [[0.75, 0.25]], [[1, 0]]), strict=True):
        np.testing.assert_allclose(found[layer], expected)
    check({}, np.eye(2), regions=2)
    table = [[1, 0], [0, 1], [1, 1]]
    check(dict.fromkeys(LAYERS, table), [[1, 0], [0, 1], [0.5, 0.5]], regions=3)


def test_weights_are_traced():
    traced = jax.jit(lambda table: style_weights(table, layers=LAYERS, regions=1, styles=2))
    for factors in [(1.0, 1.0), (1.0, 3.0)]:
        expected = [np.array(factors) / sum(factors)]
        np.testing.assert_allclose(traced(factors)["relu2_1"], expected, rtol=1e-6)
    assert traced._cache_size() == 1


@pytest.mark.parametrize(
    "blend, regions, styles, message",
    [
        ((1, 2, 3), 1, 2, "3 blend factors for 2 styles: expected one each"),
        (
            [[1, 2]],
            3,
            2,
            r"shape \(1, 2\) for 3 regions and 2 styles: expected \[2\] or \[3, 2\]",
        ),
        (1.0, 1, 2, r"shape \(\) for 1 regions"),
        (None, 3, 2, "2 styles for 3 regions: expected one style, one for each region, or to"),
        ({"relu2_1": (1, 1)}, 3, 2, "2 styles for 3 regions"),
        (
            {"relu2_1": (1, 1), "relu4_1": (1, 1)},
            1,
            2,
            "layer relu4_1, which is no style layer: expected one of relu1_1, relu2_1, relu3_1",
        ),
    ],
)
def test_wrong_shapes_and_layers_are_refused(blend, regions, styles, message):
    with pytest.raises(InputError, match=message):
        style_weights(blend, layers=LAYERS, regions=regions, styles=styles)


@pytest.mark.parametrize(
    "blend", [(1, 2), [[1, 0], [0, 1]], jnp.array([[1.0, 2.0]]), {"relu1_1": (1, 0)}]
)
def test_valid_weights_are_scaled_in_double_precision(blend):
    found = check_blend(blend)
    pairs = [(found[x], blend[x]) for x in blend] if isinstance(blend, dict) else [(found, blend)]
    for table, given in pairs:
        assert isinstance(table, np.ndarray) and table.dtype == float
        given = np.asarray(given, float)
        np.testing.assert_allclose(table, given / given.sum(-1, keepdims=True), rtol=1e-15)


@pytest.mark.parametrize(
    "blend, shown",
    [
        ((1, -1), r"\(1, -1\)"),
        ((1.0, np.nan), r"\(1.0, nan\)"),
        ((), r"\(\)"),
        ([[1, 2], [0, 0]], r"\(\[1, 2\], \[0, 0\]\)"),
        (np.array([[1, 2], [0, 0]]), r"\[0\D+0\D"),
        ([[1, 2], [3]], r"\(\[1, 2\], \[3\]\)"),
        (("much", "little"), r"\('much', 'little'\)"),
        ((1.0, 1e39), "style_blend"),  # infinite in float32
        ((1e-60, 0.0), "style_blend"),  # zero in float32
        ({"relu1_1": (1, 1), "relu2_1": (1, -2)}, r"\(1, -2\)"),
    ],
)
def test_invalid_weights_are_refused(blend, shown):
    with pytest.raises(InputError, match=shown) as caught:
        check_blend(blend)
    message = str(caught.value)
    assert message.startswith("style_blend is ") and len(message.splitlines()) == 1
    assert message.endswith("expected finite numbers, 0 or more, and one above 0")


@pytest.mark.parametrize("blend", [(3e38, 3e38), (1e-40, 1e-40)])
def test_extreme_weights_neither_overflow_nor_vanish(blend):
    check(check_blend(blend), [[0.5, 0.5]])
