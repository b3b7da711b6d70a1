"""Winograd's convolution against direct summation."""

import jax.numpy as jnp
import numpy as np
import pytest

from nst_jax.models.convolution import DATA, KERNEL, OUTPUT, winograd_conv, winograd_kernel


def correlate(x, kernel):
    """Zero-padded 3x3 correlation, position by position: ``[H, W, in]`` to ``[H, W, out]``."""
    height, width, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    return np.array(
        [
            [np.tensordot(padded[i : i + 3, j : j + 3], kernel, axes=3) for j in range(width)]
            for i in range(height)
        ]
    )


def test_matrices_give_the_exact_correlation():
    """A^T ((G g) * (B^T d)) is the valid correlation of six values with three."""
    generator = np.random.default_rng(0)
    data, kernel = generator.normal(size=6), generator.normal(size=3)
    expected = [data[i : i + 3] @ kernel for i in range(4)]
    np.testing.assert_allclose(OUTPUT @ ((KERNEL @ kernel) * (DATA @ data)), expected, rtol=1e-13)


@pytest.mark.parametrize("sides", [(1, 1), (4, 4), (5, 13)])
def test_convolution_equals_direct_summation(sides, x64):
    generator = np.random.default_rng(1)
    x, kernel = generator.normal(size=(*sides, 3)), generator.normal(size=(3, 3, 3, 5))
    actual = winograd_conv(jnp.asarray(x)[None], winograd_kernel(jnp.asarray(kernel)))
    np.testing.assert_allclose(actual[0], correlate(x, kernel), rtol=1e-11, atol=1e-11)


def test_rounding_error_in_float32():
    """With the usual points 0, +-1, +-2 it would be 2.6e-6."""
    generator = np.random.default_rng(2)
    x = np.maximum(generator.normal(size=(1, 16, 16, 256)), 0).astype(np.float32)
    kernel = generator.normal(size=(3, 3, 256, 8), scale=1 / 48).astype(np.float32)
    exact = correlate(x[0].astype(np.float64), kernel.astype(np.float64))
    error = winograd_conv(jnp.asarray(x), winograd_kernel(jnp.asarray(kernel)))[0] - exact
    assert np.sqrt(np.mean(error**2)) < 1.8e-6 * exact.std()
