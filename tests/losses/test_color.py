"""The colours' modes against NumPy in double precision."""

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
YCBCR = [
    [0.299, 0.587, 0.114],
    [-0.5 * 0.299 / 0.886, -0.5 * 0.587 / 0.886, 0.5],
    [0.5, -0.5 * 0.587 / 0.701, -0.5 * 0.114 / 0.701],
]


def colourful(height, width, *, seed):
    """Correlated normal colours, a little of them outside [0, 1]."""
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
    """Mean and covariance of the colours, pixel by pixel."""
    pixels = [pixel for row in np.asarray(image, np.float64) for pixel in row]
    mean = sum(pixels) / len(pixels)
    covariance = sum(np.outer(pixel - mean, pixel - mean) for pixel in pixels) / len(pixels)
    return mean, covariance + eps * np.eye(3)


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


def recovered_map(image, result):
    """A by least squares from what came out."""
    own, out = (np.asarray(x, np.float64).reshape(-1, 3) for x in (image, result))
    own, out = own - own.mean(axis=0), out - out.mean(axis=0)
    return np.linalg.lstsq(own, out, rcond=None)[0].T


def numpy_histogram(image, reference):
    """Every value on its own: the share of values below, ties by half, looked up."""
    result = np.zeros(image.shape)
    for channel in range(3):
        values, wanted = image[..., channel], np.sort(reference[..., channel], axis=None)
        shares = (np.arange(wanted.size) + 0.5) / wanted.size
        for place, value in np.ndenumerate(values):
            share = ((values < value).sum() + (values == value).sum() / 2) / values.size
            result[(*place, channel)] = np.interp(share, shares, wanted)
    return result


def numpy_lab(image):
    """CIE L*a*b*, one number after another; the curve of sRGB odd around zero."""

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


def lab_of_roots(roots):
    x, y, z = np.moveaxis(np.asarray(roots, np.float64), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@pytest.mark.parametrize("method", LINEAR)
def test_linear_match(variant, method):
    def function(image, reference):
        return match_color(image, reference, method=method)

    actual = variant(function, IMAGE, REFERENCE)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, numpy_match(IMAGE, REFERENCE, method), atol=1e-5)
    for own, wanted in zip(statistics(actual), statistics(REFERENCE), strict=True):
        np.testing.assert_allclose(own, wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("method", LINEAR)
def test_linear_match_in_double_precision(x64, method):
    image, reference = np.float64(IMAGE), np.float64(REFERENCE)
    actual = match_color(image, reference, method=method)
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, numpy_match(image, reference, method), atol=1e-11)
    (mean, covariance), (wanted_mean, wanted) = statistics(actual), statistics(reference)
    np.testing.assert_allclose(mean, wanted_mean, rtol=1e-12)
    # A (S_x + EPS I) A^T = S_r + EPS I
    matrix = numpy_map(image, reference, method)
    excess = color.EPS * (np.eye(3) - matrix @ matrix.T)
    np.testing.assert_allclose(covariance, wanted + excess, atol=1e-13)
    assert np.abs(excess).max() < 1e-3 * np.abs(wanted).max()


def test_shapes_of_the_linear_maps(x64):
    image, reference = np.float64(IMAGE), np.float64(REFERENCE)
    maps = {
        method: recovered_map(image, match_color(image, reference, method=method))
        for method in LINEAR
    }
    np.testing.assert_allclose(maps["symmetric"], maps["symmetric"].T, atol=1e-12)
    assert np.linalg.eigvalsh(maps["symmetric"]).min() > 0
    np.testing.assert_allclose(np.triu(maps["cholesky"], 1), 0, atol=1e-12)
    assert np.diagonal(maps["cholesky"]).min() > 0
    for method, matrix in maps.items():
        np.testing.assert_allclose(matrix, numpy_map(image, reference, method), atol=1e-11)
    assert np.abs(maps["pca"] - maps["pca"].T).max() > 0.01


def test_the_symmetric_map_moves_colours_least(x64):
    def distance(method):
        matched = match_color(np.float64(IMAGE), np.float64(REFERENCE), method=method)
        return np.square(np.asarray(matched) - IMAGE).mean()

    assert distance("symmetric") < min(distance("cholesky"), distance("pca"))


