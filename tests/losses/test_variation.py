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


def anisotropic(image, order, *, mask, wrap, corner):
    height, width, _ = image.shape
    total = 0.0
    for y in range(height):
        for x in range(width):
            for below, right in ((1, 0), (0, 1)):
                if not wrap and (y + below == height or x + right == width):
                    continue
                step = image[(y + below) % height, (x + right) % width] - image[y, x]
                total += mask[y, x] * (np.abs(step) ** order / order).sum()
    return total


def isotropic(image, order, *, mask, wrap, corner):
    height, width, _ = image.shape
    total = 0.0
    for y in range(height if wrap else height - 1):
        for x in range(width if wrap else width - 1):
            down = image[(y + 1) % height, x] - image[y, x]
            across = image[y, (x + 1) % width] - image[y, x]
            total += mask[y, x] * ((across**2 + down**2) ** (order / 2)).sum()
    return total


def nine_point(image, order, *, mask, wrap, corner):
    """Of pixels to the right and below, and of both diagonals of each square of four pixels."""
    height, width, _ = image.shape

    def at(y, x):
        if wrap:
            return image[y % height, x % width]
        return image[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]

    total = 0.0
    for y in range(height):
        for x in range(width):
            for step in (at(y, x + 1) - at(y, x), at(y + 1, x) - at(y, x)):
                total += mask[y, x] * 2 / 3 * (step**2).sum()
    ends = (height, width) if wrap else (height + 1, width + 1)
    for y in range(ends[0]):
        for x in range(ends[1]):  # the corner above pixel y, x to its left
            first, second = at(y, x) - at(y - 1, x - 1), at(y, x - 1) - at(y - 1, x)
            owner = mask[min(y, height - 1), min(x, width - 1)]
            total += (1 if wrap else corner) * owner / 6 * ((first**2).sum() + (second**2).sum())
    return total


ORACLES = {"anisotropic": anisotropic, "isotropic": isotropic, "nine-point": nine_point}


def every_form(image, mask=None, *, corner=1.0):
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


def test_total_variation(x64, variant):
    """Without factors of the pixels, and with them."""
    found = variant(
        lambda image, mask: jnp.stack(
            [every_form(image, corner=0.7), every_form(image, mask, corner=0.7)]
        ),
        IMAGE,
        MASK,
    )
    for values, mask in zip(found, (np.ones((6, 9)), MASK), strict=True):
        expected = [
            ORACLES[form](IMAGE, order, mask=mask, wrap=wrap, corner=0.7)
            for form, order in FORMS
            for wrap in (False, True)
        ]
        if mask is MASK:  # where all nine points wrap, diagonals have another owner, see below
            values, expected = values[:-1], expected[:-1]
        np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_factors_of_the_pixels_where_all_nine_points_wrap(x64):
    """A pixel owns the diagonals to its row below: a factor of one pixel is that of its own."""
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


def test_total_variation_is_additive_over_masks(x64):
    parts = [every_form(IMAGE, part) for part in (MASK, 1 - MASK)]
    np.testing.assert_allclose(sum(parts), every_form(IMAGE), rtol=1e-12)


def test_total_variation_scales_with_the_pixel_range(x64):
    scales = np.repeat([255**order for _, order in FORMS], 2)
    np.testing.assert_allclose(every_form(IMAGE * 255), scales * every_form(IMAGE), rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 4, 3), (4, 1, 3)])
@pytest.mark.slow
def test_total_variation_of_a_row_and_a_pixel(x64, shape):
    image = generator.uniform(size=shape)
    of = {"mask": np.ones(shape[:2]), "corner": 1.0}
    expected = [ORACLES[f](image, order, wrap=w, **of) for f, order in FORMS for w in (False, True)]
    np.testing.assert_allclose(every_form(image), expected, rtol=1e-12)
    assert np.isfinite(jax.jacrev(every_form)(image)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_of_flat_images_is_0(dtype):
    """At the kink of |d| and of the gradient's length; beside it, it is finite."""
    gradients = jax.jit(jax.jacrev(every_form))
    flat = jnp.full((4, 5, 3), 0.3, dtype)
    found = gradients(flat)
    assert found.dtype == dtype and not np.float32(found).any()
    orders = np.repeat([order for _, order in FORMS], 2)
    for step in (1e-6, 1e-19, 1e-30, 1e4):  # 1e-19 squared is less than float32 has
        found = np.float64(gradients(jnp.zeros_like(flat).at[1, 2].set(step)))
        assert np.isfinite(found).all()
        largest = np.abs(found).max((1, 2, 3))
        assert (largest <= 8 * orders * np.maximum(1, step ** (orders - 1))).all()


@pytest.mark.parametrize(
    "form, order, message",
    [
        ("anisotropic", 3, "'anisotropic' with order 3: expected one of anisotropic"),
        ("anisotropic", 1.5, "with order 1.5"),
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
    values = jax.jit(lambda image: every_form(image, jnp.asarray(MASK)))
    check_grads(values, (IMAGE,), order=2, atol=1e-4, rtol=1e-4, eps=1e-6)
