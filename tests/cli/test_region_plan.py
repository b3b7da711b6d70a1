"""Options about styles, regions, masks and layers, and plans that were worked out by hand."""

import re

import pytest

from nst_jax.cli.regions import Plan, plan_styles
from nst_jax.errors import InputError

LAYERS = ["relu1_1", "relu2_1"]
ALL = {"layers": LAYERS}
NO_MASKS = [(0, None), (1, None)]
THREE = [*NO_MASKS, (2, None)]


def everywhere(rows):
    """The same rows of weights in each layer."""
    return {layer: rows for layer in LAYERS}


def at(**options):
    """Options with two style layers."""
    return ALL | options


# Name: options, and the plan's kept regions, styled regions, sources and blend.
ACCEPTED = {
    "one style": (at(styles=1), ([], [], [(0, None)], None)),
    "blend": (at(styles=2, style_blend=[1.0, 3.0]), ([], [], NO_MASKS, (1.0, 3.0))),
    "a layer's own style beside a blend": (
        at(styles=2, layer_styles=["relu2_1=2"], style_blend=[1.0, 3.0]),
        ([], [], NO_MASKS, {"relu1_1": [[1, 3]], "relu2_1": [[0, 1]]}),
    ),
    "layers in one word": (
        at(styles=2, layer_styles=["relu2_1=1,relu1_1=2"]),
        ([], [], NO_MASKS, {"relu1_1": [[0, 1]], "relu2_1": [[1, 0]]}),
    ),
    "as many styles as regions": (
        at(styles=2, regions=2),
        ([], [0, 1], NO_MASKS, everywhere([[1, 0], [0, 1]])),
    ),
    "one style for all regions": (
        at(styles=1, regions=3),
        ([], [0, 1, 2], [(0, None)], everywhere([[1], [1], [1]])),
    ),
    "one region, a layer's own style": (
        at(styles=2, regions=1, layer_styles=["relu1_1=1"]),
        ([], [0], NO_MASKS, {"relu1_1": [[1, 0]], "relu2_1": [[1, 1]]}),
    ),
    "regions exchanged": (
        at(styles=2, regions=2, region_styles=["2", "1"]),
        ([], [0, 1], NO_MASKS, everywhere([[0, 1], [1, 0]])),
    ),
    "keep": (
        at(styles=2, regions=3, region_styles=["2", "keep", "1"]),
        ([1], [0, 2], NO_MASKS, everywhere([[0, 1], [1, 0]])),
    ),
    "keep only": (at(styles=1, regions=1, region_styles=["keep"]), ([0], [], [(0, None)], None)),
    "keep only, with a layer's own style": (
        at(styles=2, regions=1, region_styles=["keep"], layer_styles=["relu1_1=2"]),
        ([0], [], NO_MASKS, {"relu1_1": [[0, 1]], "relu2_1": [[1, 1]]}),
    ),
    "mix with a blend": (
        at(styles=2, regions=2, region_styles=["2", "mix"], style_blend=[1.0, 3.0]),
        ([], [0, 1], NO_MASKS, everywhere([[0, 1], [1, 3]])),
    ),
    "mix with a layer's own style": (
        at(styles=3, regions=2, region_styles=["mix", "1"], layer_styles=["relu2_1=3"]),
        ([], [0, 1], THREE, {"relu1_1": [[1, 1, 1], [1, 0, 0]], "relu2_1": [[0, 0, 1], [1, 0, 0]]}),
    ),
    "mix with a blend, a layer's own style and keep": (
        at(
            styles=2,
            regions=3,
            region_styles=["keep", "mix", "1"],
            style_blend=[2.0, 5.0],
            layer_styles=["relu1_1=2"],
        ),
        ([0], [1, 2], NO_MASKS, {"relu1_1": [[0, 1], [1, 0]], "relu2_1": [[2, 5], [1, 0]]}),
    ),
    "a style of which only layers are used": (
        at(styles=2, regions=2, region_styles=["mix", "1"], layer_styles=["relu1_1=2,relu2_1=2"]),
        ([], [0, 1], NO_MASKS, everywhere([[0, 1], [1, 0]])),
    ),
    "mix of one": (
        at(styles=1, regions=2, region_styles=["mix", "1"]),
        ([], [0, 1], [(0, None)], everywhere([[1], [1]])),
    ),
    # A style image with several style masks is a source for each of them.
    "style masks, one style for several regions": (
        at(styles=1, regions=2, style_masks=2),
        ([], [0, 1], [(0, 0), (0, 1)], everywhere([[1, 0], [0, 1]])),
    ),
    "style masks, regions exchanged": (
        at(styles=2, regions=3, style_masks=3, region_styles=["2", "1", "2"]),
        ([], [0, 1, 2], [(1, 0), (0, 1), (1, 2)], everywhere([[1, 0, 0], [0, 1, 0], [0, 0, 1]])),
    ),
    "style masks and keep": (
        at(styles=2, regions=3, style_masks=2, region_styles=["2", "keep", "1"]),
        ([1], [0, 2], [(1, 0), (0, 1)], everywhere([[1, 0], [0, 1]])),
    ),
    "a style mask and keep": (
        at(styles=1, regions=2, style_masks=1, region_styles=["keep", "1"]),
        ([0], [1], [(0, 0)], None),
    ),
    "style masks and mix of one style": (
        at(styles=1, regions=2, style_masks=2, region_styles=["mix", "1"]),
        ([], [0, 1], [(0, 0), (0, 1)], everywhere([[1, 0], [0, 1]])),
    ),
    "style masks without regions": (
        at(styles=2, style_masks=2, style_blend=[1.0, 3.0]),
        ([], [], [(0, 0), (1, 1)], (1.0, 3.0)),
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_plan(name):
    options, (kept, styled, sources, blend) = ACCEPTED[name]
    assert plan_styles(**options) == Plan(kept, styled, sources, blend)


USELESS = "{} has no effect because every region has one style: leave it out, or give a region the "
UNUSED = "style {} is not used: leave it out, or assign it"

REFUSED = [
    (at(styles=1, style_blend=[1.0, 2.0]), "2 blend weights for 1 styles: expected one each"),
    # Layers.
    (
        at(styles=2, layer_styles=["relu3_1=1"]),
        "layer_styles names 'relu3_1', which is not a style layer: expected one of relu1_1, "
        "relu2_1, as NAME=NUMBER",
    ),
    (
        at(styles=2, layer_styles=["relu1_1=1", "relu1_1=2"]),
        "layer_styles names relu1_1 twice: give each layer one style",
    ),
    *(
        (
            at(styles=2, layer_styles=[f"relu1_1={number}"]),
            f"the style of layer relu1_1 is '{number}': expected a number from 1 to 2",
        )
        for number in ("3", "0", "-1", "", "²")
    ),
    (at(styles=1, layer_styles=["relu1_1=1"]), "layer_styles has no effect with one style: give m"),
    (at(styles=2, regions=2, layer_styles=["relu1_1=1"]), USELESS.format("layer_styles")),
    (
        at(styles=2, style_blend=[1.0, 2.0], layer_styles=["relu1_1=1", "relu2_1=2"]),
        "style_blend has no effect because layer_styles gives every style layer one style: leave "
        "one of them out",
    ),
    (at(styles=2, layer_styles=["relu1_1=1", "relu2_1=1"]), UNUSED.format(2)),
    # Regions.
    (at(styles=1, region_styles=["1"]), "region_styles needs regions: give --content-mask or"),
    (at(styles=2, regions=3, region_styles=["1", "2"]), "2 region styles for 3 regions: expected"),
    (
        at(styles=2, regions=3),
        "2 styles for 3 regions: expected one style, one for each region, or",
    ),
    *(
        (
            at(styles=2, regions=2, region_styles=["1", text]),
            f"the style of a region is '{text}': expected mix, keep or a number from 1 to 2",
        )
        for text in ("3", "0", "all", "Keep")
    ),
    (at(styles=2, regions=2, style_blend=[1.0, 3.0]), USELESS.format("style_blend")),
    (at(styles=2, regions=2, region_styles=["1", "1"]), UNUSED.format(2)),
    (at(styles=2, regions=2, region_styles=["keep", "1"]), UNUSED.format(2)),
    (
        at(
            styles=3,
            regions=2,
            region_styles=["mix", "1"],
            layer_styles=["relu1_1=3", "relu2_1=3"],
        ),
        UNUSED.format(2),
    ),
    # Style masks.
    (at(styles=2, style_masks=1), "1 style masks for 2 styles: expected one for each style"),
    (
        at(styles=1, regions=2, style_masks=2, region_styles=["keep", "1"]),
        "2 style masks for 1 styled regions: expected one for each styled region",
    ),
    (
        at(styles=2, regions=2, style_masks=2, region_styles=["mix", "1"]),
        "a region with style 'mix' uses several images, so its style mask belongs to none of them: "
        "leave out the style masks, or give each region one style's number",
    ),
]


@pytest.mark.parametrize("options, message", REFUSED)
def test_contradictions_are_refused(options, message):
    with pytest.raises(InputError, match="^" + re.escape(message)):
        plan_styles(**options)