@pytest.mark.parametrize("method", LINEAR)
def test_float32_is_close_to_double_precision(method):
    for own, wanted in itertools.permutations(IMAGES, 2):
        actual = match_color(IMAGES[own], IMAGES[wanted], method=method)
        expected = numpy_match(IMAGES[own], IMAGES[wanted], method)
        # A quarter of 1/255, where differences of colours of 1e-3 are raised a hundredfold.
        np.testing.assert_allclose(actual, expected, atol=1e-3, err_msg=f"{own} to {wanted}")


def test_histogram_match_is_finite():
    for own, wanted in itertools.permutations(IMAGES.values(), 2):
        assert np.isfinite(match_color(own, wanted, method="histogram")).all()


def test_the_symmetric_map_of_nearly_grey_images(x64):
    # The formula in float32 is off by 0.1 here.
    generator = np.random.default_rng(5)
    image, reference = (
        np.float32(GREY + generator.normal(scale=0.002, size=GREY.shape)) for _ in range(2)
    )
    actual = match_color(image, reference)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, numpy_match(image, reference, "symmetric"), atol=5e-5)


@pytest.mark.optimized
@pytest.mark.parametrize("method", color.MATCHES)
def test_a_image_matched_to_itself_stays(variant, method):
    def function(image):
        return match_color(image, image, method=method)

    # Symmetric is the one whose W is computed.
    tolerance = 2e-6 if method == "symmetric" else 0
    for name, photo in IMAGES.items():
        actual = variant(function, photo)
        np.testing.assert_allclose(actual, photo, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("method", LINEAR)
def test_a_large_image_matched_to_itself_stays(method):
    for photo in (colourful(600, 700, seed=6), np.full((600, 700, 3), 0.3, np.float32)):
        actual = match_color(photo, photo.copy(), method=method)
        np.testing.assert_allclose(actual, photo, atol=2e-6)


@pytest.mark.parametrize("method", color.MATCHES)
def test_a_constant_image_takes_the_references_middle(variant, method):
    def function(image, reference):
        return match_color(image, reference, method=method)

    middle = np.median if method == "histogram" else np.mean
    for name in ("constant", "black"):
        actual = variant(function, IMAGES[name], REFERENCE)
        expected = np.broadcast_to(middle(REFERENCE, axis=(0, 1)), actual.shape)
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("method", color.MATCHES)
def test_a_constant_reference_takes_all_colour(method):
    actual = match_color(IMAGE, IMAGES["constant"], method=method)
    # The linear maps leave the standard deviation sqrt(EPS).
    np.testing.assert_allclose(actual, IMAGES["constant"], atol=6e-3)
    assert np.std(actual, axis=(0, 1)).max() < 1.1e-3


def coarse(image, levels):
    return np.round(image * levels).astype(np.float32) / np.float32(levels)


@pytest.mark.parametrize("shape", [(5, 8), (13, 9), (40, 1)])
def test_histogram_match(variant, shape):
    def function(image, reference):
        return match_color(image, reference, method="histogram")

    generator = np.random.default_rng(7)
    for levels in (3, 1000):  # many ties and few
        image = coarse(generator.uniform(size=(9, 13, 3)), levels)
        reference = coarse(generator.normal(size=(*shape, 3)), levels)
        actual = variant(function, image, reference)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, numpy_histogram(image, reference), atol=2e-5)


def test_histogram_match_gives_the_references_values():
    shuffled = np.random.default_rng(8).permuted(REFERENCE.reshape(-1, 3), axis=0)
    other = np.random.default_rng(9).uniform(size=REFERENCE.shape).astype(np.float32)
    actual = match_color(other, shuffled.reshape(17, 20, 3), method="histogram")
    np.testing.assert_array_equal(
        np.sort(actual.reshape(-1, 3), axis=0), np.sort(REFERENCE.reshape(-1, 3), axis=0)
    )


def test_histogram_match_keeps_flat_areas_flat():
    image = coarse(UNIT, 4)
    actual = np.asarray(match_color(image, REFERENCE, method="histogram"))
    for channel in range(3):
        pairs = set(zip(image[..., channel].flat, actual[..., channel].flat, strict=True))
        assert len(pairs) == len(np.unique(image[..., channel]))


