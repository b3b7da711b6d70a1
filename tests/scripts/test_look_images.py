"""The images on which looks are compared: always the same, and what they are meant to be."""

import numpy as np
import pytest
from look_images import CONTENTS, STYLES, write_images
from look_portrait import capsule, ellipsoid, join
from PIL import Image


def test_some_images_are_drawn_and_some_copied(tmp_path):
    paths = write_images(tmp_path / "a", ("lake", "paper"))
    again = write_images(tmp_path / "b", ("lake", "paper"))
    for name, path in paths.items():
        assert path.read_bytes() == again[name].read_bytes()
        with Image.open(path) as image:
            assert image.size == (640, 480)
    # Flat: nearly all neighbours have the same colour, but for the paper's fibres.
    pixels = np.asarray(Image.open(paths["paper"]), float) / 255
    steps = np.abs(np.diff(pixels, axis=1)).max(axis=-1)
    assert (steps < 0.03).mean() > 0.9 and (steps > 0.3).mean() > 0.01


def test_distances_of_a_portrait_are_those_of_geometry():
    points = np.random.default_rng(0).normal(size=(3, 50))
    ball = np.linalg.norm(points - np.array([[1], [2], [3]]), axis=0) - 0.5
    np.testing.assert_allclose(ellipsoid(points, (1, 2, 3), (0.5, 0.5, 0.5)), ball, rtol=1e-4)
    stick = capsule(np.array([[0.0, 3, 0.5], [1, 0, 0.5], [0, 0, 0]]), (-1, 0, 0), (1, 0, 0), 0.25)
    np.testing.assert_allclose(stick, [0.75, 1.75, 0.25], rtol=1e-6)
    apart = np.array([1.0, 5.0]), np.array([4.0, 2.0])
    np.testing.assert_allclose(join(*apart, 0.5), [1, 2])
    assert join(np.ones(1), np.ones(1), 0.5)[0] == pytest.approx(1 - 0.5 / 4)


@pytest.mark.slow
def test_all_images_have_their_character(tmp_path):
    paths = write_images(tmp_path)
    assert list(paths) == [*CONTENTS, *STYLES]
    grey = {name: np.asarray(Image.open(path).convert("L"), float) for name, path in paths.items()}
    assert (
        grey["candle"].mean() < 60 < 100 < min(grey[n].mean() for n in ("fields", "paper", "ink"))
    )
    assert all(image.std() > 25 for image in grey.values())
    # A face is lighter than the wall behind it.
    assert grey["portrait"][180:320, 270:400].mean() > 1.2 * grey["portrait"][:, :100].mean()
