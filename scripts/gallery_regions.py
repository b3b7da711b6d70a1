"""What the gallery shows of regions; see ``gallery_controls.py``."""

from gallery_controls import BOTH, PLAIN, Control, paint

FOUR_LAYERS = "--style-layers relu1_1 relu2_1 relu3_1 relu4_1"

REGIONS = (
    Control(
        name="regions",
        title="Regions",
        text="""
        `--content-mask` takes a mask for each region, `--labels` one image with a colour for
        each, in the order of red, green and blue: here lake, land, sky. As many styles as
        regions are taken in this order; `--region-styles` says it otherwise: a style's number,
        `mix` for all of them, `keep` to leave the region as it is. For a sky that is not painted
        like the land.""",
        images=(
            ("without regions", PLAIN),
            ("masks", paint("masks", "--content-mask sky.png rest.png", style=BOTH)),
            (
                "labels",
                paint("labels", "--labels regions.png", style="ink.jpg glass.jpg fields.jpg"),
            ),
            (
                "region-styles mix keep 2",
                paint("chosen", "--labels regions.png --region-styles mix keep 2", style=BOTH),
            ),
        ),
        columns=4,
    ),
    Control(
        name="style-masks",
        title="Parts of a style",
        text="""
        `--style-mask` names the part of a style image that counts: a mask for each style, or
        with regions for each styled region. `--style-labels` does so with `--labels`, by the
        same colours: here the sky is painted like the sky, and the rest like the ground. For a
        style with several manners, or with a margin that is no part of it.""",
        images=(
            ("all of fields.jpg", PLAIN),
            ("its sky", paint("swirly", "--style-mask swirls.png")),
            ("its ground", paint("furrowed", "--style-mask furrows.png")),
            (
                "sky like sky, rest like ground",
                paint("parts", "--labels sky.png --style-labels swirls.png"),
            ),
        ),
        columns=4,
    ),
    Control(
        name="region-weights",
        title="Strength of each region",
        text="""
        `--region-weights` are factors of the regions' style losses, in the order of the styled
        regions (in sky.png black comes first: the rest, then the sky). A small one leaves more
        of the content. For a face, say, that shall stay quieter than its surroundings.""",
        images=tuple(
            (
                f"rest {rest}, sky {sky}",
                paint(f"weights{number}", f"--labels sky.png --region-weights {rest} {sky}"),
            )
            for number, (rest, sky) in enumerate(((1, 1), (1, 0.001), (0.001, 1)), start=1)
        ),
    ),
    Control(
        name="keep",
        title="Parts that stay",
        text="""
        `--region-styles keep` leaves a region as it is, to the pixel; the rest is painted with
        an eye to it. For a logo, a face, or a thing in its true colours.""",
        images=(
            ("without", PLAIN),
            (
                "the tower is kept",
                paint("kept", "--content-mask tower.png --region-styles keep"),
            ),
        ),
    ),
    Control(
        name="feather",
        title="Soft edges",
        text="""
        `--feather` blurs the regions' edges by so many pixels of the result, so that what is
        kept, or painted otherwise, sets in gradually. For masks with hard edges. The sheet shows
        a part of the images three times as large.""",
        images=tuple(
            (
                f"feather {radius}",
                paint(
                    f"feather{radius}",
                    f"--content-mask rest.png --region-styles keep --feather {radius}",
                    style="glass.jpg",
                ),
            )
            for radius in (0, 6)
        ),
        crop=(60, 28, 172, 112),
    ),
    Control(
        name="guides",
        title="Guides: what counts at the edges",
        text="""
        A feature near an edge sees both sides. `--guides simple` counts it by its share,
        `inside` counts those alone that see nothing else, so that a margin is left to the
        content, and `all` those too that see but a corner of the region, so that styles run into
        each other. The deeper the layer, the wider the margin: `inside` needs large regions or
        shallow style layers, and so relu5_1 is left out here. For clean borders take `inside`,
        for merging ones `all`.""",
        images=tuple(
            (
                f"guides {method}",
                paint(
                    method,
                    f"--labels sky.png {FOUR_LAYERS} --guides {method}",
                    style="glass.jpg fields.jpg",
                ),
            )
            for method in ("simple", "inside", "all")
        ),
    ),
)
