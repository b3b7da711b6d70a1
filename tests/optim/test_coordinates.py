"""Spectral coordinates: the transform against NumPy, the wrapper against running in z."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nst_jax.optim import make_optimizer, scale_by_torch_lbfgs
from nst_jax.optim.optimizers import _spectral, in_spectral_coordinates, lbfgs

pytestmark = pytest.mark.sampled

SHAPES = [(8, 12, 3), (7, 9, 3), (1, 5, 3), (6, 1, 3)]


def photo(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def plain_spectral(image):
    """The transform by NumPy's whole complex FFT."""
    height, width, _ = image.shape
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    amplitude = np.maximum(np.hypot(y, x), 1 / max(height, width)) ** -0.35
    half = amplitude[:, : width // 2 + 1]  # what a real FFT keeps
    amplitude = amplitude / np.sqrt(np.mean(half**2))
    image = np.fft.ifft2(np.fft.fft2(image, axes=(0, 1)) * amplitude[..., None], axes=(0, 1)).real
    grey = image.mean(-1, keepdims=True)
    return image - grey + 0.6 * grey


@pytest.mark.parametrize("shape", SHAPES)
def test_transform(x64, shape):
    image, other = photo(shape), photo(shape, 1)
    transformed = _spectral(1.0)(jnp.asarray(image))
    np.testing.assert_allclose(transformed, plain_spectral(image), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(_spectral(-1.0)(transformed), image, rtol=1e-10, atol=1e-12)
    symmetric = np.vdot(other, transformed), np.vdot(_spectral(1.0)(jnp.asarray(other)), image)
    np.testing.assert_allclose(*symmetric, rtol=1e-10)
    assert np.vdot(image, transformed) > 0


def smooth(x):
    return jnp.sum(jnp.cosh(x)) + jnp.sum((x[1:] - x[:-1]) ** 2)


@pytest.mark.parametrize("inner", [lbfgs(0.5, 3), optax.adam(0.1)], ids=["lbfgs", "adam"])
@pytest.mark.slow
def test_steps_are_those_in_z(x64, inner):
    """x = T z takes the steps that the plain optimiser takes on f(T z)."""
    wrapped = in_spectral_coordinates(inner)
    x = jnp.asarray(photo((6, 8, 3)))
    z = _spectral(-1.0)(x)
    state, z_state = wrapped.init(x), inner.init(z)
    for _ in range(6):
        updates, state = wrapped.update(jax.grad(smooth)(x), state, x)
        gradient = jax.grad(lambda z: smooth(_spectral(1.0)(z)))(z)
        z_updates, z_state = inner.update(gradient, z_state, z)
        x, z = x + updates, z + z_updates
        np.testing.assert_allclose(x, _spectral(1.0)(z), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["lbfgs", "lbfgs-linesearch", "adam"])
def test_every_optimiser_descends(x64, name):
    optimizer = make_optimizer(name, preconditioner="spectral", pixel_range=1.0)
    x = jnp.asarray(photo((6, 8, 3)))
    state = optimizer.init(x)
    if name == "adam":
        state = optax.tree.set(state, learning_rate=0.1)
    before = smooth(x)
    for _ in range(10):
        value, gradient = jax.value_and_grad(smooth)(x)
        updates, state = optimizer.update(
            gradient, state, x, value=value, grad=gradient, value_fn=smooth
        )
        x = x + updates
    minimum = x.size  # cosh(0) each
    assert smooth(x) - minimum < 0.3 * (before - minimum)


def test_first_step_and_gain(x64):
    """The first update has the given size; the second is the two-loop recursion's with 2 gamma."""
    x, gradient = jnp.asarray(photo((4, 4, 3))), jnp.asarray(photo((4, 4, 3), 1))
    optimizer = scale_by_torch_lbfgs(5, first_step=0.02, gain=2.0)
    first, state = optimizer.update(gradient, optimizer.init(x), x)
    np.testing.assert_allclose(np.sqrt(np.mean(first**2)), 0.02, rtol=1e-12)
    np.testing.assert_allclose(first / gradient, (first / gradient)[0, 0, 0], rtol=1e-9)

    s = -first
    y = 3 * s + 0.01 * photo((4, 4, 3), 2)
    second, _ = optimizer.update(gradient + y, state, x + s)
    rho, gamma = 1 / np.vdot(s, y), np.vdot(s, y) / np.vdot(y, y)
    alpha = rho * np.vdot(s, gradient + y)
    direction = 2 * gamma * (gradient + y - alpha * y)
    direction += (alpha - rho * np.vdot(y, direction)) * s
    np.testing.assert_allclose(second, direction, rtol=1e-9)


def test_the_first_step_of_an_enormous_gradient():
    gradient = jnp.full((4, 4, 3), 1e30)
    optimizer = scale_by_torch_lbfgs(5, first_step=0.02)
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_allclose(updates, 0.02, rtol=1e-5)


def test_a_gradient_of_zeros_gives_no_step(x64):
    optimizer = scale_by_torch_lbfgs(5, first_step=0.02)
    zeros = jnp.zeros((4, 4, 3))
    updates, _ = optimizer.update(zeros, optimizer.init(zeros), zeros)
    np.testing.assert_array_equal(updates, zeros)
