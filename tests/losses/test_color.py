"""Colour matching, luminance and colour modes against NumPy in double precision."""

import itertools

import jax
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads

from nst_jax import color
from nst_jax.color import match_color

pytestmark = pytest.mark.sampled

LINEAR = ("cholesky", "pca", "symmetric")
YIQ = [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]]


def colourful(height, width, *, seed):
    """Correlated, normally distributed colours, some of them outside [0, 1]."""
    generator = np.random.default_rng(seed)
    mixing = np.linalg.qr(generator.normal(size=(3, 3)))[0] * [0.05, 0.1, 0.2]
    noise = generator.normal(size=(height, width, 3))
    return (noise @ mixing.T + generator.uniform(0.3, 0.7, size=3)).astype(np.float32)


IMAGE = colourful(24, 31, seed=1)
REFERENCE = colourful(20, 17, seed=2)
UNIT = np.random.default_rng(3).uniform(size=(24, 31, 3)).astype(np.float32)
OTHER = np.random.default_rng(4).uniform(size=(24, 31, 3)).astype(np.float32)
GREY = np.repeat(UNIT[..., :1], 3, axis=-1)
IMAGES = {
    "colourful": IMAGE,
    "grey": GREY,
    "nearly grey": GREY + 1e-3 * (OTHER - 0.5),
    "black and white": (GREY > 0.5).astype(np.float32),
    "two channels": IMAGE * np.float32([1, 0, 1]),
    "constant": np.full((24, 31, 3), [0.3, 0.7, 0.1], np.float32),
    "black": np.zeros((24, 31, 3), np.float32),
    "pixel": IMAGE[:1, :1],
    "column": IMAGE[:, :1],
}


def statistics(image, *, eps=0.0):
    """Mean and covariance of the colours."""
    pixels = np.asarray(image, np.float64).reshape(-1, 3)
    return pixels.mean(0), np.cov(pixels.T, bias=True) + eps * np.eye(3)


def square_root(matrix):
    return scipy.linalg.sqrtm(matrix).real


def numpy_map(image, reference, method):
    """The papers' formulas for A."""
    (_, own), (_, wanted) = (statistics(x, eps=color.EPS) for x in (image, reference))
    if method == "cholesky":
        return np.linalg.cholesky(wanted) @ np.linalg.inv(np.linalg.cholesky(own))
    if method == "pca":
        return square_root(wanted) @ np.linalg.inv(square_root(own))
    root = square_root(own)
    inverse = np.linalg.inv(root)
    return inverse @ square_root(root @ wanted @ root) @ inverse


def numpy_match(image, reference, method):
    mean, wanted = statistics(image)[0], statistics(reference)[0]
    matrix = numpy_map(image, reference, method)
    return (np.asarray(image, np.float64) - mean) @ matrix.T + wanted


def numpy_histogram(image, reference):
    """Value by value: the reference's quantile at the fraction of lower values, ties by half."""
    result = np.zeros(image.shape)
    for channel in range(3):
        values, wanted = image[..., channel], np.sort(reference[..., channel], axis=None)
        levels = (np.arange(wanted.size) + 0.5) / wanted.size
        for place, value in np.ndenumerate(values):
            level = ((values < value).sum() + (values == value).sum() / 2) / values.size
            result[(*place, channel)] = np.interp(level, levels, wanted)
    return result


