"""Forms of total variation against loops over pixels, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nst_jax.losses import total_variation

generator = np.random.default_rng(0)
IMAGE = generator.uniform(size=(6, 9, 3))
MASK = generator.uniform(size=(6, 9))
FORMS = [
    ("anisotropic", 1),
    ("anisotropic", 2),
    ("isotropic", 1),
    ("isotropic", 2.5),
    ("nine-point", 2),
]


def numpy_variation(image, form, order, *, mask, wrap, corner):
    """Pixel by pixel."""
    height, width, _ = image.shape

    def at(y, x):
        if wrap:
            return image[y % height, x % width]
        return image[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]

    total = 0.0
    for y, x in np.ndindex(height, width):
        down, across = at(y + 1, x) - at(y, x), at(y, x + 1) - at(y, x)  # 0 beyond the border
        if form == "anisotropic":
            value = (abs(down) ** order + abs(across) ** order) / order
        elif form == "nine-point":
            value = 2 / 3 * (down**2 + across**2)
        else:
            inside = wrap or (y < height - 1 and x < width - 1)
            value = inside * (down**2 + across**2) ** (order / 2)
        total += mask[y, x] * value.sum()
    if form == "nine-point":
        for y, x in np.ndindex((height, width) if wrap else (height + 1, width + 1)):
            # The corner on the upper left of pixel y, x.
            first, second = at(y, x) - at(y - 1, x - 1), at(y, x - 1) - at(y - 1, x)
            owner = mask[min(y, height - 1), min(x, width - 1)]
            total += (1 if wrap else corner) * owner / 6 * ((first**2).sum() + (second**2).sum())
    return total


@jax.jit
def every_form(image, mask=None, corner=1.0):
    """Values of all forms and paddings, ``[10]``."""
    return jnp.stack(
        [
            total_variation(
                image, form=form, order=order, padding=padding, mask=mask, corner=corner
            )
            for form, order in FORMS
            for padding in ("zero", "circular")
        ]
    )


def every_expected(image, mask, corner=1.0):
    return [
        numpy_variation(image, form, order, mask=mask, wrap=wrap, corner=corner)
        for form, order in FORMS
        for wrap in (False, True)
    ]


@pytest.mark.parametrize("masked", [False, True])
def test_total_variation_is_that_of_loops_over_pixels(x64, variant, masked):
    given = (IMAGE, MASK) if masked else (IMAGE,)
    found = variant(lambda *given: every_form(*given, corner=0.7), *given)
    expected = every_expected(IMAGE, MASK if masked else np.ones((6, 9)), corner=0.7)
    # With a mask and circular padding, diagonals of the nine-point form have another owner, see
    # below.
    count = 9 if masked else 10
    np.testing.assert_allclose(found[:count], expected[:count], rtol=1e-12)


def test_owner_of_the_diagonals_of_circular_nine_points(x64):
    """A pixel owns its differences to the row below."""
    mask = np.zeros((6, 9))
    mask[5, 0] = 1
    here, total = IMAGE[5, 0], 0.0
    for (y, x), factor in {(5, 1): 2 / 3, (0, 0): 2 / 3, (0, 1): 1 / 6, (0, 8): 1 / 6}.items():
        total += factor * ((IMAGE[y, x] - here) ** 2).sum()
    found = total_variation(IMAGE, form="nine-point", padding="circular", mask=mask)
    np.testing.assert_allclose(found, total, rtol=1e-12)


def test_nine_points_are_means_over_each_kind_as_published(x64):
    """style-transfer-pytorch: 2 (mean dx^2 / 3 + mean dy^2 / 3 + (mean d1^2 + mean d2^2) / 12)."""
    padded = np.pad(IMAGE, ((1, 1), (1, 1), (0, 0)), mode="edge")
    here = padded[1:-1, 1:-1]
    straight = [padded[1:-1, 2:] - here, padded[2:, 1:-1] - here]
    diagonal = [padded[1:, 1:] - padded[:-1, :-1], padded[1:, :-1] - padded[:-1, 1:]]
    expected = sum((d**2).mean() for d in straight) * 2 / 3
    expected += sum((d**2).mean() for d in diagonal) / 6
    found = total_variation(IMAGE, form="nine-point", corner=6 * 9 / (7 * 10)) / IMAGE.size
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_total_variation_is_additive_over_masks_and_scales_with_the_pixel_range(x64):
    parts = [every_form(IMAGE, part) for part in (MASK, 1 - MASK)]
    np.testing.assert_allclose(sum(parts), every_form(IMAGE), rtol=1e-12)
    scales = np.repeat([255**order for _, order in FORMS], 2)
    np.testing.assert_allclose(every_form(IMAGE * 255), scales * every_form(IMAGE), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 4, 3), (4, 1, 3)])
def test_total_variation_of_a_pixel_a_row_and_a_column(x64, shape):
    image = generator.uniform(size=shape)
    expected = every_expected(image, np.ones(shape[:2]))
    np.testing.assert_allclose(every_form(image), expected, rtol=1e-12)
    assert np.isfinite(jax.jacrev(every_form)(image)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_of_flat_images_is_0_and_beside_them_finite(dtype):
    """At the kinks of |d| and of the length of the gradient."""
    gradients = jax.jit(jax.jacrev(every_form))
    flat = jnp.full((4, 5, 3), 0.3, dtype)
    found = gradients(flat)
    assert found.dtype == dtype and not np.float32(found).any()
    orders = np.repeat([order for _, order in FORMS], 2)
    for step in (1e-6, 1e-19, 1e-30, 1e4):  # the square of 1e-19 underflows in float32
        found = np.float64(gradients(jnp.zeros_like(flat).at[1, 2].set(step)))
        largest = np.abs(found).max((1, 2, 3))
        assert (largest <= 8 * orders * np.maximum(1, step ** (orders - 1))).all()


@pytest.mark.parametrize(
    "form, order, message",
    [
        ("anisotropic", 1.5, "'anisotropic' with order 1.5: expected one of anisotropic"),
        ("isotropic", 0.5, "'isotropic' with order 0.5"),
        ("nine-point", 1, "'nine-point' with order 1"),
        ("diagonal", 2, "form is 'diagonal'.*anisotropic, isotropic, nine-point"),
    ],
)
def test_unknown_forms_and_orders_are_refused(form, order, message):
    with pytest.raises(ValueError, match=message):
        total_variation(IMAGE, form=form, order=order)


@pytest.mark.slow
def test_gradients_to_second_order(x64):
    mask = jnp.asarray(MASK[:3, :4])
    check_grads(
        lambda image: every_form(image, mask),
        (IMAGE[:3, :4],),
        order=2,
        atol=1e-4,
        rtol=1e-4,
        eps=1e-6,
    )
