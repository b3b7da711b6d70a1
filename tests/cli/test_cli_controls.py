"""Several styles, regions, colours, textures and reconstructions on the command line."""

from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import smooth_image
from helpers.commands import Run, check_refused, listing, pixels, record
from helpers.records import stylize
from PIL import Image

from nst_jax.cli import main
from nst_jax.color import MODES
from nst_jax.config import Config
from nst_jax.images import load_image, load_mask, save_image, to_uint8
from nst_jax.images.masks import feather
from nst_jax.images.read import load_rgba
from nst_jax.transfer.problem import initial_image
from nst_jax.weights import load_weights

pytestmark = pytest.mark.sampled

SIZE = 32  # of the content 32x24 and the styles 26x32; so most runs share one compilation
STEPS = 3
ADAM = {"optimizer": "adam", "learning_rate": 2.0}
LAYERS = {"content_layers": ["relu2_1"], "style_layers": ["relu1_1", "relu2_1"]}
RED, BLACK, WHITE = (255, 0, 0), (0, 0, 0), (255, 255, 255)

TWO = "style.png two.png"
MASKS = "left.png right.png"
STYLE_MASKS = "top.png bottom.png"


def save_colors(name, inside, color, other=BLACK):
    """An image of two colours."""
    Image.fromarray(np.where(inside[..., None], color, other).astype(np.uint8)).save(name)


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch, content, style):
    """A folder with images, masks and label images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NST_JAX_WEIGHTS", raising=False)
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))
    save_image("content.png", content)
    save_image("style.png", style)
    save_image("two.png", smooth_image(40, 33, seed=4))
    left = np.broadcast_to(np.arange(48) < 20, (36, 48))
    top = np.broadcast_to(np.arange(40)[:, None] < 16, (40, 33))
    for name, inside in (("left", left), ("right", ~left), ("top", top), ("bottom", ~top)):
        save_colors(f"{name}.png", inside, WHITE)
    # The regions in the order of their colours, black first.
    save_colors("labels.png", left, BLACK, other=RED)
    save_colors("style_labels.png", top, BLACK, other=RED)
    return tmp_path


def line(command, *files, **options):
    """Words of the command line: ``style_layers="a b"`` is ``--style-layers a b``."""
    words = [command, *map(str, files)]
    for name, value in options.items():
        if value is None:
            continue
        words += ["--" + name.replace("_", "-")] + ([] if value is True else str(value).split())
    return words


DEFAULTS = {
    "stylize": {
        "style": TWO,
        "content_layers": "relu2_1",
        "style_layers": "relu1_1 relu2_1",
        "size": SIZE,
    },
    "texture": {"style_layers": "relu1_1 relu2_1", "size": SIZE, "noise_scale": 0.2},
    "reconstruct": {"layer": "relu2_1", "size": SIZE, "noise_scale": 0.2},
}


@pytest.fixture
def run(capsys, tiny_weights_file):
    def run(command="stylize", *files, **options):
        if not files:
            files = ["style.png" if command == "texture" else "content.png"]
        given = {
            "steps": STEPS,
            "optimizer": "adam",
            "output": "out.png",
            "weights": tiny_weights_file,
        }
        code = main(line(command, *files, **given | ADAM | DEFAULTS[command] | options))
        return Run(code, *capsys.readouterr())

    return run


@pytest.fixture
def total(run):
    """The loss of each step of a run."""

    def total(*words, **options):
        run_ = run(*words, overwrite=True, **options)
        assert run_.code == 0, run_.err
        return record()["history"]["total"]

    return total


def content_masks(*names):
    return np.stack([load_mask(name, shape=(24, 32)) for name in names])


def style_masks(*names):
    return [load_mask(name, shape=(32, 26)) for name in names]


@pytest.fixture
def reference(variables):
    """A run by the library's function."""

    def reference(styles=TWO, *, settings={}, network=None, **controls):
        return stylize(
            variables if network is None else network,
            load_image("content.png", size=SIZE),
            [load_image(name, size=SIZE) for name in styles.split()],
            config=Config.of(**{"steps": STEPS} | ADAM | LAYERS | settings),
            **controls,
        )

    return reference


def same(result):
    """Check that a run has written a result, and one that is not where it started."""
    assert result.loss < result.history.loss[0]
    np.testing.assert_array_equal(pixels("out.png"), to_uint8(result.image))
    assert record()["history"]["total"] == pytest.approx(result.history.loss.tolist(), rel=1e-6)