def numpy_lab(image):
    """CIE L*a*b* pixel by pixel, with the sRGB curve as an odd function."""

    def linear(value):
        amount = abs(value)
        amount = amount / 12.92 if amount <= 0.04045 else ((amount + 0.055) / 1.055) ** 2.4
        return amount if value >= 0 else -amount

    def root(ratio):
        return ratio ** (1 / 3) if ratio > 216 / 24389 else (24389 / 27 * ratio + 16) / 116

    lab = np.zeros(image.shape)
    for place in np.ndindex(image.shape[:2]):
        red, green, blue = (linear(float(value)) for value in image[place])
        x = root((0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505)
        y = root(0.2126 * red + 0.7152 * green + 0.0722 * blue)
        z = root((0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.0890)
        lab[place] = 116 * y - 16, 500 * (x - y), 200 * (y - z)
    return lab


@pytest.mark.parametrize("method", LINEAR)
def test_linear_match_is_numpys(variant, method):
    def function(image, reference):
        return match_color(image, reference, method=method)

    actual = variant(function, IMAGE, REFERENCE)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, numpy_match(IMAGE, REFERENCE, method), atol=1e-5)


def test_linear_match_in_double_precision(x64):
    """The methods' formulas; the reference's moments; the least change by the symmetric map."""
    image, reference = np.float64(IMAGE), np.float64(REFERENCE)
    changes = {}
    for method in LINEAR:
        actual = match_color(image, reference, method=method)
        assert actual.dtype == np.float64
        np.testing.assert_allclose(actual, numpy_match(image, reference, method), atol=1e-11)
        (mean, covariance), (wanted_mean, wanted) = statistics(actual), statistics(reference)
        np.testing.assert_allclose(mean, wanted_mean, rtol=1e-12)
        # A (S_x + EPS I) A^T = S_r + EPS I
        matrix = numpy_map(image, reference, method)
        excess = color.EPS * (np.eye(3) - matrix @ matrix.T)
        np.testing.assert_allclose(covariance, wanted + excess, atol=1e-13)
        changes[method] = np.square(actual - image).mean()
    assert changes["symmetric"] < min(changes["cholesky"], changes["pca"])


@pytest.mark.parametrize("method", color.MATCHES)
def test_match_of_degenerate_images_in_float32(method):
    """Against the formulas in double precision."""
    for own, wanted in itertools.permutations(IMAGES, 2):
        actual = match_color(IMAGES[own], IMAGES[wanted], method=method)
        if method == "histogram":
            assert np.isfinite(actual).all()
            continue
        expected = numpy_match(IMAGES[own], IMAGES[wanted], method)
        # A quarter of 1/255, where differences of 1e-3 are magnified a hundredfold.
        np.testing.assert_allclose(actual, expected, atol=1e-3, err_msg=f"{own} to {wanted}")


def test_the_symmetric_map_of_nearly_grey_images(x64):
    """The closed formula in float32 has an error of 0.1 here."""
    generator = np.random.default_rng(5)
    image, reference = (
        np.float32(GREY + generator.normal(scale=0.002, size=GREY.shape)) for _ in range(2)
    )
    actual = match_color(image, reference)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, numpy_match(image, reference, "symmetric"), atol=5e-5)


@pytest.mark.optimized
@pytest.mark.parametrize("method", color.MATCHES)
def test_an_image_matched_to_itself_is_unchanged(method):
    # Only the symmetric map computes a rotation W, which is the identity up to rounding.
    tolerance = 2e-6 if method == "symmetric" else 0
    match = jax.jit(lambda image: match_color(image, image, method=method))
    for name, photo in IMAGES.items():
        np.testing.assert_allclose(match(photo), photo, rtol=0, atol=tolerance, err_msg=name)
    for photo in (colourful(600, 700, seed=6), np.full((600, 700, 3), 0.3, np.float32)):
        np.testing.assert_allclose(match(photo), photo, atol=2e-6)


@pytest.mark.parametrize("method", color.MATCHES)
def test_a_constant_image_becomes_the_references_mean_or_median(method):
    middle = np.median if method == "histogram" else np.mean
    for name in ("constant", "black"):
        actual = match_color(IMAGES[name], REFERENCE, method=method)
        expected = np.broadcast_to(middle(REFERENCE, axis=(0, 1)), actual.shape)
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("method", color.MATCHES)
def test_a_constant_reference_makes_an_image_constant(method):
    actual = match_color(IMAGE, IMAGES["constant"], method=method)
    # The linear maps leave a standard deviation of sqrt(EPS).
    np.testing.assert_allclose(actual, IMAGES["constant"], atol=6e-3)
    assert np.std(actual, axis=(0, 1)).max() < 1.1e-3


def coarse(image, levels):
    return np.round(image * levels).astype(np.float32) / np.float32(levels)


