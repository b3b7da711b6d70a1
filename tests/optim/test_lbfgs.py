"""L-BFGS against torch.optim.LBFGS step by step, against optax's, and against the algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nst_jax.optim import make_optimizer, scale_by_torch_lbfgs
from nst_jax.optim.optimizers import lbfgs

START = np.linspace(-1.5, 1.5, 12)


def quartic(x):
    """Badly scaled and not quadratic, with negative curvature near the start."""
    scales = jnp.linspace(1.0, 30.0, x.size)
    return jnp.sum(scales * (x**4 / 4 - x**2 / 2)) + jnp.sum((x[1:] - x[:-1]) ** 2)


def torch_iterates(start, *, steps, memory_size):
    torch = pytest.importorskip("torch")
    x = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [x], max_iter=steps, tolerance_grad=-1, tolerance_change=-1, history_size=memory_size
    )
    scales = torch.linspace(1.0, 30.0, x.numel(), dtype=x.dtype)
    visited = []

    def closure():
        visited.append(x.detach().numpy().copy())
        optimizer.zero_grad()
        loss = (scales * (x**4 / 4 - x**2 / 2)).sum() + ((x[1:] - x[:-1]) ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return np.array(visited)


@pytest.mark.parametrize("memory_size", [2, 100])
def test_iterates_are_those_of_torch(x64, memory_size):
    start, optimizer = 0.4 * START, lbfgs(1.0, memory_size)
    expected = torch_iterates(start, steps=25, memory_size=memory_size)
    x, visited = jnp.asarray(start), []
    state, update = optimizer.init(x), jax.jit(optimizer.update)
    for _ in range(25):
        visited.append(np.asarray(x))
        updates, state = update(jax.grad(quartic)(x), state, x)
        x = x + updates
    np.testing.assert_allclose(visited, expected, rtol=1e-6, atol=1e-8)
    # The steps cross negative curvature, where a pair is dropped, as in Torch.
    assert 0 < state[0].pairs < 24


def test_updates_stay_small_until_a_pair_is_stored():
    """On negative curvature, where Torch steps by the whole gradient."""
    optimizer = scale_by_torch_lbfgs(3)
    x = jnp.full(4, 2.0)
    state, update = optimizer.init(x), jax.jit(optimizer.update)
    for _ in range(3):
        gradient = -1e6 * x  # of a concave function
        direction, state = update(gradient, state, x)
        np.testing.assert_allclose(jnp.sum(jnp.abs(direction)), 1.0, rtol=1e-5)
        x = x - direction
    assert state.pairs == 0 and state.count == 3


def test_directions_are_those_of_optax_if_no_pair_is_dropped(x64):
    def bowl(x):
        return jnp.sum(jnp.linspace(1.0, 30.0, x.size) * x**2) / 2

    optimizer, reference = scale_by_torch_lbfgs(4), optax.scale_by_lbfgs(4)
    update, reference_update = jax.jit(optimizer.update), jax.jit(reference.update)
    x = jnp.asarray(START)
    state, reference_state = optimizer.init(x), reference.init(x)
    for step in range(8):
        gradient = jax.grad(bowl)(x)
        direction, state = update(gradient, state, x)
        expected, reference_state = reference_update(gradient, reference_state, x)
        if step > 0:  # the first step is scaled in another norm
            np.testing.assert_allclose(direction, expected, rtol=1e-8)
        x = x - 0.3 * direction


@pytest.mark.optimized
def test_a_batch_is_bit_equal_to_singles():
    """Even if batch elements have stored different numbers of pairs."""
    starts = np.float32([START, START * 0.1, START[::-1]])
    optimizer = scale_by_torch_lbfgs(3)

    def trajectory(update, init, gradient, x):
        state, visited = init(x), []
        for _ in range(8):
            direction, state = update(gradient(x), state, x)
            x = x - 0.5 * direction
            visited.append(x)
        return jnp.stack(visited, -2), state.pairs

    gradient, update = jax.grad(quartic), jax.jit(optimizer.update)
    batch, pairs = trajectory(
        jax.jit(jax.vmap(optimizer.update)), jax.vmap(optimizer.init), jax.vmap(gradient), starts
    )
    singles = [trajectory(update, optimizer.init, gradient, start)[0] for start in starts]
    np.testing.assert_array_equal(batch, singles)
    assert len(set(pairs.tolist())) > 1


@pytest.mark.parametrize("pixel_range", [1e-3, 1.0, 255.0])
def test_the_first_step_is_that_of_torch_on_scaled_pixels(x64, pixel_range):
    """g min(1, 1 / |g|_1) in units of scaled pixels, whether the cap binds or not."""
    x = jnp.asarray(START)
    gradient = jax.grad(quartic)(x)
    optimizer = lbfgs(pixel_range=pixel_range)
    found, state = optimizer.update(gradient, optimizer.init(x), x)
    in_z = gradient / pixel_range
    by_hand = -in_z * min(1, 1 / np.abs(in_z).sum()) / pixel_range
    np.testing.assert_allclose(found, by_hand, rtol=1e-12)
    assert state[0].count == 1


def test_first_step_and_gain(x64):
    """The first update has the given size; the second is H g by hand with twice gamma."""
    image = np.random.default_rng(0).normal(size=(3, 4, 4, 3))
    x, gradient, noise = (jnp.asarray(one) for one in image)
    optimizer = scale_by_torch_lbfgs(5, first_step=0.02, gain=2.0)
    first, state = optimizer.update(gradient, optimizer.init(x), x)
    np.testing.assert_allclose(np.sqrt(np.mean(first**2)), 0.02, rtol=1e-12)
    np.testing.assert_allclose(first / gradient, (first / gradient)[0, 0, 0], rtol=1e-9)

    s = -first
    y = 3 * s + 0.01 * noise
    second, _ = optimizer.update(gradient + y, state, x + s)
    rho, gamma = 1 / np.vdot(s, y), np.vdot(s, y) / np.vdot(y, y)
    alpha = rho * np.vdot(s, gradient + y)
    direction = 2 * gamma * (gradient + y - alpha * y)
    direction += (alpha - rho * np.vdot(y, direction)) * s
    np.testing.assert_allclose(second, direction, rtol=1e-9)


@pytest.mark.parametrize("gradient, size", [(1e30, 0.02), (0.0, 0.0)])
def test_the_first_step_of_extreme_gradients(gradient, size):
    gradient = jnp.full((4, 4, 3), gradient)
    optimizer = scale_by_torch_lbfgs(5, first_step=0.02)
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_allclose(updates, size, rtol=1e-5)


@pytest.fixture(scope="module")
def descents():
    """Values and last state on a quadratic of condition 1000, by type of the pairs."""
    scales = jnp.logspace(0, 3, 200, dtype=np.float32)
    start = jnp.asarray(np.random.default_rng(0).normal(size=200), np.float32)
    found = {}
    for dtype in (None, "bfloat16"):
        optimizer = lbfgs(1.0, 10, memory_dtype=dtype)

        @jax.jit
        def step(x, state, optimizer=optimizer):
            value, gradient = jax.value_and_grad(lambda x: jnp.sum(scales * x**2) / 2)(x)
            updates, state = optimizer.update(gradient, state, x)
            return value, x + updates, state

        x, state, values = start, optimizer.init(start), []
        for _ in range(60):
            value, x, state = step(x, state)
            values.append(float(value))
        found[dtype] = np.array(values), state[0]
    return found


class TestMemoryInBfloat16:
    def test_only_the_pairs_are_narrow(self, descents):
        types = {name: str(leaf.dtype) for name, leaf in descents["bfloat16"][1]._asdict().items()}
        assert types.pop("s") == types.pop("y") == "uint16"  # its bits
        assert types == dict.fromkeys(("params", "grads", "rho", "gamma"), "float32") | {
            "count": "int32",
            "pairs": "int32",
        }
        assert {leaf.dtype for leaf in descents[None][1][4:]} == {np.dtype(np.float32)}

    def test_rho_and_gamma_are_those_of_the_rounded_pairs(self, descents):
        """Otherwise the inverse Hessian might not be positive definite."""
        state = descents["bfloat16"][1]
        s, y = (
            np.asarray(jax.lax.bitcast_convert_type(bits, jnp.bfloat16), np.float64)
            for bits in (state.s, state.y)
        )
        assert state.pairs > 10  # slots were overwritten
        curvatures = np.sum(s * y, axis=1)
        np.testing.assert_allclose(state.rho, 1 / curvatures, rtol=1e-5)
        newest = (int(state.pairs) - 1) % 10
        gamma = curvatures[newest] / np.sum(y[newest] ** 2)
        np.testing.assert_allclose(state.gamma, gamma, rtol=1e-5)

    def test_it_converges_nearly_as_well(self, descents):
        wide, narrow = descents[None][0], descents["bfloat16"][0]
        assert np.isfinite(narrow).all() and not np.array_equal(wide, narrow)
        assert wide.min() < 1e-3 * wide[0]
        assert np.log(narrow.min() / narrow[0]) < 0.8 * np.log(wide.min() / wide[0])

    def test_through_make_optimizer(self):
        with pytest.raises(ValueError, match="memory_dtype is 'float16': expected None or"):
            lbfgs(memory_dtype="float16")
        options = {"memory_size": 3, "preconditioner": "spectral", "memory_dtype": "bfloat16"}
        state = make_optimizer("lbfgs", **options).init(jnp.ones((8, 8, 3)))
        s = optax.tree.get(state, "s")
        assert s.dtype == np.uint16 and s.size == 3 * 8 * 8 * 3
