"""Embedded colour profiles: conversions against formulas, and profiles that cannot be used."""

import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from helpers.damage import sample_pixels
from helpers.image_files import chunk
from PIL import Image, ImageCms

from nst_jax.images.profiles import is_srgb, srgb_profile
from nst_jax.images.read import load_rgba, load_values

D65 = (0.3127, 0.3290)
SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
RNG = np.random.default_rng(4)


def matrix(primaries):
    """The matrix from linear RGB with these primaries and white D65 to XYZ."""
    x, y = np.array(primaries).reshape(3, 2).T
    columns = np.stack([x / y, np.ones(3), (1 - x - y) / y])
    white = np.array([D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]])
    return columns * np.linalg.solve(columns, white)


def encoded(linear):
    """The transfer function of sRGB (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def profile_of(primaries, gamma):
    return imagecodecs.cms_profile(
        "rgb", whitepoint=list(D65), primaries=list(primaries), gamma=gamma
    )


def from_p3(values):
    """Convert P3 primaries with a gamma of 2.2 to sRGB."""
    change = np.linalg.solve(matrix(SRGB), matrix(P3))
    return encoded(values.astype(np.float64) ** 2.2 @ change.T)


def cmyk_profile():
    """A printer profile (ICC.1:2001-04, lut8Type), and the L* of all 16 combinations of inks."""
    corners = np.arange(16)
    ink = np.stack([corners >> shift & 1 for shift in (3, 2, 1, 0)], axis=-1)
    lightness = (255 * (1 - ink[:, 3]) * (1 - ink[:, :3].sum(-1) / 4)).round()
    table = np.stack([lightness, np.full(16, 128), np.full(16, 128)], axis=-1)
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    lut += struct.pack(">9i", *(65536 * np.eye(3, dtype=int)).ravel())
    lut += 4 * ramp + table.astype(np.uint8).tobytes() + 3 * ramp
    lut += bytes(-len(lut) % 4)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    start = 128 + 4 + 2 * 12
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", start, 20, b"A2B0", start + 20, len(lut))
    size = start + 20 + len(lut)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + tags + white + lut, lightness / 255 * 100


def grey_of(lightness):
    """sRGB's grey with a CIE L*."""
    f = (np.asarray(lightness) + 16) / 116
    return encoded(np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)))


def with_profile(path, values, profile):
    options = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(values).save(path, icc_profile=profile, **options)
    return path