@pytest.mark.parametrize("shape", [(5, 8), (13, 9)])
def test_histogram_match_is_numpys(variant, shape):
    def function(image, reference):
        return match_color(image, reference, method="histogram")

    generator = np.random.default_rng(7)
    for levels in (3, 1000):  # with many and with few ties
        image = coarse(generator.uniform(size=(9, 13, 3)), levels)
        reference = coarse(generator.normal(size=(*shape, 3)), levels)
        actual = variant(function, image, reference)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, numpy_histogram(image, reference), atol=2e-5)


def test_histogram_match_gives_the_references_values():
    other = np.random.default_rng(9).uniform(size=REFERENCE.shape).astype(np.float32)
    actual = match_color(other, REFERENCE[::-1], method="histogram")
    np.testing.assert_array_equal(
        np.sort(actual.reshape(-1, 3), axis=0), np.sort(REFERENCE.reshape(-1, 3), axis=0)
    )


def test_transfer_luminance_in_yiq(variant):
    stylized, content = UNIT @ np.transpose(YIQ), OTHER @ np.transpose(YIQ)
    joined = np.concatenate([stylized[..., :1], content[..., 1:]], axis=-1)
    expected = joined @ np.linalg.inv(YIQ).T

    def function(stylized, content):
        return color.transfer_luminance(stylized, content, space="yiq")

    # The published YIQ matrix has six digits.
    np.testing.assert_allclose(variant(function, UNIT, OTHER), expected, atol=5e-6)


def test_transfer_luminance_in_lab(variant):
    """L* of one image, a* and b* of the other, also outside sRGB."""

    def function(stylized, content):
        return color.transfer_luminance(stylized, content, space="lab")

    joined = np.concatenate([numpy_lab(UNIT)[..., :1], numpy_lab(OTHER)[..., 1:]], axis=-1)
    actual = numpy_lab(np.asarray(variant(function, UNIT, OTHER)))
    np.testing.assert_allclose(actual, joined, atol=1e-3)


def test_transfer_luminance_in_lab_in_double_precision(x64):
    colours = np.array([[[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]])
    known = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18],
             [32.30, 79.19, -107.86]]  # fmt: skip
    np.testing.assert_allclose(numpy_lab(colours), [known], atol=0.05)  # the oracle is right
    stylized, content = np.float64(1.4 * UNIT - 0.2), np.float64(1.4 * OTHER - 0.2)
    joined = np.concatenate([numpy_lab(stylized)[..., :1], numpy_lab(content)[..., 1:]], axis=-1)
    actual = color.transfer_luminance(stylized, content, space="lab")
    assert actual.dtype == np.float64
    # The two parts of the standard's curve meet to seven digits only.
    np.testing.assert_allclose(numpy_lab(np.asarray(actual)), joined, atol=1e-5)


@pytest.mark.parametrize("space", color.SPACES)
def test_the_luminance_of_the_same_image_changes_nothing(space):
    for photo in (UNIT, 2 * UNIT - 0.5, np.linspace(0, 1, 768, dtype=np.float32)):
        photo = photo.reshape(-1, 8, 3)
        actual = color.transfer_luminance(photo, photo, space=space)
        # In Lab, a dark channel has the rounding of bright ones, magnified by the slope 12.92.
        np.testing.assert_allclose(actual, photo, atol=1e-5)


@pytest.mark.parametrize("space", color.SPACES)
def test_transfer_luminance_and_its_gradient_are_finite_for_extreme_values(space):
    values = np.array([-1.5, -0.04045, -1e-9, -0.0, 0.0, 1e-30, 0.04045, 1.0, 2.5], np.float32)
    photos = np.array(list(itertools.product(values, repeat=3)), np.float32)[None]
    transfer = jax.jit(lambda *x: color.transfer_luminance(*x, space=space))
    gradient = jax.jit(jax.grad(lambda *x: transfer(*x).sum(), argnums=(0, 1)))
    for other in (photos[:, ::-1], np.zeros_like(photos), np.ones_like(photos)):
        for pair in ((photos, other), (other, photos)):
            assert np.isfinite(transfer(*pair)).all()
            assert all(np.isfinite(x).all() for x in gradient(*pair))


