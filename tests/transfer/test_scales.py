"""The scales of a run, and its images and masks at each of them."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import smooth_image
from helpers.records import guided

from nst_jax.color import restore_colors
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.transfer import Inputs, check_inputs, make_mesh, rows_mesh
from nst_jax.transfer.pyramid import at_full_size, at_scale, make_scales, resize
from nst_jax.types import Guidance

DEEP = dict(content_layers=["relu4_2"], style_layers=["relu1_1", "relu5_1"])  # stride 16
SHALLOW = dict(content_layers=["relu2_1"], style_layers=["relu1_1", "relu2_1"])  # stride 2


def scales(shape=(96, 128), *, mesh=None, layers=(), **changes):
    config = Config.of(**({"min_size": 32, "scale_factor": 2.0, "steps": 9} | SHALLOW | changes))
    found = make_scales((*shape, 3), config=config, mesh=mesh, layers=layers)
    return [scale.shape for scale in found], [scale.steps for scale in found]


class TestMakeScales:
    def test_steps(self):
        """The last of few numbers holds for the remaining scales before the last."""
        for given, expected in (((), [9, 9, 9]), ((5,), [5, 5, 9]), ((5, 6), [5, 6, 9])):
            shapes, steps = scales(scale_steps=given)
            assert shapes == [(24, 32), (48, 64), (96, 128)] and steps == expected
        assert scales(scale_steps=(5, 7), scale_factor=2**0.5)[1] == [5, 7, 7, 7, 9]

    def test_more_numbers_than_scales(self):
        with pytest.raises(InputError, match="has 3 numbers, but only 2 scales come before"):
            scales(scale_steps=(5, 6, 7))
        match = "has 1 number, but no scale comes before the last: leave it out, or choose"
        with pytest.raises(InputError, match=match):
            scales(scale_steps=(5,), min_size=200)

    @pytest.mark.parametrize("min_size", [None, 65, 129])
    def test_one_scale(self, min_size):
        factor = 2.0 if min_size else Config().pyramid.scale_factor
        assert scales(min_size=min_size, scale_factor=factor) == ([(96, 128)], [9])

    def test_sides_of_seamless_textures_are_multiples_of_the_stride(self):
        options = dict(min_size=20, scale_factor=1.3)
        circular, _ = scales((64, 128), padding="circular", **DEEP, **options)
        assert len(circular) > 3 and circular[-1] == (64, 128)
        assert all(side % 16 == 0 for shape in circular for side in shape)
        plain, _ = scales((64, 128), **DEEP, **options | {"min_size": 40})
        assert any(side % 16 for shape in plain for side in shape)

    def test_rows_divide_the_heights(self):
        options = dict(mesh=rows_mesh(), min_size=30, scale_factor=1.4)
        found, _ = scales((96, 90), **options)
        assert len(found) > 2 and all(height % 8 == 0 for height, _ in found)
        assert any(width % 8 for _, width in found)
        deeper, _ = scales((128, 90), layers=("conv3_1",), **options)
        assert len(deeper) > 2 and all(height % 16 == 0 for height, _ in deeper)
        both, _ = scales((96, 96), padding="circular", **options)
        assert all(height % 8 == width % 2 == 0 for height, width in both)
        plain = scales((96, 90), scale_factor=1.4)
        assert scales((96, 90), mesh=make_mesh(), scale_factor=1.4) == plain

    def test_a_scale_too_small_for_the_layers(self):
        message = "min_size is 16, with a scale of 16x12 px, but layer relu5_1 needs .* 16 px"
        with pytest.raises(InputError, match=message) as error:
            scales(min_size=16, **DEEP)
        assert "\n" not in str(error.value) and "choose a larger min_size" in str(error.value)
        assert scales(min_size=32, **DEEP)[0][0] == (24, 32)
        # A custom loss checks itself.
        assert scales(min_size=16, layers=("conv5_1",))[0][0] == (12, 16)
        with pytest.raises(InputError, match="32x24 px, but layer relu5_1 .* at least 32 px"):
            scales(min_size=32, padding="reflect", **DEEP)
        # An image that is itself too small is refused elsewhere.
        assert scales((12, 16), min_size=8, **DEEP)[0][-1] == (12, 16)


CONTENT = jnp.asarray(smooth_image(24, 32, seed=1))
STYLES = [jnp.asarray(smooth_image(*shape, seed=2)) for shape in ((40, 20), (6, 31))]
HALF = np.zeros((24, 32), bool)
HALF[:, :16] = True
CONFIG = Config.of(**SHALLOW)


def full_inputs(*, config=CONFIG, **changes):
    given = dict(
        content=CONTENT,
        styles=STYLES,
        content_masks=np.stack([HALF, ~HALF]),
        style_masks=[None, np.ones((6, 31), int)],
        preserve=smooth_image(24, 32, seed=3)[..., 0].astype(float),
    )
    return check_inputs(config=config, **guided(given | changes))


class TestAtScale:
    def test_shapes(self):
        found = at_scale(full_inputs(), shape=(12, 16), config=CONFIG)
        content_masks, style_masks, preserve = (
            getattr(found.guidance, name) for name in ("content_masks", "style_masks", "preserve")
        )
        assert found.content.shape == (12, 16, 3)
        assert [style.shape for style in found.styles] == [(20, 10, 3), (3, 16, 3)]
        assert [mask.shape for mask in content_masks] == [(12, 16)] * 2
        assert style_masks[0] is None and style_masks[1].shape == (3, 16)
        assert preserve.shape == (12, 16)
        for array in (found.content, *content_masks, style_masks[1], preserve):
            assert array.dtype == np.float32
        tiny = at_scale(full_inputs(), shape=(3, 4), config=CONFIG)
        assert [style.shape[:2] for style in tiny.styles] == [(5, 2), (2, 4)]
        mirrored = CONFIG.but(padding="reflect")  # which needs maps of two rows
        tiny = at_scale(full_inputs(), shape=(3, 4), config=mirrored)
        assert [style.shape[:2] for style in tiny.styles] == [(5, 4), (4, 4)]

    def test_images_shrink_without_aliasing(self):
        """By the linear kernel, which stays within their range."""
        found = at_scale(full_inputs(), shape=(12, 16), config=CONFIG)
        for small, whole in zip([found.content, *found.styles], [CONTENT, *STYLES], strict=True):
            expected = resize(whole, shape=small.shape[:2], method="linear")
            np.testing.assert_array_equal(small, expected)
            assert whole.min() <= small.min() and small.max() <= whole.max()

    def test_masks(self):
        """They stay within [0, 1] to the last bit, and sums of 1 stay 1."""
        found = at_scale(full_inputs(), shape=(13, 17), config=CONFIG)
        for mask in (
            *found.guidance.content_masks,
            found.guidance.style_masks[1],
            found.guidance.preserve,
        ):
            assert 0 <= mask.min() and mask.max() <= 1
        np.testing.assert_allclose(sum(found.guidance.content_masks), 1, rtol=1e-6)
        assert 0 < found.guidance.content_masks[0][0, 8] < 1  # the border is soft
        np.testing.assert_array_equal(found.guidance.style_masks[1], 1)

    def test_styles_shrink_by_the_longer_side(self):
        found = at_scale(full_inputs(), shape=(16, 24), config=CONFIG)  # 2/3, 3/4
        assert [style.shape[:2] for style in found.styles] == [(30, 15), (4, 23)]

    @pytest.mark.parametrize(
        "layers, expected",
        [
            (SHALLOW, [(5, 2), (2, 4)]),
            (SHALLOW | {"style_layers": ["relu4_1"]}, [(8, 8), (6, 8)]),  # no larger than they were
            (SHALLOW | {"style_layers": []}, [(5, 2), (1, 4)]),
        ],
    )
    def test_styles_stay_large_enough_for_the_network(self, layers, expected):
        mask = np.ones(STYLES[0].shape[:2])
        given = full_inputs(content_masks=None, style_masks=[mask, None], preserve=None)
        found = at_scale(given, shape=(3, 4), config=Config.of(**layers))
        assert [style.shape[:2] for style in found.styles] == expected
        assert found.guidance.style_masks[0].shape == expected[0]

    def test_full_scale_returns_the_inputs(self):
        given = full_inputs()
        assert at_scale(given, shape=(24, 32), config=CONFIG) is given

    def test_without_masks_and_styles(self):
        found = at_scale(Inputs(CONTENT, []), shape=(12, 16), config=CONFIG)
        assert found[1:] == ([], Guidance(), None)


class TestAtFullSize:
    def test_it_is_enlarged(self):
        small = jnp.asarray(smooth_image(12, 16, seed=4)) * 1.4 - 0.2
        found = at_full_size(small, Inputs(CONTENT, STYLES), config=CONFIG)
        np.testing.assert_array_equal(found, resize(small, shape=(24, 32)))
        assert found.min() < -0.05 and found.max() > 1.05

    def test_colours_and_the_preserved_region_are_sharp(self):
        small = jnp.asarray(smooth_image(12, 16, seed=4))
        inputs = Inputs(CONTENT, STYLES, Guidance(preserve=jnp.asarray(HALF, jnp.float32)))
        found = at_full_size(small, inputs, config=CONFIG.but(color="luminance"))
        coloured = restore_colors(resize(small, shape=(24, 32)), CONTENT, mode="luminance")
        np.testing.assert_array_equal(found[:, :16], CONTENT[:, :16])
        np.testing.assert_array_equal(found[:, 16:], coloured[:, 16:])


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(content=jnp.zeros(5)), "content image has shape .5,.*expected .height, width, 3"),
        (dict(content=jnp.zeros((24, 32, 3), int)), "expected floats"),
        (dict(content=CONTENT * 255), "content image has values from .*: expected .0, 1."),
        (dict(styles=[STYLES[0] * np.nan]), "style image has NaN"),
        (dict(content=CONTENT[:1]), "content image is 32x1 px, but layer relu2_1"),
        (dict(styles=[STYLES[0][:1]]), "style image is 20x1 px, but layer relu2_1"),
        (dict(styles=[]), "no style image"),
        (dict(content_masks=[HALF[1:]]), "content mask 1 has shape .23, 32."),
        (dict(preserve=HALF[:, 1:]), "preserve mask has shape"),
        (dict(init=CONTENT[1:]), "initial image has shape"),
        (
            dict(
                style_masks=None,
                styles=[STYLES[0][:3]] * 2,
                config=CONFIG.but(padding="reflect"),
            ),
            "style image is 20x3 px, but with reflect padding layer relu2_1 .* at least 4 px",
        ),
        (
            dict(mesh=rows_mesh, content=CONTENT[:20], content_masks=None, preserve=None),
            "32x20 px, bu",
        ),
        (dict(mesh=rows_mesh, layers=("relu5_4",)), "layer relu5_4 needs a multiple of 64 px"),
    ],
)
def test_check_inputs_refuses(changes, message):
    changes = dict(changes)
    if "mesh" in changes:
        changes["mesh"] = changes["mesh"]()
    with pytest.raises(InputError, match=message):
        full_inputs(**changes)


def test_check_inputs():
    found = full_inputs(init=CONTENT, mesh=rows_mesh())
    assert found.init is CONTENT and found.guidance.preserve.dtype == np.float32
    full_inputs(content=CONTENT[:20], content_masks=None, preserve=None)