class TestRegions:
    def test_two_styles_in_two_regions(self, run, reference):
        assert run(content_mask=MASKS).code == 0
        same(reference(content_masks=content_masks("left.png", "right.png")))

    def test_labels_are_the_same_regions(self, total):
        masks, labels = total(content_mask=MASKS), total(labels="labels.png")
        assert labels == pytest.approx(masks, rel=1e-5)
        assert total()[0] != pytest.approx(masks[0], rel=1e-2)

    def test_region_styles(self, total, reference):
        plain = total(content_mask=MASKS)
        exchanged = total(content_mask=MASKS, region_styles="2 1")
        assert exchanged[0] != pytest.approx(plain[0], rel=1e-2)
        other = total(content_mask=MASKS, style="two.png style.png")
        assert other == pytest.approx(exchanged, rel=1e-5)

    def test_one_style_for_all(self, run, reference):
        assert run(style="two.png", content_mask=MASKS).code == 0
        same(reference("two.png", content_masks=content_masks("left.png", "right.png")))

    @pytest.mark.parametrize(
        "regions, marks", [({"content_mask": MASKS}, "style_mask"), ({}, "style_labels")]
    )
    def test_parts_of_one_style(self, run, reference, regions, marks):
        regions = regions or {"labels": "labels.png"}
        marked = {"style_mask": STYLE_MASKS, "style_labels": "style_labels.png"}[marks]
        assert run(style="style.png", **regions, **{marks: marked}).code == 0
        result = reference(
            "style.png style.png",
            content_masks=content_masks("left.png", "right.png"),
            style_masks=style_masks("top.png", "bottom.png"),
        )
        found = record()["history"]["total"]
        assert found == pytest.approx(result.history.loss.tolist(), rel=1e-5)

    def test_style_masks_of_chosen_styles(self, run, reference):
        options = dict(content_mask=MASKS, region_styles="2 1", style_mask=STYLE_MASKS)
        assert run(**options).code == 0
        same(
            reference(
                "two.png style.png",
                content_masks=content_masks("left.png", "right.png"),
                style_masks=style_masks("top.png", "bottom.png"),
            )
        )

    def test_style_masks_without_regions(self, run, reference):
        assert run(style_mask=STYLE_MASKS, style_blend="1 3").code == 0
        same(reference(style_masks=style_masks("top.png", "bottom.png"), blend=(1, 3)))

    @pytest.mark.parametrize("regions", [{"content_mask": MASKS}, {"labels": "labels.png"}])
    def test_keep(self, run, reference, regions):
        """A region is left as it is; the rest has its style."""
        assert run(style="style.png", region_styles="keep 1", **regions, tv_weight=0.01).code == 0
        plain = to_uint8(load_image("content.png", size=SIZE))
        kept, styled = (content_masks(name)[0] == 1 for name in ("left.png", "right.png"))
        found = pixels("out.png")
        assert 200 < kept.sum() < 400 and 300 < styled.sum() < 500
        np.testing.assert_array_equal(found[kept], plain[kept])
        assert np.abs(found[styled] - plain[styled].astype(int)).max() > 2
        result = reference(
            "style.png",
            settings={"tv_weight": 0.01},
            content_masks=content_masks("right.png"),
            preserve=content_masks("left.png")[0],
        )
        np.testing.assert_allclose(found, to_uint8(result.image), atol=1)
        assert [region["kept"] for region in record()["settings"]["masks"]] == [True, False]

    def test_keep_alone(self, run):
        """Then the rest has the style; also after a noisy start and in other colours."""
        options = dict(content_mask="left.png", region_styles="keep", init="noise", noise_scale=0.3)
        assert run(style="style.png", color="keep-lab", **options).code == 0
        plain = to_uint8(load_image("content.png", size=SIZE))
        kept = content_masks("left.png")[0] == 1
        np.testing.assert_array_equal(pixels("out.png")[kept], plain[kept])
        assert (pixels("out.png")[~kept] != plain[~kept]).mean() > 0.9

    def test_previews_keep_too(self, run, desk):
        options = dict(content_mask=MASKS, region_styles="keep 1", save_every=1)
        assert run(style="style.png", **options).code == 0
        kept = content_masks("left.png")[0] == 1
        plain = to_uint8(load_image("content.png", size=SIZE))
        for step in range(1, STEPS + 1):
            np.testing.assert_array_equal(pixels(f"out_0000{step}.png")[kept], plain[kept])

    def test_mix(self, run, reference):
        options = dict(content_mask=MASKS, region_styles="mix 2", style_blend="1 3")
        assert run(**options).code == 0
        masks = content_masks("left.png", "right.png")
        same(reference(content_masks=masks, blend=[[1.0, 3.0], [0.0, 1.0]]))

    def test_layer_styles(self, run, reference):
        assert run(layer_styles="relu1_1=2 relu2_1=1").code == 0
        same(reference(blend={"relu1_1": [0.0, 1.0], "relu2_1": [1.0, 0.0]}))

    def test_layer_styles_beside_a_blend(self, run, reference):
        assert run(layer_styles="relu1_1=2", style_blend="3 1").code == 0
        same(reference(blend={"relu1_1": [0.0, 1.0], "relu2_1": [3.0, 1.0]}))

    def test_region_weights(self, run):
        def style_term(weights):
            options = dict(content_mask=MASKS, region_weights=weights, overwrite=True)
            assert run(**options).code == 0
            return record()["history"]["style"][0]

        one, other, both = (style_term(weights) for weights in ("1 0", "0 1", "0.5 3"))
        assert one != pytest.approx(other, rel=1e-2)
        assert both == pytest.approx(0.5 * one + 3 * other, rel=1e-5)

    def test_feather(self, run, reference):
        assert run(content_mask=MASKS, feather=1.5).code == 0
        masks = content_masks("left.png", "right.png")
        result = reference(content_masks=feather(masks, radius=1.5))
        same(result)
        hard = reference(content_masks=masks)
        assert result.history.loss[0] != pytest.approx(hard.history.loss[0], rel=1e-3)

    def test_guides(self, run, reference):
        assert run(content_mask=MASKS, guides="inside").code == 0
        masks = content_masks("left.png", "right.png")
        same(reference(content_masks=masks, settings={"guides": "inside"}))

    def test_masks_of_another_shape_are_told(self, run):
        save_colors("square.png", np.arange(30)[:, None] < np.arange(30), WHITE)
        code, out, err = run(content_mask="square.png right.png")
        assert (code, out) == (0, "out.png\n")
        notes = [text for text in err.splitlines() if "stretched" in text]
        assert notes == [
            "nst-jax: the mask square.png is 30x30 px and its image 32x24 px: the mask is stretched"
        ]

    def test_slim_network(self, run, reference, slim_file):
        layers = {"content_layers": ["relu3_1"], "style_layers": ["relu1_1", "relu2_2"]}
        words = {name: " ".join(names) for name, names in layers.items()}
        controls = dict(content_mask=MASKS, region_styles="mix 2", style_blend="1 3")
        assert run(weights=slim_file, **words, **controls).code == 0
        result = reference(
            network=load_weights(slim_file).variables,
            settings=layers,
            content_masks=content_masks("left.png", "right.png"),
            blend=[[1.0, 3.0], [0.0, 1.0]],
        )
        same(result)