class TestConversion:
    @pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
    @pytest.mark.parametrize("channels", [3, 4])
    def test_8_bits(self, tmp_path, name, channels):
        values = RNG.integers(0, 256, (20, 30, channels)).astype(np.uint8)
        values[..., 3:] |= 1
        path = with_profile(tmp_path / name, values, profile_of(P3, 2.2))
        found = load_rgba(path)
        np.testing.assert_allclose(found.rgb, from_p3(values[..., :3] / 255), atol=1.3 / 255)
        assert (found.alpha is None) == (channels == 3)

    @pytest.mark.parametrize("name", ["a.png", "a.tif", "float.tif"])
    def test_depth_is_kept(self, tmp_path, name):
        """Steps of 1/65535 stay distinct."""
        ramp = np.linspace(0.3, 0.31, 600).reshape(20, 30, 1) + [0, 0.2, 0.4]
        values, profile = np.rint(ramp * 65535).astype(np.uint16), profile_of(P3, 2.2)
        if name == "a.png":
            data = imagecodecs.png_encode(values)
            icc = chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))
            (tmp_path / name).write_bytes(data[:33] + icc + data[33:])
        else:
            samples = values if name == "a.tif" else (values / 65535).astype(np.float32)
            tifffile.imwrite(tmp_path / name, samples, photometric="rgb", iccprofile=profile)
        found = load_rgba(tmp_path / name).rgb
        np.testing.assert_allclose(found, from_p3(values / 65535), atol=1e-4)
        assert len(np.unique(found[..., 0])) > 550

    @pytest.mark.parametrize("deep", [False, True])
    @pytest.mark.parametrize("gamma", [1.0, 1.8])
    def test_grey(self, tmp_path, gamma, deep):
        profile = imagecodecs.cms_profile("gray", gamma=gamma)
        levels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
        values = levels if deep else (levels // 257).astype(np.uint8)
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", iccprofile=profile)
        found = load_rgba(tmp_path / "a.tif").rgb
        expected = encoded((levels / 65535) ** gamma)[..., None]
        atol = 2e-4 if deep else 0.51 / 255
        np.testing.assert_allclose(found, np.repeat(expected, 3, -1), atol=atol)

    def test_grey_with_an_rgb_profile(self, tmp_path):
        values = sample_pixels(channels=1)[..., 0]
        path = with_profile(tmp_path / "a.jpg", values, profile_of(SRGB, 1.0))
        with Image.open(path) as image:
            assert image.mode == "L"
            decoded = np.asarray(image) / 255
        expected = np.repeat(encoded(decoded)[..., None], 3, -1)
        np.testing.assert_allclose(load_rgba(path).rgb, expected, atol=1 / 255)

    @pytest.mark.parametrize("kind", ["tif", "jpg", "deep"])
    def test_cmyk(self, tmp_path, kind):
        profile, lightness = cmyk_profile()
        corners = np.arange(16)
        ink = np.stack([corners >> shift & 1 for shift in (3, 2, 1, 0)], -1)[None] * 255
        if kind == "jpg":
            ink = np.repeat(np.repeat(ink, 16, axis=1), 16, axis=0)
            lightness = np.repeat(lightness, 16)
        path = tmp_path / ("a.jpg" if kind == "jpg" else "a.tif")
        if kind == "deep":
            values = (ink * 257).astype(np.uint16)
            options = {"photometric": "separated", "planarconfig": "contig", "metadata": None}
            tifffile.imwrite(path, values, iccprofile=profile, **options)
        else:
            image = Image.frombytes("CMYK", ink.shape[1::-1], ink.astype(np.uint8).tobytes())
            image.save(path, icc_profile=profile, **({"quality": 100} if kind == "jpg" else {}))
        expected = np.broadcast_to(grey_of(lightness)[None, :, None], (*ink.shape[:2], 3))
        atol = {"tif": 0.7 / 255, "jpg": 6 / 255, "deep": 1e-3}[kind]
        np.testing.assert_allclose(load_rgba(path).rgb, expected, atol=atol)

    def test_large_images_are_converted_in_strips(self, tmp_path):
        values = RNG.integers(0, 256, (33, 10, 3)).astype(np.uint8)
        small = load_rgba(with_profile(tmp_path / "a.png", values, profile_of(P3, 2.2))).rgb
        repeats = (40, 110, 1)  # 4.4 million samples; a strip has 2**22
        path = with_profile(tmp_path / "b.png", np.tile(values, repeats), profile_of(P3, 2.2))
        np.testing.assert_array_equal(load_rgba(path).rgb, np.tile(small, repeats))


class TestSrgb:
    def test_values_stay_unchanged(self, tmp_path):
        every = np.arange(256, dtype=np.uint8).reshape(16, 16)
        values = np.dstack([every, every.T, every[::-1]])
        profiles = [
            srgb_profile(),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
            imagecodecs.cms_profile("srgb"),
        ]
        for profile in profiles:
            assert is_srgb(profile, "rgb")
            path = with_profile(tmp_path / "a.png", values, profile)
            np.testing.assert_array_equal(load_rgba(path).rgb, values / np.float32(255))

    @pytest.mark.parametrize("primaries, gamma", [(P3, 2.2), (SRGB, 1.8), (SRGB, 2.2)])
    def test_other_profiles_are_not_srgb(self, primaries, gamma):
        assert not is_srgb(profile_of(primaries, gamma), "rgb")

    def test_profile_has_a_fixed_date(self):
        """Otherwise equal runs would write different files."""
        assert struct.unpack(">6H", srgb_profile()[24:36]) == (2025, 1, 1, 0, 0, 0)


def gamma_chunks(gamma, primaries=None):
    chunks = chunk(b"gAMA", struct.pack(">I", round(gamma * 1e5)))
    if primaries is None:
        return chunks
    numbers = [round(number * 1e5) for number in (*D65, *primaries)]
    return chunk(b"cHRM", struct.pack(">8I", *numbers)) + chunks


class TestPngGamma:
    def write(self, path, values, chunks):
        data = imagecodecs.png_encode(values)
        path.write_bytes(data[:33] + chunks + data[33:])

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_linear_and_wide_gamut(self, tmp_path, dtype):
        top, atol = np.iinfo(dtype).max, 1.3 / 255 if dtype == np.uint8 else 1e-3
        values = (RNG.random((20, 30, 3)) * top).astype(dtype)
        path = tmp_path / "a.png"
        self.write(path, values, gamma_chunks(1))
        np.testing.assert_allclose(load_rgba(path).rgb, encoded(values / top), atol=atol)
        self.write(path, values, gamma_chunks(1 / 2.2, P3))
        np.testing.assert_allclose(load_rgba(path).rgb, from_p3(values / top), atol=atol)
        self.write(path, values[..., 0].copy(), gamma_chunks(1))
        expected = np.repeat(encoded(values[..., :1] / top), 3, axis=-1)
        np.testing.assert_allclose(load_rgba(path).rgb, expected, atol=atol)

    @pytest.mark.parametrize(
        "chunks",
        [
            gamma_chunks(0.45455),
            gamma_chunks(0.45455, SRGB),
            chunk(b"sRGB", b"\0") + gamma_chunks(1),
        ],
    )
    def test_chunks_of_srgb_change_nothing(self, tmp_path, chunks):
        self.write(tmp_path / "a.png", sample_pixels(), chunks)
        expected = sample_pixels() / np.float32(255)
        np.testing.assert_array_equal(load_rgba(tmp_path / "a.png").rgb, expected)

    @pytest.mark.parametrize("chunks", [gamma_chunks(0), gamma_chunks(0.5, (0, 0, 0, 0, 0, 0))])
    def test_impossible_numbers_are_ignored(self, tmp_path, chunks, caplog):
        self.write(tmp_path / "a.png", sample_pixels(), chunks)
        expected = sample_pixels() / np.float32(255)
        np.testing.assert_array_equal(load_rgba(tmp_path / "a.png").rgb, expected)
        assert "its colour profile is damaged" in caplog.text


class TestUnusable:
    @pytest.mark.parametrize("what", ["damaged", "empty", "grey", "cmyk"])
    @pytest.mark.parametrize("deep", [False, True])
    def test_is_ignored_with_a_warning(self, tmp_path, caplog, what, deep):
        sound = profile_of(P3, 2.2)
        profile = {
            "damaged": sound[:200] + bytes(len(sound) - 200),
            "empty": b"no profile",
            "grey": imagecodecs.cms_profile("gray", gamma=1.8),
            "cmyk": cmyk_profile()[0],
        }[what]
        values = sample_pixels().astype(np.uint16 if deep else np.uint8) * (257 if deep else 1)
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", iccprofile=profile)
        found = load_rgba(tmp_path / "a.tif").rgb
        np.testing.assert_allclose(found, sample_pixels() / 255, atol=1e-6)
        assert caplog.messages == [
            f"{tmp_path / 'a.tif'}: its colour profile is damaged or for other colours, and is "
            "ignored: read as sRGB"
        ]

    def test_is_ignored_for_masks_and_labels(self, tmp_path, caplog):
        values = sample_pixels()
        path = with_profile(tmp_path / "a.png", values, profile_of(P3, 2.2))
        np.testing.assert_array_equal(load_values(path).rgb, values / np.float32(255))
        assert not caplog.records
