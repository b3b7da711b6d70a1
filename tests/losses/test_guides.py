"""Guides against receptive fields traced back layer by layer; checks of masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.guides import fields, numpy_guide

from nst_jax.config import Config, LossConfig, stride
from nst_jax.errors import InputError
from nst_jax.losses import layer_guides
from nst_jax.losses.guides import (
    add_rest_region,
    check_masks,
    check_reach,
    check_region_weights,
    lay_over,
)
from nst_jax.models import features
from nst_jax.types import Guidance

LAYERS = ("conv1_1", "relu1_2", "relu2_1", "relu3_1")
METHODS = ("simple", "inside", "all")
generator = np.random.default_rng(0)


def binary_mask(height, width):
    """Half planes and a dot."""
    mask = np.zeros((height, width), np.float32)
    mask[:, width // 3 :] = 1
    mask[: height // 5] = 1
    mask[height // 2, 1] = 1
    mask[-1, -1] = 0
    return mask


def soft_mask(height, width):
    return generator.uniform(size=(height, width)).astype(np.float32)


def test_receptive_fields_have_their_known_sizes():
    """3, 5, 10 and 24 px."""
    middle = [fields(tap, 64, "zero")[32 // stride(tap)] for tap in LAYERS]
    assert [len(seen) for seen in middle] == [3, 5, 10, 24]
    assert all(seen == list(range(seen[0], seen[-1] + 1)) for seen in middle)


@pytest.mark.parametrize("kind", [binary_mask, soft_mask])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "shape, padding",
    [
        ((27, 41), "zero"),
        ((8, 11), "reflect"),  # relu3_1 has two positions along an axis
        ((27, 41), "replicate"),
        ((32, 48), "circular"),
    ],
)
def test_guides_are_those_of_the_receptive_fields(kind, method, shape, padding):
    mask = kind(*shape)
    guides = layer_guides(jnp.asarray(mask), layers=LAYERS, method=method, padding=padding)
    assert set(guides) == set(LAYERS)
    for tap in LAYERS:
        expected = numpy_guide(mask, tap, method, padding=padding)
        assert guides[tap].dtype == np.float32
        np.testing.assert_allclose(guides[tap], expected, atol=1e-6)


def test_guides_of_hard_masks_select_features_by_what_they_see(variables):
    """On the network itself: the pixels that the gradient of selected features reaches."""
    mask = binary_mask(16, 20)

    @jax.jit
    def reach(image, weights):
        def value(image):
            tap = features(variables, image, layers=("conv2_1",), pooling="average")["conv2_1"]
            return jnp.sum(jnp.sum(tap, axis=2) * weights)

        return jnp.abs(jax.grad(value)(image)).sum(-1)

    inside, touched = (
        layer_guides(jnp.asarray(mask), layers=("conv2_1",), method=method)["conv2_1"]
        for method in ("inside", "all")
    )
    image = generator.uniform(size=(16, 20, 3)).astype(np.float32)
    assert inside.sum() > 0 and touched.sum() < touched.size
    assert reach(image, inside)[mask == 0].max() == 0
    assert reach(image, 1 - touched)[mask == 1].max() == 0
    assert reach(image, 1 - inside)[mask == 0].max() > 0


def test_guides_have_the_sizes_of_features_and_full_masks_stay_full(variables):
    layers = (*LAYERS, "conv4_1")
    taps = jax.eval_shape(
        lambda image: features(variables, image, layers=layers), jnp.zeros((27, 41, 3))
    )
    for method in METHODS:
        guides = layer_guides(jnp.ones((27, 41)), layers=layers, method=method)
        assert {name: guide.shape for name, guide in guides.items()} == {
            name: tap.shape[:2] for name, tap in taps.items()
        }
        assert all((guide == 1).all() for guide in guides.values())


@pytest.mark.parametrize("padding", ["zero", "circular"])
def test_guides_of_a_mask_and_of_the_rest_add_up_to_1(padding):
    mask = jnp.asarray(soft_mask(32, 48))
    rest = 1 - mask
    for method, other in [("inside", "all"), ("all", "inside"), ("simple", "simple")]:
        guides = layer_guides(mask, layers=LAYERS, method=method, padding=padding)
        others = layer_guides(rest, layers=LAYERS, method=other, padding=padding)
        for tap in LAYERS:
            np.testing.assert_allclose(guides[tap] + others[tap], 1, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_guides_under_transformations(variant, method):
    mask = soft_mask(27, 41)
    found = variant(lambda mask: layer_guides(mask, layers=LAYERS, method=method), mask)
    for tap in LAYERS:
        np.testing.assert_allclose(found[tap], numpy_guide(mask, tap, method), atol=1e-6)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method is 'outside': expected 'simple', 'inside' or"):
        layer_guides(jnp.ones((4, 4)), layers=("relu1_1",), method="outside")


def test_lay_over_is_exact_at_0_and_1_and_linear_between(variant):
    """Preserved pixels keep their bits."""
    image, content = generator.uniform(size=(2, 9, 7, 3)).astype(np.float32)
    masks = np.float32([0, 1, 0.5])[:, None, None] * np.ones((9, 7), np.float32)
    none, whole, half = (variant(lay_over, image, content, mask) for mask in masks)
    np.testing.assert_array_equal(none, image)
    np.testing.assert_array_equal(whole, content)
    np.testing.assert_allclose(half, (np.float64(image) + content) / 2, rtol=1e-6)


CONTENT = jnp.zeros((32, 48, 3))
STYLES = [jnp.zeros((20, 33, 3)), jnp.zeros((16, 16, 3))]
LEFT = np.zeros((32, 48))
LEFT[:, :20] = 1
ONES = np.ones((32, 48))
STYLED = LossConfig(style_layers=("relu1_1",))


def checked(*, styles=STYLES, **given):
    return add_rest_region(check_masks(CONTENT, styles, Guidance(**given)), config=STYLED)


def with_value(value):
    mask = LEFT.copy()
    mask[3, 4] = value
    return mask


class TestCheckMasks:
    def test_masks_become_arrays_of_the_images_type(self):
        of_style = np.ones((20, 33), np.int32)
        found = checked(
            content_masks=[LEFT, LEFT == 0],
            style_masks=[of_style, None],
            preserve=(0.5 * LEFT).tolist(),
        )
        np.testing.assert_array_equal(found.content_masks, [LEFT, 1 - LEFT])
        np.testing.assert_array_equal(found.style_masks[0], of_style)
        assert found.style_masks[1] is None
        np.testing.assert_array_equal(found.preserve, 0.5 * LEFT)
        assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype("float32")}
        stack = jnp.asarray(np.stack([LEFT, 1 - LEFT]), jnp.float16)  # in place of a sequence
        np.testing.assert_array_equal(checked(content_masks=stack).content_masks, stack)
        assert checked() == Guidance()

    def test_the_part_that_is_not_preserved_is_the_default_region(self):
        soft = 0.7 * LEFT
        found = checked(preserve=soft)
        np.testing.assert_allclose(found.content_masks, 1 - soft[None], rtol=1e-6)
        named = checked(preserve=soft, content_masks=[LEFT])
        np.testing.assert_array_equal(named.content_masks, LEFT[None])

    @pytest.mark.parametrize(
        "given, message",
        [
            ({"content_masks": []}, "no content mask: expected one for each region, or None"),
            (
                {"content_masks": [LEFT, LEFT[:-1]]},
                r"content mask 2 has shape \(31, 48\): expected its image's \(32, 48\)",
            ),
            ({"content_masks": LEFT}, r"content mask 1 has shape \(48,\)"),
            ({"content_masks": np.float32(1)}, "content_masks is a number: expected"),
            ({"content_masks": [LEFT + 0j]}, "content mask 1 has numbers of type complex64"),
            (
                {"content_masks": [LEFT, with_value(-0.01)]},
                r"content mask 2 has values outside of \[0, 1\]",
            ),
            ({"content_masks": [LEFT, 0 * LEFT]}, "content mask 2 is 0 everywhere: expected a"),
            ({"style_masks": [None]}, "1 style masks for 2 styles: expected one each"),
            ({"style_masks": [None, np.ones((20, 33))]}, r"style mask 2 has shape \(20, 33\)"),
            ({"preserve": with_value(np.nan)}, "preserve mask has values outside"),
            ({"preserve": ONES}, "all of the image is preserved"),
            ({"preserve": ONES, "content_masks": [LEFT]}, "all of the image is preserved"),
            (
                {"preserve": LEFT, "content_masks": [0.5 * LEFT, 1 - LEFT]},
                "a region lies entirely in the preserved part",
            ),
        ],
    )
    def test_invalid_masks_are_refused(self, given, message):
        with pytest.raises(InputError, match=message):
            checked(**given)


class TestCheckReach:
    STRUCTURE = LossConfig(style_layers=("relu1_1", "relu2_1", "relu3_1"), guides="inside")

    def refusal(self, **given):
        with pytest.raises(InputError) as caught:
            check_reach(checked(**given), self.STRUCTURE)
        message = str(caught.value)
        assert len(message.splitlines()) == 1 and "with guides inside: expected a" in message
        return message

    def test_large_regions_are_accepted(self):
        check_reach(checked(content_masks=[LEFT, 1 - LEFT]), self.STRUCTURE)
        check_reach(checked(), self.STRUCTURE)

    def test_a_thin_content_mask(self):
        """12 px contain receptive fields of relu2_1 (10 px), but none of relu3_1 (24 px)."""
        thin = np.zeros((32, 48))
        thin[:, 18:30] = 1
        message = self.refusal(content_masks=[LEFT, thin])
        assert message.startswith("content mask 2 leaves nothing in layer relu3_1")
        check_reach(checked(content_masks=[thin]), LossConfig(guides="inside", style_layers=()))
        for guides in ("simple", "all"):
            structure = LossConfig(guides=guides, style_layers=self.STRUCTURE.style_layers)
            check_reach(checked(content_masks=[LEFT, thin]), structure)

    def test_a_thin_style_mask(self):
        thin = np.zeros((16, 16))
        thin[:, 6:9] = 1
        message = self.refusal(style_masks=[None, thin])
        assert message.startswith("style mask 2 leaves nothing in layer relu2_1")

    def test_a_region_at_the_border_depends_on_the_padding(self):
        edge = np.zeros((32, 48))
        edge[:, :14] = 1  # positions 0 and 1 of relu3_1 see 0-13 and 0-17
        check_reach(checked(content_masks=[edge]), self.STRUCTURE)
        circular = LossConfig(
            style_layers=("relu3_1",), content_layers=(), guides="inside", padding="circular"
        )
        with pytest.raises(InputError, match="content mask 1 leaves nothing in layer relu3_1"):
            check_reach(checked(content_masks=[edge]), circular)

    @pytest.mark.parametrize("padding", ["zero", "circular"])
    def test_a_style_mask_in_the_part_that_circular_padding_crops(self, padding):
        last = np.zeros((34, 48))
        last[33] = 1
        structure = LossConfig(style_layers=("relu1_1", "relu3_1"), guides="all", padding=padding)
        masks = checked(style_masks=[last], styles=[jnp.zeros((34, 48, 3))])
        if padding == "zero":
            return check_reach(masks, structure)
        with pytest.raises(InputError, match="style mask 1 leaves nothing in layer relu1_1"):
            check_reach(masks, structure)

    def test_a_mask_in_pixels_that_pooling_drops(self):
        last = np.zeros((27, 41))
        last[-1, -1] = 1
        found = check_masks(jnp.zeros((27, 41, 3)), [], Guidance(content_masks=[last]))
        with pytest.raises(InputError, match="content mask 1 leaves nothing in layer relu2_1"):
            check_reach(found, Config.of(style_layers=["relu1_1", "relu2_1"]).loss)


@pytest.mark.parametrize(
    "weights, regions, message",
    [
        ((1.0,), 0, "there are weights for regions, but no regions: expected content masks"),
        ((1.0,), 2, "1 region weights for 2 regions: expected one each"),
        ((1, -0.5), 2, r"region weights are \(1.0, -0.5\): expected finite numbers, 0 or more"),
        ((1, np.nan), 2, r"region weights are \(1.0, nan\)"),
        ((0, 0), 2, r"region weights are \(0.0, 0.0\).*one above 0"),
        ((1e39, 1), 2, "region weights are"),  # infinite in float32
        (("a", "b"), 2, "region weights"),
    ],
)
def test_invalid_region_weights_are_refused(weights, regions, message):
    check_region_weights(None, regions=0)
    check_region_weights(np.array([0, 1e5]), regions=2)
    with pytest.raises(InputError, match=message):
        check_region_weights(weights, regions=regions)