def test_luminance(variant):
    actual = variant(color.luminance, IMAGE)
    np.testing.assert_allclose(actual, IMAGE @ np.array([0.299, 0.587, 0.114]), rtol=1e-6)


@pytest.mark.parametrize("matrix", [YIQ, YCBCR])
def test_transfer_luminance_in_linear_spaces(variant, matrix):
    """Spaces of the same luminance and another basis of the chroma are one."""
    stylized, content = UNIT @ np.transpose(matrix), OTHER @ np.transpose(matrix)
    joined = np.concatenate([stylized[..., :1], content[..., 1:]], axis=-1)
    expected = joined @ np.linalg.inv(matrix).T

    def function(stylized, content):
        return color.transfer_luminance(stylized, content, space="yiq")

    # The published matrix of YIQ has six digits.
    np.testing.assert_allclose(variant(function, UNIT, OTHER), expected, atol=5e-6)


def test_lab_of_known_colours(x64):
    colours = np.array([[[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]])
    known = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18],
             [32.30, 79.19, -107.86]]  # fmt: skip
    for lab in (lab_of_roots(color._cube_roots(colours)), numpy_lab(colours)):
        np.testing.assert_allclose(lab, [known], atol=0.05)


def test_lab(variant):
    photo = 2 * UNIT - 0.5
    actual = lab_of_roots(variant(color._cube_roots, photo))
    np.testing.assert_allclose(actual, numpy_lab(photo), atol=3e-4)


def test_transfer_luminance_in_lab(variant):
    def function(stylized, content):
        return color.transfer_luminance(stylized, content, space="lab")

    # Also what is outside sRGB comes back with the L*, a* and b* that it should have.
    joined = np.concatenate([numpy_lab(UNIT)[..., :1], numpy_lab(OTHER)[..., 1:]], axis=-1)
    actual = numpy_lab(np.asarray(variant(function, UNIT, OTHER)))
    np.testing.assert_allclose(actual, joined, atol=1e-3)


def test_transfer_luminance_in_lab_in_double_precision(x64):
    stylized, content = np.float64(1.4 * UNIT - 0.2), np.float64(1.4 * OTHER - 0.2)
    joined = np.concatenate([numpy_lab(stylized)[..., :1], numpy_lab(content)[..., 1:]], axis=-1)
    actual = color.transfer_luminance(stylized, content, space="lab")
    assert actual.dtype == np.float64
    # The standard's two halves of the curve meet to seven digits only.
    np.testing.assert_allclose(numpy_lab(np.asarray(actual)), joined, atol=1e-5)


@pytest.mark.parametrize("space", color.SPACES)
def test_the_luminance_of_the_same_image_changes_nothing(variant, space):
    def function(image):
        return color.transfer_luminance(image, image, space="yiq")

    for photo in (UNIT, 2 * UNIT - 0.5, np.linspace(0, 1, 768, dtype=np.float32)):
        photo = photo.reshape(-1, 8, 3)
        # In Lab a dark channel beside bright ones has their rounding, times the curve's 12.92.
        np.testing.assert_allclose(variant(function, photo), photo, atol=1e-5)


@pytest.mark.parametrize("space", color.SPACES)
def test_the_luminance_of_the_same_image_in_double_precision(x64, space):
    photo = np.float64(2 * UNIT - 0.5)
    actual = color.transfer_luminance(photo, photo, space="yiq")
    np.testing.assert_allclose(actual, photo, rtol=0, atol=1e-13)


@pytest.mark.parametrize("space", color.SPACES)
def test_extreme_values_stay_finite(space):
    values = np.array([-1.5, -0.04045, -1e-9, -0.0, 0.0, 1e-30, 0.04045, 1.0, 2.5], np.float32)
    photos = np.array(list(itertools.product(values, repeat=3)), np.float32)[None]
    for other in (photos[:, ::-1], np.zeros_like(photos), np.ones_like(photos)):
        for pair in ((photos, other), (other, photos)):
            assert np.isfinite(color.transfer_luminance(*pair, space="yiq")).all()
            gradient = jax.grad(lambda *x: color.transfer_luminance(*x, space="yiq").sum())(*pair)
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize("space", color.SPACES)
def test_gradients_of_transfer_luminance(x64, space):
    pair = (np.float64(UNIT[:3, :3]), np.float64(OTHER[:3, :3]))
    check_grads(
        lambda *x: color.transfer_luminance(*x, space="yiq"), pair, order=1, atol=1e-5, rtol=1e-5
    )