class TestRecord:
    def test_options_are_flat(self, run):
        options = dict(
            content_mask=MASKS,
            region_styles="2 mix",
            region_weights="1 2",
            style_blend="1 3",
            layer_styles="relu1_1=1",
            feather=1,
        )
        assert run(**options).code == 0
        found = record()
        settings = found["settings"]
        expected = {
            "content": "content.png",
            "size": SIZE,
            "style": ["style.png", "two.png"],
            "style_blend": [1, 3],
            "layer_styles": ["relu1_1=1"],
            "content_mask": ["left.png", "right.png"],
            "style_mask": [],
            "labels": None,
            "style_labels": None,
            "region_styles": ["2", "mix"],
            "region_weights": [1, 2],
            "feather": 1,
            "preset": "neural-style",
            "save_every": None,
            "guides": "simple",
            "style_mixing": "average",
        }
        assert {name: settings.get(name, "missing") for name in expected} == expected
        assert not {"styles", "regions", "run", "watch", "config"} & set(settings)

    def test_regions_are_listed(self, run):
        assert run(content_mask=MASKS, feather=1).code == 0
        masks = record()["settings"]["masks"]
        assert [mask["region"] for mask in masks] == ["left.png", "right.png"]
        assert [mask["kept"] for mask in masks] == [False, False]
        shares = [mask["share_of_image"] for mask in masks]
        assert shares == pytest.approx([20 / 48, 28 / 48], abs=0.01)

    def test_labels_are_listed_by_colour(self, run):
        assert run(style="style.png", labels="labels.png", region_styles="1 keep").code == 0
        masks = record()["settings"]["masks"]
        assert [mask["region"] for mask in masks] == ["#000000", "#ff0000"]
        assert [mask["kept"] for mask in masks] == [False, True]

    def test_no_regions_no_list(self, run):
        assert run().code == 0
        assert "masks" not in record()["settings"]