@pytest.mark.parametrize("space", color.SPACES)
def test_gradients_of_transfer_luminance(x64, space):
    pair = (np.float64(UNIT[:3, :3]), np.float64(OTHER[:3, :3]))
    function = jax.jit(lambda *x: color.transfer_luminance(*x, space=space))
    check_grads(function, pair, order=1, atol=1e-5, rtol=1e-5)


def test_match_luminance(variant):
    actual = np.asarray(variant(color.match_luminance, IMAGE, REFERENCE))
    weights = np.array([0.299, 0.587, 0.114])
    own, wanted = IMAGE @ weights, REFERENCE @ weights
    expected = wanted.std() / own.std() * (own - own.mean()) + wanted.mean()
    np.testing.assert_allclose(actual, np.stack([expected] * 3, axis=-1), atol=1e-5)


def test_match_luminance_of_constant_images():
    for reference in (REFERENCE, *IMAGES.values()):
        actual = color.match_luminance(IMAGES["constant"], reference)
        mean = (reference @ np.array([0.299, 0.587, 0.114])).mean()
        np.testing.assert_allclose(actual, np.full(actual.shape, mean), atol=1e-6)
    actual = color.match_luminance(IMAGE, IMAGES["constant"])
    np.testing.assert_allclose(actual, np.full(actual.shape, 0.512), atol=1e-6)


def test_half_precision_is_computed_in_float32():
    image, reference = (jax.numpy.asarray(x, jax.numpy.bfloat16) for x in (IMAGE, REFERENCE))
    for method in color.MATCHES:
        assert match_color(image, reference, method=method).dtype == np.float32
    assert color.luminance(image).dtype == np.float32
    assert color.transfer_luminance(image, image, space="lab").dtype == np.float32
    assert color.match_luminance(image, reference).dtype == np.float32


def test_modes_match_the_styles_before_or_restore_the_colours_after():
    styles = [REFERENCE, UNIT]
    for mode in color.MODES:
        kind, _, option = mode.partition("-")
        if kind == "luminance":
            continue
        content, prepared = color.prepare_colors(IMAGE, styles, mode=mode)
        assert content is IMAGE
        if kind == "match":
            styles_to = [match_color(style, IMAGE, method=option) for style in styles]
            jax.tree.map(np.testing.assert_array_equal, prepared, styles_to)
        else:
            assert all(a is b for a, b in zip(prepared, styles, strict=True))
        restored = color.restore_colors(UNIT, OTHER, mode=mode)
        if kind == "keep":
            expected = color.transfer_luminance(UNIT, OTHER, space=option)
            np.testing.assert_array_equal(restored, expected)
        else:
            assert restored is UNIT


def test_luminance_mode():
    content, (style,) = color.prepare_colors(UNIT, [REFERENCE], mode="luminance")
    grey = UNIT @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(content, np.stack([grey] * 3, axis=-1), atol=1e-6)
    assert style.shape == REFERENCE.shape
    np.testing.assert_allclose(np.std(style[..., 0]), grey.std(), rtol=1e-4)
    np.testing.assert_allclose(np.mean(style[..., 0]), grey.mean(), rtol=1e-4)
    # If the optimisation changes nothing, the result is the content.
    restored = color.restore_colors(content, UNIT, mode="luminance")
    np.testing.assert_allclose(restored, UNIT, atol=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="method is 'mean': expected one of cholesky, pca"):
        match_color(IMAGE, REFERENCE, method="mean")
    with pytest.raises(ValueError, match="space is 'hsv': expected one of yiq, lab"):
        color.transfer_luminance(UNIT, OTHER, space="hsv")
    for mode in ("keep", "match", "keep-hsv", "luminance-yiq", ""):
        with pytest.raises(ValueError, match="expected one of none, keep-yiq"):
            color.prepare_colors(IMAGE, [REFERENCE], mode=mode)
        with pytest.raises(ValueError, match="expected one of none, keep-yiq"):
            color.restore_colors(UNIT, OTHER, mode=mode)