def test_match_luminance(variant):
    actual = np.asarray(variant(color.match_luminance, IMAGE, REFERENCE))
    weights = np.array([0.299, 0.587, 0.114])
    own, wanted = IMAGE @ weights, REFERENCE @ weights
    expected = wanted.std() / own.std() * (own - own.mean()) + wanted.mean()
    np.testing.assert_allclose(actual, np.stack([expected] * 3, axis=-1), atol=1e-5)
    np.testing.assert_allclose(color.luminance(actual).std(), wanted.std(), rtol=1e-4)
    np.testing.assert_allclose(color.luminance(actual).mean(), wanted.mean(), rtol=1e-4)


def test_match_luminance_of_constant_images(variant):
    for name in ("constant", "black"):
        for reference in (REFERENCE, *IMAGES.values()):
            actual = variant(color.match_luminance, IMAGES[name], reference)
            mean = (reference @ np.array([0.299, 0.587, 0.114])).mean()
            np.testing.assert_allclose(actual, np.full(actual.shape, mean), atol=1e-6)
    actual = variant(color.match_luminance, IMAGE, IMAGES["constant"])
    np.testing.assert_allclose(actual, np.full(actual.shape, 0.512), atol=1e-6)


def test_half_precision_is_computed_in_float32():
    image, reference = (jax.numpy.asarray(x, jax.numpy.bfloat16) for x in (IMAGE, REFERENCE))
    for method in color.MATCHES:
        assert match_color(image, reference, method=method).dtype == np.float32
    assert color.luminance(image).dtype == np.float32
    assert color.transfer_luminance(image, image, space="lab").dtype == np.float32
    assert color.match_luminance(image, reference).dtype == np.float32


@pytest.mark.parametrize("mode", ["none", "keep-yiq", "keep-lab"])
def test_modes_that_prepare_nothing(mode):
    styles = [REFERENCE, UNIT]
    content, prepared = color.prepare_colors(IMAGE, styles, mode=mode)
    assert content is IMAGE
    assert all(a is b for a, b in zip(prepared, styles, strict=True))


@pytest.mark.parametrize("method", color.MATCHES)
def test_modes_that_match_the_styles(method):
    styles = (REFERENCE, UNIT)
    content, prepared = color.prepare_colors(IMAGE, styles, mode=f"match-{method}")
    assert content is IMAGE
    for actual, style in zip(prepared, styles, strict=True):
        np.testing.assert_array_equal(actual, match_color(style, IMAGE, method=method))
    assert color.restore_colors(UNIT, IMAGE, mode=f"match-{method}") is UNIT


@pytest.mark.parametrize("space", color.SPACES)
def test_modes_that_keep_the_contents_colours(space):
    actual = color.restore_colors(UNIT, OTHER, mode=f"keep-{space}")
    expected = color.transfer_luminance(UNIT, OTHER, space=space)
    np.testing.assert_array_equal(actual, expected)


def test_luminance_mode():
    content, (style,) = color.prepare_colors(UNIT, [REFERENCE], mode="luminance")
    grey = UNIT @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(content, np.stack([grey] * 3, axis=-1), atol=1e-6)
    assert style.shape == REFERENCE.shape
    np.testing.assert_allclose(np.std(style[..., 0]), grey.std(), rtol=1e-4)
    np.testing.assert_allclose(np.mean(style[..., 0]), grey.mean(), rtol=1e-4)
    # An optimisation that changes nothing gives the content.
    restored = color.restore_colors(content, UNIT, mode="luminance")
    np.testing.assert_allclose(restored, UNIT, atol=1e-6)


def test_no_colour_mode_returns_the_result():
    assert color.restore_colors(UNIT, IMAGE, mode="none") is UNIT


def test_the_modes():
    assert color.MODES == (
        "none", "keep-yiq", "keep-lab",
        "match-cholesky", "match-pca", "match-symmetric", "match-histogram", "luminance",
    )  # fmt: skip


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
