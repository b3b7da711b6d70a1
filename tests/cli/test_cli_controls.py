"""Several styles, regions, colours, textures and reconstructions on the command line."""

import jax
import numpy as np
import pytest
from helpers.commands import Run, check_refused, listing, pixels, record
from helpers.images import smooth_image
from helpers.records import stylize
from PIL import Image

from nst_jax.cli import main
from nst_jax.cli.parsing import ONCE, check_once, parse
from nst_jax.cli.regions import check_region_options
from nst_jax.color import MODES
from nst_jax.config import Config
from nst_jax.errors import InputError
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
    # Regions of label images are sorted by colour, black first.
    save_colors("labels.png", left, BLACK, other=RED)
    save_colors("style_labels.png", top, BLACK, other=RED)
    return tmp_path


def line(command, *files, **options):
    """Words of the command line: ``style_layers="a b"`` is ``--style-layers a b``."""
    words = [command, *map(str, files)]
    for name, value in options.items():
        if value is not None:
            words += ["--" + name.replace("_", "-")]
            words += [] if value is True else str(value).split()
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
        files = files or ["style.png" if command == "texture" else "content.png"]
        given = {"steps": STEPS, "output": "out.png", "weights": tiny_weights_file}
        code = main(line(command, *files, **given | ADAM | DEFAULTS[command] | options))
        return Run(code, *capsys.readouterr())

    return run


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
    """The command makes what the library makes of the same masks."""

    LEFT_RIGHT = ("left.png", "right.png")

    @pytest.mark.parametrize(
        "options, styles, controls",
        [
            ({}, TWO, {}),
            ({"style": "two.png"}, "two.png", {}),
            ({"region_styles": "2 1", "style_mask": STYLE_MASKS}, "two.png style.png", "masks"),
            (
                {"region_styles": "mix 2", "style_blend": "1 3"},
                TWO,
                {"blend": [[1.0, 3.0], [0.0, 1.0]]},
            ),
            ({"guides": "inside"}, TWO, {"settings": {"guides": "inside"}}),
            ({"region_weights": "0.5 3"}, TWO, {"region_weights": (0.5, 3)}),
        ],
    )
    def test_masks(self, run, reference, options, styles, controls):
        assert run(content_mask=MASKS, **options).code == 0
        if controls == "masks":
            controls = {"style_masks": style_masks("top.png", "bottom.png")}
        same(reference(styles, content_masks=content_masks(*self.LEFT_RIGHT), **controls))

    def test_label_images_are_masks(self, run, reference):
        options = dict(style="style.png", labels="labels.png", style_labels="style_labels.png")
        assert run(**options).code == 0
        result = reference(
            "style.png style.png",
            content_masks=content_masks(*self.LEFT_RIGHT),
            style_masks=style_masks("top.png", "bottom.png"),
        )
        found = record()["history"]["total"]
        assert found == pytest.approx(result.history.loss.tolist(), rel=1e-5)
        assert [mask["region"] for mask in record()["settings"]["masks"]] == ["#000000", "#ff0000"]

    def test_style_masks_without_regions(self, run, reference):
        assert run(style_mask=STYLE_MASKS, style_blend="1 3").code == 0
        same(reference(style_masks=style_masks("top.png", "bottom.png"), blend=(1, 3)))

    def test_layer_styles_beside_a_blend(self, run, reference):
        assert run(layer_styles="relu1_1=2", style_blend="3 1").code == 0
        same(reference(blend={"relu1_1": [0.0, 1.0], "relu2_1": [3.0, 1.0]}))

    def test_kept_regions(self, run, reference):
        """Neither the result nor the previews change them."""
        options = dict(region_styles="keep 1", content_mask=MASKS, tv_weight=0.01, save_every=1)
        assert run(style="style.png", **options).code == 0
        plain = to_uint8(load_image("content.png", size=SIZE))
        kept, styled = (content_masks(name)[0] == 1 for name in self.LEFT_RIGHT)
        for name in ("out.png", "out_00001.png", "out_00003.png"):
            np.testing.assert_array_equal(pixels(name)[kept], plain[kept])
        found = pixels("out.png")
        assert np.abs(found[styled] - plain[styled].astype(int)).max() > 2
        result = reference(
            "style.png",
            settings={"tv_weight": 0.01},
            content_masks=content_masks("right.png"),
            preserve=content_masks("left.png")[0],
        )
        np.testing.assert_allclose(found, to_uint8(result.image), atol=1)
        assert [region["kept"] for region in record()["settings"]["masks"]] == [True, False]

    def test_a_kept_region_alone(self, run):
        """The rest of the image has the style, also from noise and in the content's colours."""
        options = dict(content_mask="left.png", region_styles="keep", init="noise", noise_scale=0.3)
        assert run(style="style.png", color="keep-lab", **options).code == 0
        plain = to_uint8(load_image("content.png", size=SIZE))
        kept = content_masks("left.png")[0] == 1
        np.testing.assert_array_equal(pixels("out.png")[kept], plain[kept])
        assert (pixels("out.png")[~kept] != plain[~kept]).mean() > 0.9

    def test_feather_and_the_record(self, run, reference):
        assert run(content_mask=MASKS, feather=1.5).code == 0
        same(reference(content_masks=feather(content_masks(*self.LEFT_RIGHT), radius=1.5)))
        masks = record()["settings"]["masks"]
        assert [mask["region"] for mask in masks] == ["left.png", "right.png"]
        shares = [mask["share_of_image"] for mask in masks]
        assert shares == pytest.approx([20 / 48, 28 / 48], abs=0.01)

    def test_masks_of_another_shape_are_stretched_with_a_message(self, run):
        save_colors("square.png", np.arange(30)[:, None] < np.arange(30), WHITE)
        code, out, err = run(content_mask="square.png right.png")
        assert (code, out) == (0, "out.png\n")
        assert [text for text in err.splitlines() if "stretched" in text] == [
            "nst-jax: the mask square.png is 30x30 px and its image 32x24 px: the mask is stretched"
        ]

    def test_slim_network(self, run, reference, slim_file):
        layers = {"content_layers": ["relu3_1"], "style_layers": ["relu1_1", "relu2_2"]}
        words = {name: " ".join(names) for name, names in layers.items()}
        assert run(weights=slim_file, content_mask=MASKS, **words).code == 0
        network = load_weights(slim_file).variables
        masks = content_masks(*self.LEFT_RIGHT)
        same(reference(network=network, settings=layers, content_masks=masks))


