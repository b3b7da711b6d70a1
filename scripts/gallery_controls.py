"""What the gallery shows: for every control a text, and commands with the labels of their images.

The page and the images are both made of this, so that they say the same. The controls of regions
are in ``gallery_regions.py``.
"""

from dataclasses import dataclass

SMALL = "--preset fast --size 256"
BOTH = "fields.jpg glass.jpg"
TEXTURE = "nst-jax texture fields.jpg --preset fast --size 192 --style-size 384"
LARGE = "nst-jax stylize lake.jpg --style fields.jpg --preset fast --size 512 --steps 20"
MODES = "keep-yiq keep-lab luminance match-cholesky match-pca match-symmetric match-histogram"


@dataclass(frozen=True, kw_only=True)
class Control:
    """A section of the page with one sheet.

    Attributes:
      name: the sheet's file name, and the name for ``--only``.
      title, text: what the section says.
      images: label and command of each image; one without a label is made but not shown, and
        a single one is itself the sheet.
      columns: images in a row.
      tiled: lay each image out twice by twice.
      crop: show only this part, three times as large: left, top, right and bottom in pixels.
    """

    name: str
    title: str
    text: str
    images: tuple[tuple[str, str], ...]
    columns: int = 3
    tiled: bool = False
    crop: tuple[int, int, int, int] | None = None


def paint(output: str, options: str = "", *, style: str = "fields.jpg") -> str:
    """The command that paints the lake with some options."""
    words = f"nst-jax stylize lake.jpg --style {style} {options} {SMALL} -o {output}.png"
    return " ".join(words.split())


PLAIN = paint("plain")


def layers_of(*styles: int) -> str:
    """Each style layer with the number of its style."""
    choices = (f"relu{block}_1={style}" for block, style in enumerate(styles, start=1))
    return "--layer-styles " + " ".join(choices)


STYLES = (
    Control(
        name="style_scale",
        title="The style's size",
        text="""
        Styles are scaled to the result's longer side; `--style-scale` makes them larger or
        smaller than that, and with them the strokes.
        """,
        images=(
            ("0.5", paint("scale1", "--style-scale 0.5")),
            ("1", paint("scale2", "--style-scale 1")),
            ("2", paint("scale3", "--style-scale 2")),
        ),
    ),
    Control(
        name="blend",
        title="Several styles: shares",
        text="""
        Several images after `--style` are mixed, by the shares that `--style-blend` gives
        them; left out, all count the same. For a look between styles. Shares are those of the
        statistics and not of the area: each style settles where the content suits it.""",
        images=(
            ("shares 1 0", paint("blend1", "--style-blend 1 0", style=BOTH)),
            ("shares 0.5 0.5", paint("blend2", "--style-blend 0.5 0.5", style=BOTH)),
            ("shares 0 1", paint("blend3", "--style-blend 0 1", style=BOTH)),
        ),
    ),
    Control(
        name="layer-styles",
        title="Several styles: layer by layer",
        text="""
        `--layer-styles NAME=NUMBER` gives a style layer one style alone, by its number; the
        other layers mix all. Shallow layers hold colours and fine marks, deep ones large forms.
        For the brush of one image in the forms of another.""",
        images=(
            ("each layer mixes both", paint("average", style=BOTH)),
            (
                "shallow: glass, deep: fields",
                paint("deep-fields", layers_of(2, 2, 2, 1, 1), style=BOTH),
            ),
            (
                "shallow: fields, deep: glass",
                paint("deep-glass", layers_of(1, 1, 1, 2, 2), style=BOTH),
            ),
        ),
    ),
    Control(
        name="style-mixing",
        title="Several styles: average or sum",
        text="""
        `--style-mixing sum` adds the styles' losses (as neural-style-tf does), where `average`
        takes the mean of their Gram matrices (as neural-style does). With the same shares the
        two differ by a constant: the loss is another, gradient and look are the same, and only
        rounding, which grows over the steps, tells the images apart. For losses that are to be
        compared with those of a tool that adds.""",
        images=(
            ("average", paint("average", style=BOTH)),
            ("sum", paint("sum", "--style-mixing sum", style=BOTH)),
        ),
    ),
    Control(
        name="style-layers",
        title="Style layers and their factors",
        text="""
        `--style-layers NAME=FACTOR` chooses the layers whose statistics are compared, and how
        much each counts. The two shallow ones alone change colours and the finest marks; more
        weight on the deep ones brings large, smooth forms. For the scale of the strokes.""",
        images=(
            ("five layers, 1 each", PLAIN),
            ("relu1_1 and relu2_1 alone", paint("shallow", "--style-layers relu1_1 relu2_1")),
            (
                "deep ones 1000 times as much as shallow ones",
                paint(
                    "deep",
                    "--style-layers relu1_1=0.01 relu2_1=0.01 relu3_1=0.1 relu4_1=10 relu5_1=10",
                ),
            ),
        ),
    ),
    Control(
        name="layer-schemes",
        title="Schemes of factors",
        text="""
        A scheme's name stands for published factors: `equal` for 1 each (neural-style), `course`
        for 1/n, so that here a fifth of the style is left, `geometric` for a quarter of the
        layer before's with the sum 1 (style-transfer-pytorch), `1/C2` for one over the square of
        the channels (Gatys' code). The last two favour fine marks. `1/C2` is meant for
        `--gram-normalization hw`; without it, it needs a large style weight.""",
        images=(
            ("equal, style weight 100", PLAIN),
            ("course, 100", paint("course", "--style-layers course")),
            ("geometric, 100", paint("geometric", "--style-layers geometric")),
            ("1/C2, 1e6", paint("channels", "--style-layers 1/C2 --style-weight 1e6")),
        ),
        columns=4,
    ),
    Control(
        name="content-layers",
        title="Content layers",
        text="""
        `--content-layers` chooses what is kept of the content: of a shallow layer lines and
        colours, of `relu4_2` the things, which the style may draw anew, of a deep one little
        more than where they are. These start from noise, since a start from the content hides
        the difference. Features of each layer have their own size, and so each its content
        weight.""",
        images=tuple(
            (
                f"{layer}, content weight {weight}",
                paint(
                    f"content{layer[4]}",
                    f"--content-layers {layer} --content-weight {weight} --init noise",
                ),
            )
            for layer, weight in {
                "relu2_1": 1000,
                "relu3_1": 300,
                "relu4_2": 100,
                "relu5_1": 1000,
            }.items()
        ),
        columns=4,
    ),
)

