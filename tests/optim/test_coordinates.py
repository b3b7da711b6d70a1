"""Coordinates: the spectral transform against NumPy, wrapped optimisers against those in z."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nst_jax.optim import make_optimizer
from nst_jax.optim.optimizers import _spectral, in_pixel_units, in_spectral_coordinates, lbfgs


def random_image(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def plain_spectral(image):
    """The transform by NumPy's full complex FFT."""
    height, width, _ = image.shape
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    amplitude = np.maximum(np.hypot(y, x), 1 / max(height, width)) ** -0.35
    half = amplitude[:, : width // 2 + 1]  # what a real FFT keeps
    amplitude = amplitude / np.sqrt(np.mean(half**2))
    image = np.fft.ifft2(np.fft.fft2(image, axes=(0, 1)) * amplitude[..., None], axes=(0, 1)).real
    grey = image.mean(-1, keepdims=True)
    return image - grey + 0.6 * grey


@pytest.mark.parametrize("shape", [(8, 12, 3), (7, 9, 3), (1, 5, 3), (6, 1, 3)])
def test_spectral_transform_is_invertible_symmetric_and_positive(x64, shape):
    image, other = random_image(shape), random_image(shape, 1)
    transformed = _spectral(1.0)(jnp.asarray(image))
    np.testing.assert_allclose(transformed, plain_spectral(image), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(_spectral(-1.0)(transformed), image, rtol=1e-10, atol=1e-12)
    symmetric = np.vdot(other, transformed), np.vdot(_spectral(1.0)(jnp.asarray(other)), image)
    np.testing.assert_allclose(*symmetric, rtol=1e-10)
    assert np.vdot(image, transformed) > 0


def smooth(x):
    return jnp.sum(jnp.cosh(x)) + jnp.sum((x[1:] - x[:-1]) ** 2)


SPECTRAL = in_spectral_coordinates, _spectral(1.0), _spectral(-1.0)
PIXELS = (lambda inner: in_pixel_units(inner, 255.0)), (lambda z: z / 255), (lambda x: 255 * x)


@pytest.mark.parametrize(
    "coordinates, inner",
    [
        (SPECTRAL, lbfgs(0.5, 3)),
        (SPECTRAL, optax.adam(0.1)),
        (PIXELS, lbfgs(1.0, 3)),
        (PIXELS, optax.adam(2.0, eps=1e-3)),
    ],
    ids=["spectral-lbfgs", "spectral-adam", "pixels-lbfgs", "pixels-adam"],
)
def test_steps_are_those_of_the_optimiser_in_z(x64, coordinates, inner):
    """x = T z takes the steps that the optimiser itself takes on f(T z)."""
    wrap, transform, inverse = coordinates
    wrapped = wrap(inner)
    x = jnp.asarray(random_image((6, 8, 3)))
    z = inverse(x)
    state, z_state = wrapped.init(x), inner.init(z)

    @jax.jit
    def step(x, state, z, z_state):
        updates, state = wrapped.update(jax.grad(smooth)(x), state, x)
        gradient = jax.grad(lambda z: smooth(transform(z)))(z)
        z_updates, z_state = inner.update(gradient, z_state, z)
        return x + updates, state, z + z_updates, z_state

    for _ in range(6):
        x, state, z, z_state = step(x, state, z, z_state)
        np.testing.assert_allclose(x, transform(z), rtol=1e-8, atol=1e-10)


def test_line_search_evaluates_the_function_in_the_inner_coordinates(x64):
    optimizer = make_optimizer("lbfgs-linesearch", preconditioner="spectral", pixel_range=255.0)
    x = jnp.asarray(random_image((6, 8, 3)))
    state = optimizer.init(x)

    @jax.jit
    def step(x, state):
        value, gradient = jax.value_and_grad(smooth)(x)
        updates, state = optimizer.update(
            gradient, state, x, value=value, grad=gradient, value_fn=smooth
        )
        return value, x + updates, state

    values = []
    for _ in range(10):
        value, x, state = step(x, state)
        values.append(float(value))
    minimum = x.size  # cosh(0) each
    assert values == sorted(values, reverse=True)
    assert values[-1] - minimum < 0.3 * (values[0] - minimum)


def test_parameters_are_required():
    for name in ("lbfgs", "adam"):
        optimizer = make_optimizer(name)
        with pytest.raises(ValueError, match="needs the parameters"):
            optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)))
    with pytest.raises(ValueError, match="optimizer is 'sgd': expected lbfgs"):
        make_optimizer("sgd")