@pytest.mark.parametrize("mode", MODES)
def test_colour_modes(run, reference, mode):
    """What they do to the colours is tested in tests/losses/test_color.py."""
    assert run(style="style.png", color=mode).code == 0
    assert record()["settings"]["color"] == mode
    same(reference("style.png", settings={"color": mode}))


class TestTexture:
    @pytest.fixture
    def texture(self, variables):
        """A texture by the library's function."""

        def texture(styles="style.png", *, shape=(SIZE, SIZE), seed=0, blend=None, **settings):
            noise = {"init": "noise", "noise_scale": 0.2, "content_layers": ()}
            layers = {"style_layers": LAYERS["style_layers"], "steps": STEPS}
            return stylize(
                variables,
                np.zeros((*shape, 3), np.float32),
                [load_image(name, size=max(shape)) for name in styles.split()],
                config=Config.of(**ADAM | noise | layers | settings),
                key=jax.random.key(seed),
                blend=blend,
            )

        return texture

    def test_width_and_height(self, run, texture, desk):
        before = set(listing(desk))
        options = dict(size="32 24", seed=5, animation="film.gif", save_every=2)
        code, out, _ = run("texture", **options)
        assert (code, out) == (0, "out.png\n")
        new = {"out.png", "out.json", "film.gif", "out_00002.png"}
        assert set(listing(desk)) - before == new
        assert pixels("out.png").shape == (24, 32, 3)
        same(texture(shape=(24, 32), seed=5))
        settings = record()["settings"]
        assert settings["style"] == ["style.png"] and settings["size"] == [32, 24]
        assert settings["content_layers"] == {} == settings["content_layers"]
        assert set(record()["history"]["content"]) == {0}

    def test_tileable(self, run, texture):
        assert run("texture", tileable=True).code == 0
        assert record()["settings"]["padding"] == "circular" and record()["settings"]["tileable"]
        same(texture(padding="circular"))

    def test_several_styles_of_another_size(self, run, texture):
        assert run("texture", "style.png", "two.png", style_blend="1 3").code == 0
        result = texture(TWO, blend=(1, 3))
        same(result)
        assert run("texture", "style.png", "two.png", style_size=20, overwrite=True).code == 0
        assert record()["history"]["total"][0] != pytest.approx(result.history.loss[0], rel=1e-4)