def lab(image):
    """CIE L*a*b* with D65 of sRGB in [0, 1], by the standard's formulas in float64."""
    image = np.float64(image)
    curve = ((image + 0.055) / 1.055) ** 2.4
    linear = np.where(image > 0.04045, curve, image / 12.92)
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ matrix.T / matrix.sum(1)
    roots = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(roots, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def chroma(image, mode):
    if mode == "keep-lab":
        return lab(image)[..., 1:]
    # Of both YIQ and YCbCr: differences of colours.
    return 255 * np.stack([image[..., i] - image[..., 1] for i in (0, 2)], -1)


class TestColor:
    @pytest.mark.parametrize("mode", MODES)
    def test_every_mode_runs(self, run, mode):
        assert run(style="style.png", steps=9, color=mode).code == 0
        found = pixels("out.png") / 255
        assert record()["settings"]["color"] == mode
        plain = load_image("content.png", size=SIZE)
        assert np.abs(found - plain).mean() > 0.005
        difference = np.abs(chroma(found, mode) - chroma(plain, mode))
        if mode.startswith("keep") or mode == "luminance":
            unclipped = ((found > 0) & (found < 1)).all(-1)
            if mode == "keep-lab":  # where a rounded pixel still says something of its colour
                unclipped &= lab(found)[..., 0] > 25
            assert unclipped.mean() > 0.5
            assert difference[unclipped].max() < (1.5 if mode == "keep-lab" else 1.01)
        else:
            assert difference.max() > 5

    def test_modes_differ(self, run):
        found = {}
        for mode in ("none", "luminance", "keep-yiq", "keep-lab", "match-pca", "match-histogram"):
            assert run(style="style.png", color=mode, overwrite=True).code == 0
            found[mode] = pixels("out.png").tobytes()
        assert len(set(found.values())) == len(found)

    def test_luminance_is_that_of_the_library(self, run, reference):
        assert run(style="style.png", color="luminance").code == 0
        same(reference("style.png", settings={"color": "luminance"}))


class TestTexture:
    @pytest.fixture
    def texture(self, variables):
        """A texture by the library's function."""

        def texture(styles="style.png", *, shape=(SIZE, SIZE), seed=0, init=None, **settings):
            blend = settings.pop("blend", None)
            settings = ADAM | {"init": "noise", "noise_scale": 0.2} | settings
            config = Config.of(
                steps=STEPS,
                content_layers=(),
                style_layers=LAYERS["style_layers"],
                **settings,
            )
            return stylize(
                variables,
                np.zeros((*shape, 3), np.float32),
                [load_image(name, size=max(shape)) for name in styles.split()],
                config=config,
                key=jax.random.key(seed),
                blend=blend,
                init=init,
            )

        return texture

    def test_square(self, run, texture, desk):
        before = set(listing(desk))
        code, out, err = run("texture")
        assert (code, out) == (0, "out.png\n")
        assert set(listing(desk)) - before == {"out.png", "out.json"}
        assert pixels("out.png").shape == (SIZE, SIZE, 3)
        same(texture())
        found = record()
        assert found["settings"]["style"] == ["style.png"] and found["settings"]["size"] == [SIZE]
        assert found["settings"]["content_layers"] == {}
        assert set(found["history"]["content"]) == {0}
        assert found["history"]["total"][-1] < found["history"]["total"][0]

    def test_width_and_height(self, run, texture):
        assert run("texture", size="32 24", seed=5).code == 0
        assert pixels("out.png").shape == (24, 32, 3)
        assert record()["image"] == {"width": 32, "height": 24}
        same(texture(shape=(24, 32), seed=5))

    def test_tileable(self, run, texture):
        assert run("texture", tileable=True).code == 0
        assert record()["settings"]["padding"] == "circular" and record()["settings"]["tileable"]
        same(texture(padding="circular"))

    def test_several_styles(self, run, texture):
        assert run("texture", "style.png", "two.png", style_blend="1 3").code == 0
        same(texture(TWO, blend=(1, 3)))

    def test_size_of_the_styles(self, total):
        plain = total("texture")
        assert total("texture", style_size=SIZE) == plain
        assert total("texture", style_size=20)[0] != pytest.approx(plain[0], rel=1e-4)

    def test_init_from_a_file(self, run, texture):
        start = smooth_image(SIZE, SIZE, seed=8)
        save_image("start.png", start)
        assert run("texture", init="start.png").code == 0
        same(texture(init=load_image("start.png")))

    def test_animation_and_previews(self, run, desk):
        before = set(listing(desk))
        assert run("texture", animation="film.gif", save_every=2).code == 0
        new = {"out.png", "out.json", "film.gif", "out_00002.png"}
        assert set(listing(desk)) - before == new
        with Image.open("film.gif") as image:
            assert image.size == (SIZE, SIZE) and image.n_frames > 2


class TestReconstruct:
    def test_gets_closer_to_the_content(self, run, variables):
        assert run("reconstruct", layer="relu1_1", steps=100, learning_rate=5).code == 0
        plain = load_image("content.png", size=SIZE)
        config = Config.of(init="noise", noise_scale=0.2)
        start = initial_image(plain, variables, config=config, key=jax.random.key(0))
        found = pixels("out.png") / 255
        assert found.shape == (24, 32, 3)
        assert np.square(found - plain).mean() < 0.5 * np.square(start - plain).mean()
        history = record()["history"]
        assert set(history["style"]) == {0} == set(history["tv"])
        assert history["content"][-1] < 0.5 * history["content"][0]

    def test_is_the_content_term_alone(self, run, reference):
        assert run("reconstruct", layer="relu1_2 relu2_1=0.5", seed=2, tv_weight=0.01).code == 0
        settings = {
            "content_layers": {"relu1_2": 1, "relu2_1": 0.5},
            "style_layers": (),
            "tv_weight": 0.01,
            "init": "noise",
            "noise_scale": 0.2,
        }
        same(reference("", settings=settings, key=jax.random.key(2)))
        assert record()["settings"]["content_layers"] == {"relu1_2": 1, "relu2_1": 0.5}
        assert record()["settings"]["layer"] == ["relu1_2", "relu2_1=0.5"]
        assert record()["settings"]["style_layers"] == {}

    def test_transparency_is_kept(self, run, content):
        alpha = np.linspace(0.1, 1, content.size // 3).reshape(content.shape[:2])
        save_image("content.png", content, alpha=alpha)
        assert run("reconstruct", save_every=2).code == 0
        expected = to_uint8(load_rgba("content.png", size=SIZE).alpha)
        for name in ("out.png", "out_00002.png"):
            np.testing.assert_array_equal(pixels(name)[..., 3], expected)

    def test_init_from_a_file(self, total):
        losses = total("reconstruct", init="content.png")
        assert losses[0] == 0


class TestInitOfAnotherSize:
    """The rounding of sizes may differ by a pixel; another image's aspect ratio does not fit."""

    def test_an_earlier_smaller_run_goes_on(self, run):
        save_image("wide.png", smooth_image(67, 100, seed=6))
        options = dict(style="style.png", steps=1, style_layers="relu1_1", content_layers="relu1_1")
        assert run("stylize", "wide.png", **options, size=24).code == 0
        assert pixels("out.png").shape == (16, 24, 3)
        options |= dict(size=50, init="out.png", output="large.png")
        code, _, err = run("stylize", "wide.png", **options)
        assert code == 0, err
        assert pixels("large.png").shape == (34, 50, 3)

    def test_another_aspect_ratio_is_refused(self, refused):
        save_image("wide.png", smooth_image(67, 100, seed=6))
        save_image("square.png", smooth_image(24, 24, seed=6))
        message = "initial image square.png is 24x24 px, the result 50x34 px: expected the same a"
        refused(message, "stylize", "wide.png", init="square.png", size=50)
        refused("expected the same aspect ratio", "texture", size="32 24", init="square.png")


@pytest.fixture
def refused(run, desk, traced_work):
    """Check that a run ends with one line before any work, and writes nothing."""

    def refused(match, *words, **options):
        check_refused(desk, match, lambda: run(*words, **options))

    return refused


REGIONS = dict(content_mask=MASKS)
LABELS = dict(labels="labels.png")
ONE = dict(style="style.png")

BAD_REGIONS = [
    # Counts.
    (dict(content_mask="left.png right.png left.png"), "2 styles for 3 regions: expected one"),
    (dict(style=TWO + " style.png", **REGIONS), "3 styles for 2 regions"),
    (dict(style=TWO + " style.png", **LABELS), "3 styles for 2 regions"),
    (dict(style_mask="top.png"), "1 style masks for 2 styles: expected one for each style"),
    (dict(style_mask="top.png", **REGIONS), "1 style masks for 2 styled regions"),
    (dict(style_mask="top.png", **LABELS), "1 style masks for 2 styled regions"),
    (
        dict(region_styles="keep 1", style_mask=STYLE_MASKS, **ONE, **REGIONS),
        "2 style masks for 1 styled regions",
    ),
    # Contradictions of labels and masks.
    (REGIONS | LABELS, "labels and content masks both name the regions: leave one of them out"),
    (dict(style_labels="style_labels.png", **ONE), "style_labels has no effect without --labels"),
    (
        dict(style_labels="style_labels.png", **ONE, **REGIONS),
        "style_labels has no effect without --labels",
    ),
    (dict(style_labels="style_labels.png", **LABELS), "style_labels is for one style, not 2"),
    (
        dict(style_labels="style_labels.png", style_mask=STYLE_MASKS, **ONE, **LABELS),
        "style_labels and style masks contradict each other",
    ),
    (
        dict(
            style_labels="style_labels.png", region_styles="keep keep", labels="labels.png", **ONE
        ),
        "style_labels has no effect where every region is kept|all of the image is kept",
    ),
    # Weights and edges of regions.
    (dict(region_weights="1 2"), "region_weights needs regions"),
    (dict(region_weights="1", **REGIONS), "1 region weights for 2 styled regions"),
    (dict(region_weights="1 2 3", **LABELS), "3 region weights for 2 styled regions"),
    (
        dict(region_weights="1 2", region_styles="keep 1", **ONE, **REGIONS),
        "2 region weights for 1 styled regions",
    ),
    (dict(region_weights="-1 1", **REGIONS), "region weights are .-1.0, 1.0.: expected finite"),
    (dict(region_weights="nan 1", **REGIONS), "region weights are .nan, 1.0.: expected finite"),
    (dict(region_weights="inf 1", **LABELS), "region weights are .inf, 1.0.: expected finite"),
    (dict(region_weights="0 0", **REGIONS), "region weights are .*one above 0"),
    (dict(feather=1), "feather needs regions"),
    (dict(feather=1, style_mask=STYLE_MASKS), "feather needs regions"),
    (dict(feather=-1, **REGIONS), "feather is -1.0: expected 0 or more"),
    (dict(feather="nan", **REGIONS), "feather is nan"),
    (dict(feather="inf", **REGIONS), "feather is inf"),
    (dict(feather=33, **REGIONS), "feather radius is 33.0: expected 0 to the image's 32 pixels"),
    (dict(feather=33, **LABELS), "feather radius is 33.0: expected 0 to the image's 32 pixels"),
    # Settings that have no effect.
    (dict(guides="inside"), "guides inside needs masks"),
    (dict(guides="all"), "guides all needs masks"),
    (dict(style_mixing="sum", **ONE), "style_mixing sum has no effect with one style"),
    (dict(style_blend="1"), "1 blend factors for 2 styles"),
    (dict(style_blend="1 2 3", **LABELS), "3 blend factors for 2 styles"),
    (dict(style_blend="1 nan"), "style_blend is .1.0, nan.: expected finite"),
    (dict(style_blend="1 -1"), "style_blend is .1.0, -1.0."),
    (dict(style_blend="0 0"), "style_blend is .0.0, 0.0.*one above 0"),
    (dict(style_blend="1 2", **REGIONS), "style_blend has no effect where every region has one"),
    (dict(style_blend="1 2", **LABELS), "style_blend has no effect where every region has one"),
    (
        dict(style_blend="1 2", layer_styles="relu1_1=1 relu2_1=2"),
        "style_blend has no effect where layer_styles gives every style layer one style",
    ),
    # Styles of layers.
    (dict(layer_styles="relu3_1=1"), "layer_styles names 'relu3_1', .*expected one of relu1_1, re"),
    (dict(layer_styles="fc7=1"), "layer_styles names 'fc7', which is no style layer"),
    (dict(layer_styles="relu1_1=3"), "style of layer relu1_1 is '3': expected a number from 1 to"),
    (dict(layer_styles="relu1_1=0"), "style of layer relu1_1 is '0'"),
    (dict(layer_styles="relu1_1"), "style of layer relu1_1 is ''"),
    (dict(layer_styles="relu1_1=1", **ONE), "layer_styles has no effect with one style"),
    (dict(layer_styles="relu1_1=1 relu1_1=2"), "layer_styles names relu1_1 twice"),
    (dict(layer_styles="relu1_1=1", **REGIONS), "layer_styles has no effect where every region"),
    (dict(layer_styles="relu1_1=1 relu2_1=1"), "style 2 is used nowhere"),
    # Styles of regions.
    (dict(region_styles="1 2"), "region_styles needs regions"),
    (dict(region_styles="1", **REGIONS), "1 region styles for 2 regions"),
    (dict(region_styles="1 2 keep", **LABELS), "3 region styles for 2 regions"),
    (
        dict(region_styles="1 none", **REGIONS),
        "style of a region is 'none': expected mix, keep or a number",
    ),
    (dict(region_styles="1 3", **REGIONS), "style of a region is '3'"),
    (dict(region_styles="1 1", **REGIONS), "style 2 is used nowhere"),
    (dict(region_styles="1 keep", **LABELS), "style 2 is used nowhere"),
    (
        dict(region_styles="mix 1", style_mask=STYLE_MASKS, **REGIONS),
        "a region with style 'mix' takes from several images",
    ),
    # Everything kept.
    (dict(region_styles="keep", content_mask="white.png"), "all of the image is preserved"),
    (dict(region_styles="keep keep", **REGIONS), "all of the image is preserved"),
    (dict(region_styles="keep keep", **LABELS), "all of the image is preserved"),
    (
        dict(region_styles="keep keep keep", labels="three.png"),
        "all of the image is preserved",
    ),
    (dict(region_styles="keep keep", feather=2, **REGIONS), "all of the image is preserved"),
    # Files.
    (dict(content_mask="left.png black.png"), "black.png is black everywhere: expected white"),
    (dict(style_mask="top.png black.png"), "black.png is black everywhere"),
    (dict(content_mask="left.png none.png"), "none.png does not exist"),
    (dict(style_mask="top.png none.png"), "none.png does not exist"),
    (dict(labels="none.png"), "none.png does not exist"),
    (dict(labels="labels.png", style_labels="none.png", **ONE), "none.png does not exist"),
    (dict(content_mask="left.png bad.png"), "cannot read the image bad.png"),
    (dict(style_mask="top.png bad.png"), "cannot read the image bad.png"),
    (dict(labels="bad.png"), "cannot read the image bad.png"),
    (dict(content_mask="left.png text.png"), "text.png is not an image in a known format"),
    (dict(output="left.png", overwrite=True, **REGIONS), "left.png is an input"),
    (dict(output="top.png", overwrite=True, style_mask=STYLE_MASKS), "top.png is an input"),
    (dict(output="labels.png", overwrite=True, **LABELS), "labels.png is an input"),
    (
        dict(output="style_labels.png", overwrite=True, style_labels="style_labels.png")
        | ONE
        | LABELS,
        "style_labels.png is an input",
    ),
    (dict(animation="labels.gif", overwrite=True, labels="labels.gif"), "labels.gif is an input"),
    *(
        (
            dict(max_megapixels=0.003, **options),
            "large.png has 0.003072 megapixels: .*megapixels to 1",
        )
        for options in (
            dict(content_mask="left.png large.png"),
            dict(style_mask="top.png large.png"),
            dict(labels="large.png"),
            dict(style_labels="large.png", **ONE, **LABELS),
        )
    ),
    # Label images.
    (dict(labels="white.png"), "label image white.png has only one colour"),
    (dict(labels="labels.jpg"), "label image labels.jpg has .* colours: .*save it as PNG"),
    (
        dict(style_labels="other_labels.png", **ONE, **LABELS),
        "label image other_labels.png has no pixel of the colour #ff0000: .*#000000 #0000ff",
    ),
    (dict(style_labels="white.png", **ONE, **LABELS), "white.png has no pixel of the .*#000000"),
    # Sizes.
    (dict(guides="inside", content_mask="left.png small.png"), "leaves nothing in layer relu2_1"),
    (dict(guides="inside", style_mask="top.png spot.png"), "style mask 2 leaves nothing in layer"),
    (
        dict(padding="circular", size=33),
        "33x25 px, .* multiples of 2 px: choose a longer side of 32 px",
    ),
    (dict(padding="circular", style_layers="relu3_1", size=36), "36x27 px, .* multiples of 4 px"),
    (dict(size=0), "size is 0"),
    (dict(style=""), "no style image"),
    # Layers.
    (dict(style_layers="geometric relu1_1=2"), "'relu1_1=2' contradicts the scheme geometric"),
    (dict(style_layers="geometric,relu1_1=2"), "'relu1_1=2' contradicts the scheme geometric"),
    (dict(style_layers="quadratic"), "unknown .* 'quadratic'"),
    (dict(style_layers="quadratic relu1_1"), "unknown .* 'quadratic'"),
]

BAD_TEXTURES = [
    (dict(max_megapixels=0.001), "style.png has 0.00132 megapixels: expected at most 0.001"),
    (dict(max_megapixels=-1), "max_megapixels is -1.0: expected"),
    (dict(color="luminance"), "--color has no effect here, for a texture has no content"),
    (dict(content_layers="relu2_1"), "--content-layers has no effect here"),
    (dict(content_weight=3), "--content-weight has no effect here"),
    (dict(guides="inside"), "--guides has no effect here"),
    (dict(style_mixing="sum"), "style_mixing sum has no effect with one style"),
    (dict(init="content"), "init content has no meaning for a texture: expected noise or FILE"),
    (dict(init="blend"), "init blend has no meaning for a texture"),
    (dict(init="none.png"), "none.png does not exist"),
    (dict(size="32 24 16"), "size is one number or two"),
    (dict(size=""), "size is one number or two"),
    (dict(size=0), "size is 0: expected 1 to 100000"),
    (dict(size="32 0"), "size is 0: expected 1 to 100000"),
    (dict(size="-5 32"), "size is -5"),
    (dict(style_size=0), "size is 0"),
    (dict(style_size=-1), "size is -1"),
    (dict(style_blend="1 2"), "2 blend factors for 1 styles"),
    (dict(style_blend="nan"), "style_blend is .nan."),
    (
        dict(tileable=True, size=33),
        "33x33 px, .* multiples of 2 px: choose a longer side of 32 px",
    ),
    (dict(size="32 1"), "image is 32x1 px, but layer relu2_1 needs"),
    (dict(style_layers=""), "no layers"),
    (dict(style_layers="geometric relu1_1=2"), "contradicts the scheme geometric"),
    (dict(output="style.png", overwrite=True), "style.png is an input"),
]

BAD_RECONSTRUCTIONS = [
    (dict(max_megapixels=0.001), "content.png has 0.001728 megapixels: expected at most 0.001"),
    (dict(max_megapixels=-1), "max_megapixels is -1.0: expected"),
    (dict(style_layers="relu1_1"), "--style-layers has no effect here, for a reconstruction has"),
    (dict(style_weight=3), "--style-weight has no effect here"),
    (dict(style_mixing="sum"), "--style-mixing has no effect here"),
    (dict(guides="all"), "--guides has no effect here"),
    (dict(color="keep-lab"), "--color has no effect here"),
    (dict(content_layers="relu1_1"), "--content-layers has no effect here.* those of --layer"),
    (dict(layer="relu6_1"), "unknown layer 'relu6_1'"),
    (dict(layer="fc7"), "unknown layer 'fc7'"),
    (dict(layer="relu1_1 relu1_1"), "layer relu1_1 is given twice"),
    (dict(layer="relu1_1=-1"), "weight of layer relu1_1 is -1"),
    (dict(layer=""), "no layers: expected at least one"),
    (dict(init="content"), "init content has no meaning for a reconstruction"),
    (dict(init="blend"), "init blend has no meaning for a reconstruction"),
    (dict(size=0), "size is 0"),
    (dict(layer="relu5_1", size=20), "content image is 20x15 px, but layer relu5_1 needs"),
    (dict(output="content.png", overwrite=True), "content.png is an input"),
]


class TestRefused:
    @pytest.fixture(autouse=True)
    def bad_files(self, desk):
        nowhere, everywhere = np.zeros((36, 48), bool), np.ones((36, 48), bool)
        save_colors("black.png", nowhere, WHITE)
        save_colors("white.png", everywhere, WHITE)
        small = nowhere.copy()
        small[10:14, 10:14] = True
        save_colors("small.png", small, WHITE)
        save_colors("spot.png", small[:, :30], WHITE)
        left = np.broadcast_to(np.arange(48) < 20, (36, 48))
        slope = np.arange(36)[:, None] ** 2 < 17 * np.arange(48)
        save_colors("labels.jpg", slope, (255, 128, 0), other=(0, 90, 200))
        save_colors("labels.gif", left, RED)
        save_colors("other_labels.png", left, (0, 0, 255))
        three = np.stack([left, small, nowhere], -1) * np.uint8(255)
        Image.fromarray(three.astype(np.uint8)).save("three.png")
        data = Path("left.png").read_bytes()
        Path("bad.png").write_bytes(data[: len(data) // 2])
        Path("text.png").write_text("no image\n" * 50)
        save_image("large.png", smooth_image(48, 64, seed=5))

    @pytest.mark.parametrize("options, message", BAD_REGIONS)
    def test_stylize(self, refused, options, message):
        if "region_styles" in options and set(options["region_styles"].split()) == {"keep"}:
            options = ONE | options
        refused(message, **options)

    @pytest.mark.parametrize("options, message", BAD_TEXTURES)
    def test_texture(self, refused, options, message):
        refused(message, "texture", **options)

    @pytest.mark.parametrize("options, message", BAD_RECONSTRUCTIONS)
    def test_reconstruct(self, refused, options, message):
        refused(message, "reconstruct", **options)

    def test_a_texture_is_no_content(self, refused):
        """A person who makes a texture has given no content image."""
        message = "nst-jax: error: the (?!content)[a-z ]*is 32x1 px"
        refused(message, "texture", size="32 1")

    @pytest.mark.parametrize("first", ["keep", "1"])
    def test_a_region_that_is_too_small_is_named(self, refused, first):
        """By its place among all regions, or its file."""
        options = dict(content_mask="right.png small.png", guides="inside", **ONE)
        refused("mask 2 |small.png", region_styles=f"{first} 1", **options)

    @pytest.mark.parametrize(
        "flag, values",
        [
            ("--style", TWO),
            ("--style-blend", "1 3"),
            ("--layer-styles", "relu1_1=1 relu2_1=2"),
            ("--content-mask", MASKS),
            ("--style-mask", STYLE_MASKS),
            ("--labels", "labels.png labels.png"),
            ("--region-styles", "1 2"),
            ("--region-weights", "1 2"),
            ("--style-layers", "relu1_1 relu2_1"),
            ("--content-layers", "relu1_1 relu2_1"),
            ("--color", "luminance keep-lab"),
        ],
    )
    @pytest.mark.parametrize("joined", [False, True])
    def test_flags_given_twice(self, refused, flag, values, joined):
        """The last would silently replace the others, where all may be meant."""
        once, again = values.split()
        name = flag.removeprefix("--").replace("-", "_")
        twice = ["content.png", f"{flag}={again}"] if joined else ["content.png", flag, again]
        refused(f"error: {flag} is given twice: give it once", "stylize", *twice, **{name: once})

    def test_flags_given_twice_with_underscores(self, refused):
        """Which the parser takes for hyphens."""
        words = ["content.png", "--content_mask", "right.png"]
        refused(
            "mask is given twice", "stylize", *words, style="style.png", content_mask="left.png"
        )

    @pytest.mark.parametrize("command", ["stylize", "texture", "reconstruct"])
    def test_a_missing_image(self, refused, command):
        refused("none.png does not exist", command, "none.png")
