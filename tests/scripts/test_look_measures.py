"""The measures that judge looks, against plain loops in float64."""

import math

import numpy as np
import pytest
from look_judge import make_judge
from look_measures import (
    content_change,
    directions,
    sample_grid,
    self_similarity,
    sliced_wasserstein,
    style_distance,
)

RNG = np.random.default_rng(0)
ONE, OTHER = RNG.gamma(1.0, size=(6, 7, 5)), RNG.gamma(2.0, size=(4, 5, 5))


def plain_sliced_wasserstein(first, second, vectors):
    """Both sets repeated to a common size, then sorted and compared in order."""
    first, second = first.reshape(-1, first.shape[-1]), second.reshape(-1, second.shape[-1])
    size = math.lcm(len(first), len(second))
    total = 0.0
    for vector in vectors.T:
        sorts = [
            sorted(
                sum(a * b for a, b in zip(row, vector)) for row in np.repeat(part, times, axis=0)
            )
            for part, times in ((first, size // len(first)), (second, size // len(second)))
        ]
        total += sum((a - b) ** 2 for a, b in zip(*sorts)) / size
    return (total / vectors.shape[1]) ** 0.5


def plain_self_similarity(rows):
    """Cosine distances of every two rows, each column over its sum."""
    n = len(rows)
    matrix = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            norms = math.sqrt(float(rows[i] @ rows[i])) * math.sqrt(float(rows[j] @ rows[j]))
            matrix[i, j] = 1 - float(rows[i] @ rows[j]) / norms
    return matrix / matrix.sum(axis=0, keepdims=True)


def test_directions_are_fixed_unit_vectors():
    found = directions(5, count=9)
    np.testing.assert_allclose((found**2).sum(axis=0), 1)
    np.testing.assert_array_equal(found, directions(5, count=9))
    assert not np.allclose(found, directions(5, count=9, seed=1))


def test_sliced_wasserstein_is_that_of_plain_loops():
    vectors = directions(5, count=4)
    for first, second in ((ONE, OTHER), (OTHER, ONE), (ONE, ONE[::-1] * 2)):
        expected = plain_sliced_wasserstein(first, second, vectors)
        assert expected > 0.1
        assert sliced_wasserstein(first, second, vectors) == pytest.approx(expected, rel=1e-9)


def test_sliced_wasserstein_sees_values_and_not_places():
    vectors = directions(5)
    shuffled = RNG.permutation(ONE.reshape(-1, 5)).reshape(7, 6, 5)
    assert sliced_wasserstein(ONE, shuffled, vectors) == pytest.approx(0, abs=1e-12)
    twice = np.concatenate([ONE, ONE])  # as of an image laid out twice
    assert sliced_wasserstein(ONE, twice, vectors) == pytest.approx(0, abs=1e-12)
    # All features moved by one vector: the distance is its mean length along the projections.
    move = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    expected = np.sqrt(np.mean((move @ vectors) ** 2))
    assert sliced_wasserstein(ONE, ONE + move, vectors) == pytest.approx(expected, rel=1e-12)


def test_style_distance_goes_from_content_at_one_to_style_at_zero():
    content, style = {"a": ONE, "b": 100 * ONE[::2]}, {"a": OTHER, "b": OTHER[:2]}
    assert style_distance(content, style, content) == pytest.approx(1, rel=1e-12)
    assert style_distance(style, style, content) == 0
    # Layers count the same whatever the size of their features: here "b" has all of the distance.
    half = {"a": OTHER, "b": content["b"]}
    assert style_distance(half, style, content) == pytest.approx(0.5, rel=1e-12)
    # Along the way on which sorted values move to sorted values, it falls in a straight line.
    start, end = (np.sort(RNG.gamma(k, size=12))[:, None, None] for k in (1.0, 4.0))
    for share in (0.25, 0.5, 0.75):
        blend = {"a": (1 - share) * start + share * end}
        found = style_distance(blend, {"a": end}, {"a": start})
        assert found == pytest.approx(1 - share, rel=1e-9)


def test_grid_is_bilinear_between_the_middles_of_features():
    np.testing.assert_allclose(sample_grid(ONE[:6, :6], grid=6), ONE[:6, :6].reshape(36, 5))
    y, x = np.meshgrid(np.arange(10) + 0.5, np.arange(20) + 0.5, indexing="ij")
    ramp = np.stack([3 * y - x, x], axis=-1)  # exact between its values
    places = (np.arange(6) + 0.5) / 6
    v, u = np.meshgrid(10 * places, 20 * places, indexing="ij")
    expected = np.stack([3 * v - u, u], axis=-1).reshape(36, 2)
    np.testing.assert_allclose(sample_grid(ramp, grid=6), expected, rtol=1e-12)
    assert sample_grid(ONE[:1, :1], grid=3).shape == (9, 5)


def test_self_similarity_is_that_of_plain_loops():
    layers = [ONE, OTHER]
    rows = np.concatenate([sample_grid(layer, grid=4) for layer in layers], axis=1)
    expected = plain_self_similarity(rows)
    assert expected.max() > 0.05
    np.testing.assert_allclose(self_similarity(layers, grid=4), expected, rtol=1e-9, atol=1e-15)


def test_content_change_sees_places_and_not_channels():
    turn, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
    other = RNG.gamma(1.0, size=ONE.shape)
    for same in (ONE, 7 * ONE, ONE @ turn):  # the same cosines
        assert content_change([same], [ONE], [other]) == pytest.approx(0, abs=1e-9)
    assert content_change([ONE[::-1]], [ONE], [other]) > 0.3
    assert content_change([other], [ONE], [other]) == 1


def test_judge_of_images_between_content_and_style(variables, content, style):
    """The more of an image is the style's, the less its one measure and the more the other.

    Parts of both and no mean of pixels, which has less contrast than either.
    """
    content, style = content[:, :32], style[:36, :32]
    judge = make_judge(variables, {"c": content, "s": style})
    blends = [np.concatenate([style[:, :x], content[:, x:]], axis=1) for x in range(0, 33, 8)]
    found = [judge(blend, "c", "s") for blend in blends]
    distances = [one["style"] for one in found]
    changes = [one["content_change"] for one in found]
    assert distances == sorted(distances, reverse=True) and changes == sorted(changes)
    assert distances[0] == pytest.approx(1, rel=1e-5) and changes[0] == pytest.approx(0, abs=1e-6)
    assert distances[-1] == pytest.approx(0, abs=1e-6)
    assert changes[-1] == pytest.approx(1, rel=1e-5)