class TestReconstruct:
    def test_gets_closer_to_the_content(self, run, variables, content):
        alpha = np.linspace(0.1, 1, content.size // 3).reshape(content.shape[:2])
        save_image("content.png", content, alpha=alpha)
        assert run("reconstruct", layer="relu1_1", steps=100, learning_rate=5).code == 0
        plain = load_rgba("content.png", size=SIZE)
        config = Config.of(init="noise", noise_scale=0.2)
        start = initial_image(plain.rgb, variables, config=config, key=jax.random.key(0))
        found = pixels("out.png")
        np.testing.assert_array_equal(found[..., 3], to_uint8(plain.alpha))
        error = np.square(found[..., :3] / 255 - plain.rgb).mean()
        assert error < 0.5 * np.square(start - plain.rgb).mean()

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


REGIONS = dict(content_mask=MASKS)
LABELS = dict(labels="labels.png")
ONE = dict(style="style.png")

# What plan_styles does not see, see test_region_plan.
BAD_REGIONS = [
    (REGIONS | LABELS, "labels and content masks both define the regions"),
    (dict(style_labels="style_labels.png", **ONE), "style_labels has no effect without --labels"),
    (dict(style_labels="style_labels.png", **LABELS), "style_labels is for one style, not 2"),
    (
        dict(style_labels="style_labels.png", style_mask=STYLE_MASKS, **ONE, **LABELS),
        "style_labels and style masks contradict each other",
    ),
    (dict(region_weights="1 2"), "region_weights needs regions"),
    (dict(region_weights="1", **REGIONS), "1 region weights for 2 styled regions"),
    (dict(feather=1, style_mask=STYLE_MASKS), "feather needs regions"),
    (dict(feather="nan", **REGIONS), "feather is nan: expected 0 or more"),
    (dict(feather=-1, **REGIONS), "feather is -1.0: expected 0 or more"),
    (dict(guides="inside"), "guides inside needs masks"),
    (dict(style_mixing="sum", **ONE), "style_mixing sum has no effect with one style"),
    (dict(style_mixing="sum", **REGIONS), "style_mixing sum has no effect because every region"),
    (dict(style_blend="1 nan"), "style_blend is .1.0, nan.: expected finite"),
    (dict(style=""), "no style image"),
    *((dict(style_scale=scale), "style_scale is .*: expected") for scale in ("0", "nan", "100")),
]


@pytest.mark.parametrize("options, message", BAD_REGIONS)
def test_regions_are_checked(options, message):
    given = {"size": SIZE, "style": TWO, "output": "out.png"} | options
    parsed = parse(line("stylize", "content.png", **given))
    with pytest.raises(InputError, match=message):
        check_region_options(parsed.regions, parsed.styles, config=parsed.run.config)


def test_lists_given_twice_are_refused():
    """The parser would keep only the last one, and it takes underscores for hyphens."""
    for flag in ONCE:
        for again in (flag, f"{flag}=b", flag.replace("-", "_").replace("__", "--", 1)):
            with pytest.raises(InputError, match=f"{flag} is given twice: give it once"):
                check_once(["stylize", "x.png", flag, "a", again])
    check_once(["stylize", "x.png", "--size", "8", "--size", "9"])
    with pytest.raises(InputError, match="--size is given twice"):
        check_once(["texture", "x.png", "--size", "8", "--size", "9"])


class TestRefused:
    @pytest.fixture
    def refused(self, run, desk, traced_work):
        """Check that a run ends with one line before any work, and writes nothing."""

        def refused(match, *words, **options):
            check_refused(desk, match, lambda: run(*words, **options))

        return refused

    @pytest.mark.parametrize(
        "options, message",
        [
            (dict(region_styles="1 1", **REGIONS), "style 2 is not used"),
            (dict(region_weights="1 2 3", **LABELS), "3 region weights for 2 styled regions"),
            (dict(region_styles="keep keep", **ONE, **REGIONS), "all of the image is preserved"),
            (
                dict(style_labels="style_labels.png", region_styles="keep keep", **ONE, **LABELS),
                "style_labels has no effect if every region is kept|all of the image is preserved",
            ),
            (dict(content_mask="left.png black.png"), "black.png is black everywhere"),
            (dict(labels="white.png"), "label image white.png has only one colour"),
            (
                dict(style_labels="white.png", **ONE, **LABELS),
                "white.png has no pixel of the colour #000000",
            ),
            (dict(labels="labels.jpg"), "labels.jpg has .* colours: .*save it as PNG"),
            (dict(output="left.png", overwrite=True, **REGIONS), "left.png is an input"),
            (dict(output="labels.png", overwrite=True, **LABELS), "labels.png is an input"),
            (
                dict(guides="inside", content_mask="right.png small.png", **ONE),
                "(mask 2|small.png).* leaves nothing in layer relu2_1",
            ),
            (dict(max_megapixels=0.001, **REGIONS), "megapixels: .*megapixels to 1"),
        ],
    )
    def test_regions(self, refused, options, message):
        nowhere = np.zeros((36, 48), bool)
        save_colors("black.png", nowhere, WHITE)
        save_colors("white.png", ~nowhere, WHITE)
        small = nowhere.copy()
        small[10:14, 10:14] = True
        save_colors("small.png", small, WHITE)
        slope = np.arange(36)[:, None] ** 2 < 17 * np.arange(48)
        save_colors("labels.jpg", slope, (255, 128, 0), other=(0, 90, 200))
        refused(message, **options)

    @pytest.mark.parametrize(
        "options, message",
        [
            (
                dict(color="luminance"),
                "--color has no effect here because a texture has no",
            ),
            (dict(init="blend"), "init blend has no effect for a texture: expected noise or FILE"),
            (dict(size="32 24 16"), "size has 3 numbers: expected"),
            (dict(size="32 0"), "size is 0: expected 1 to 100000"),
            (dict(size="32 1"), "the (?!content)[a-z ]*is 32x1 px, but layer relu2_1 needs"),
            (dict(tileable=True, size=33), "33x33 px, .* multiples of 2 px: choose a longer side"),
            (dict(output="style.png", overwrite=True), "style.png is an input"),
        ],
    )
    def test_texture(self, refused, options, message):
        refused(message, "texture", **options)

    @pytest.mark.parametrize(
        "options, message",
        [
            (dict(color="keep-lab"), "--color has no effect here because a reconstruction has no"),
            (dict(content_layers="relu1_1"), "--content-layers has no effect.* --layer names"),
            (dict(layer="relu6_1"), "unknown layer 'relu6_1'"),
            (dict(init="content"), "init content has no effect for a reconstruction"),
            (dict(output="content.png", overwrite=True), "content.png is an input"),
        ],
    )
    def test_reconstruct(self, refused, options, message):
        refused(message, "reconstruct", **options)
