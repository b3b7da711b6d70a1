"""Damaged image files are read or refused in one line, in bounded time and memory."""

import resource
import time

import pytest
from helpers.damage import FORMATS, damaged, image_bytes
from PIL import Image, PngImagePlugin, features

from nst_jax.errors import InputError
from nst_jax.images.profiles import srgb_profile
from nst_jax.images.read import image_shape, limit_pixels, load_rgba

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
every_format = pytest.mark.parametrize(
    "format", [pytest.param(name, marks=needs_avif if name == "AVIF" else ()) for name in FORMATS]
)


def check_damaged(folder, format, *, seeds):
    """Read damaged files and return how many could be read."""
    data, path, readable = image_bytes(format, profile=srgb_profile()), folder / "damaged", 0
    for seed in seeds:
        path.write_bytes(damaged(data, seed=seed))
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


@every_format
def test_damaged_files_are_refused_or_read(tmp_path, format):
    limit_pixels(1)
    peak, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert check_damaged(tmp_path, format, seeds=range(20)) < 20
    assert time.process_time() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300_000  # KiB


@pytest.mark.campaign
@every_format
def test_hundreds_of_damaged_files(tmp_path, format):
    limit_pixels(1)
    assert 0 < check_damaged(tmp_path, format, seeds=range(1000, 1500)) < 500


@pytest.mark.parametrize(
    "data", [b"<!---->" * 500, b"P6" + b" " * 4000 + b"x", b"P6" + b"#\n" * 2000, b"<" * 4000]
)
def test_texts_that_take_long_to_match(tmp_path, data):
    """The patterns for SVG and PPM headers do not backtrack without end."""
    (tmp_path / "a.png").write_bytes(data)
    started = time.process_time()
    with pytest.raises(InputError, match="a.png"):
        load_rgba(tmp_path / "a.png")
    assert time.process_time() - started < 2


def test_compressed_text_that_expands_is_refused(tmp_path):
    """100 MB of text in a PNG of some kilobytes."""
    info = PngImagePlugin.PngInfo()
    info.add_text("x", "0" * 100_000_000, zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(InputError, match="cannot read the image .*a.png"):
        load_rgba(tmp_path / "a.png")
