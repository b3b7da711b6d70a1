"""Damaged image files: an image or one line that says why not, in little time and memory."""

import resource
import time

import numpy as np
import pytest
from helpers.damage import FORMATS, damaged, image_bytes, sample_pixels
from PIL import Image, features

from nst_jax.errors import InputError
from nst_jax.images.profiles import srgb_profile
from nst_jax.images.read import image_shape, limit_pixels, load_rgba

COUNT = 20  # of each format


def read_damaged(folder, format, *, seeds):
    """Read damaged files; returns how many could be read.

    Raises:
      AssertionError: where one is neither refused nor an image.
    """
    sound, path, readable = image_bytes(format, profile=srgb_profile()), folder / "damaged", 0
    for seed in seeds:
        path.write_bytes(damaged(sound, seed=seed))
        for read in (image_shape, load_rgba):
            try:
                found = read(path)
            except InputError as error:
                message = str(error)
                assert len(message.splitlines()) == 1 and str(path) in message, (format, seed)
                continue
            if read is load_rgba:
                readable += 1
                assert found.rgb.ndim == 3 and found.rgb.shape[-1] == 3
                assert 0 <= found.rgb.min() <= found.rgb.max() <= 1
                assert found.alpha is None or found.alpha.shape == found.rgb.shape[:2]
    return readable


@pytest.mark.parametrize("format", FORMATS)
def test_is_refused_or_read(tmp_path, format):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow has no AVIF here")
    limit_pixels(1)
    peak, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert read_damaged(tmp_path, format, seeds=range(COUNT)) < COUNT
    assert time.process_time() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300_000  # KiB


@pytest.mark.parametrize("format", FORMATS)
def test_sound_files_are_read(tmp_path, format):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow has no AVIF here")
    (tmp_path / "sound").write_bytes(image_bytes(format, profile=srgb_profile()))
    rgb, alpha = load_rgba(tmp_path / "sound")
    deep = format.endswith("16")
    turned = format in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")
    assert rgb.shape == ((30, 20, 3) if turned else (20, 30, 3)) and (alpha is not None) == deep
    if format in ("PNG16", "TIFF16"):
        expected = sample_pixels(channels=4)[..., :3] / 255
        seen = alpha > 0
        np.testing.assert_allclose(rgb[seen], expected[seen], atol=1e-6)


def test_damage_damages_and_repeats():
    data = image_bytes("PNG")
    results = [damaged(data, seed=seed) for seed in range(100)]
    assert results == [damaged(data, seed=seed) for seed in range(100)]
    assert sum(result == data for result in results) < 5 and len(set(results)) > 80


@pytest.mark.parametrize(
    "data", [b"<!---->" * 500, b"P6" + b" " * 4000 + b"x", b"P6" + b"#\n" * 2000, b"<" * 4000]
)
def test_texts_that_take_long_to_match(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    started = time.process_time()
    with pytest.raises(InputError, match="a.png"):
        load_rgba(tmp_path / "a.png")
    assert time.process_time() - started < 2


def test_a_chunk_of_text_that_swells_is_not_kept(tmp_path):
    """A PNG's compressed text of 100 MB."""
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("x", "0" * 100_000_000, zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(InputError, match="cannot read the image .*a.png"):
        load_rgba(tmp_path / "a.png")