OTHERS = (
    Control(
        name="color",
        title="Colour",
        text="""
        `--color keep-yiq` lays the result's luminance over the content's colours, `keep-lab`
        does so in L\\*a\\*b\\* (YCbCr would be the same as YIQ).
        `luminance` optimises luminance alone, with the style's contrast matched to
        the content's: it looks gentler, and bears a larger `--style-weight`.
        The others give the style the content's colours before: by their mean and
        covariance, with one of three square roots (`match-cholesky`, `match-pca`,
        `match-symmetric`), or channel by channel (`match-histogram`), which leaves hues that the
        content does not have. Keep where each thing shall have its own colour; match where
        strokes shall keep their several hues.""",
        images=(
            ("none", PLAIN),
            *((mode, paint(mode, f"--color {mode}")) for mode in MODES.split()),
        ),
        columns=4,
    ),
    Control(
        name="texture",
        title="Textures",
        text="""
        `nst-jax texture` paints with the style alone, from noise; with `--tileable` opposite
        borders fit each other. Both are laid out twice by twice here: look for the seams. For
        wallpapers and game surfaces. `--tileable` is `--padding circular`, which the other
        commands take too, where the image's sides are multiples of the deepest layer's stride
        (16 for relu5_1); styles are cropped to such. `--style-size` sets how large the strokes
        are.""",
        images=(
            ("without", f"{TEXTURE} -o texture.png"),
            ("tileable", f"{TEXTURE} --tileable -o tile.png"),
        ),
        tiled=True,
    ),
    Control(
        name="reconstruct",
        title="Reconstructions",
        text="""
        `nst-jax reconstruct` shows what a layer knows of an image, by the content term alone,
        from noise (Gatys 2016, figure 1): a shallow one nearly every pixel, a deep one things
        and places without their colours and outlines. For choosing content layers.""",
        images=tuple(
            (
                f"relu{block}_1",
                f"nst-jax reconstruct lake.jpg --layer relu{block}_1 {SMALL} -o layer{block}.png",
            )
            for block in range(1, 6)
        ),
    ),
    Control(
        name="init",
        title="High resolution from a finished image",
        text="""
        `--init FILE` starts from an image, scaled to the size of the result. A layer sees
        equally many pixels at any size, so that large forms are found sooner where the image
        is small: make it small first, and go on from there with few steps. Here both large ones
        had the same number.""",
        images=(
            ("", PLAIN),
            ("512 px from the content, 20 steps", f"{LARGE} -o direct.png"),
            ("512 px from plain.png, 20 steps", f"{LARGE} --init plain.png -o enlarged.png"),
        ),
    ),
    Control(
        name="sweep",
        title="Sweeps",
        text="""
        `nst-jax sweep` tries every combination of values of some settings, as many at once as
        fit into one program, and writes a sheet such as this, with the losses in a JSON file
        beside it. For finding the settings for a pair of images.""",
        images=(
            (
                "",
                "nst-jax sweep lake.jpg --style fields.jpg --over init=content,noise "
                f"--over style_weight=1,10,100 {SMALL} -o sweep.png",
            ),
        ),
    ),
)
