"""L-BFGS against torch.optim.LBFGS step by step, and against optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nst_jax.optim import make_optimizer, scale_by_torch_lbfgs
from nst_jax.optim.optimizers import in_pixel_units, lbfgs

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


def iterates(optimizer, start, *, steps):
    x, visited = jnp.asarray(start), []
    state = optimizer.init(x)
    update = jax.jit(optimizer.update)
    for _ in range(steps):
        visited.append(np.asarray(x))
        updates, state = update(jax.grad(quartic)(x), state, x)
        x = x + updates
    return np.array(visited), state


@pytest.mark.parametrize("memory_size", [2, 5, 100])
def test_iterates_are_torch_s(x64, memory_size):
    start = 0.4 * START
    expected = torch_iterates(start, steps=25, memory_size=memory_size)
    actual, state = iterates(lbfgs(1.0, memory_size), start, steps=25)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-8)
    # The steps cross negative curvature: a later pair was dropped, as Torch does.
    assert 0 < state[0].pairs < 24


def test_updates_stay_small_until_a_pair_is_remembered():
    """On negative curvature, where Torch takes the whole gradient for a step."""
    optimizer = scale_by_torch_lbfgs(3)
    x = jnp.full(4, 2.0)
    state = optimizer.init(x)
    for _ in range(3):
        gradient = -1e6 * x  # of a concave function
        direction, state = optimizer.update(gradient, state, x)
        np.testing.assert_allclose(jnp.sum(jnp.abs(direction)), 1.0, rtol=1e-5)
        x = x - direction
    assert state.pairs == 0 and state.count == 3


def test_direction_is_optax_s_where_no_pair_is_dropped(x64):
    def bowl(x):
        return jnp.sum(jnp.linspace(1.0, 30.0, x.size) * x**2) / 2

    ours, optaxs = scale_by_torch_lbfgs(4), optax.scale_by_lbfgs(4)
    x = jnp.asarray(START)
    state, optax_state = ours.init(x), optaxs.init(x)
    for step in range(8):
        gradient = jax.grad(bowl)(x)
        direction, state = ours.update(gradient, state, x)
        optax_direction, optax_state = optaxs.update(gradient, optax_state, x)
        if step > 0:  # the first step is scaled in another norm
            np.testing.assert_allclose(direction, optax_direction, rtol=1e-8)
        x = x - 0.3 * direction


def test_first_step_is_capped_by_the_absolute_sum():
    optimizer = scale_by_torch_lbfgs(3)
    for gradient in (np.array([3.0, -5.0]), np.array([0.1, 0.2])):
        gradient = jnp.asarray(gradient, jnp.float32)
        direction, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
        np.testing.assert_allclose(direction, gradient * min(1, 1 / np.abs(gradient).sum()))


@pytest.mark.optimized
def test_batch_is_bit_equal_to_singles():
    """Also where batch elements have remembered different numbers of pairs."""
    starts = np.float32([START, START * 0.1, START[::-1]])
    optimizer = scale_by_torch_lbfgs(3)

    def trajectory(update, init, gradient, x):
        state, visited = init(x), []
        for _ in range(8):
            direction, state = update(gradient(x), state, x)
            x = x - 0.5 * direction
            visited.append(x)
        return jnp.stack(visited, -2), state.pairs

    gradient = jax.grad(quartic)
    batch, pairs = trajectory(
        jax.jit(jax.vmap(optimizer.update)), jax.vmap(optimizer.init), jax.vmap(gradient), starts
    )
    singles = [
        trajectory(jax.jit(optimizer.update), optimizer.init, gradient, start)[0]
        for start in starts
    ]
    np.testing.assert_array_equal(batch, singles)
    assert len(set(pairs.tolist())) > 1


@pytest.mark.parametrize(
    "scaled, inner",
    [
        (in_pixel_units(optax.adam(2.0, eps=1e-3), 255.0), optax.adam(2.0, eps=1e-3)),
        (in_pixel_units(lbfgs(1.0, 3), 255.0), lbfgs(1.0, 3)),
        (lbfgs(1.0, 3, pixel_range=255.0), lbfgs(1.0, 3)),
    ],
    ids=["adam", "lbfgs wrapped", "lbfgs"],
)
def test_pixel_units_are_those_of_scaled_parameters(x64, scaled, inner):
    """x in [0, 1] with a factor of 255 takes the steps of 255 x without it."""
    x, z = jnp.asarray(START), 255 * jnp.asarray(START)
    state, z_state = scaled.init(x), inner.init(z)
    for _ in range(5):
        updates, state = scaled.update(jax.grad(quartic)(x), state, x)
        z_updates, z_state = inner.update(jax.grad(lambda z: quartic(z / 255))(z), z_state, z)
        x, z = x + updates, z + z_updates
        np.testing.assert_allclose(255 * x, z, rtol=1e-9)


@pytest.mark.parametrize("pixel_range", [1e-3, 1.0, 1e3])
def test_the_first_step_s_cap_in_pixel_units(x64, pixel_range):
    """Also where the cap does not bind."""
    x = jnp.asarray(START)
    gradient = jax.grad(quartic)(x)
    own, wrapped = lbfgs(pixel_range=pixel_range), in_pixel_units(lbfgs(), pixel_range)
    expected, _ = wrapped.update(gradient, wrapped.init(x), x)
    np.testing.assert_allclose(own.update(gradient, own.init(x), x)[0], expected, rtol=1e-12)


def test_adam_s_conversion_to_unit_pixels(x64):
    """Learning rate / 255 and eps * 255, as the presets' notes say."""
    scaled = in_pixel_units(optax.adam(2.0, eps=1e-3), 255.0)
    plain = optax.adam(2.0 / 255, eps=1e-3 * 255)
    x = jnp.asarray(START)
    gradient = jax.grad(quartic)(x)
    expected, _ = plain.update(gradient, plain.init(x), x)
    np.testing.assert_allclose(scaled.update(gradient, scaled.init(x), x)[0], expected, rtol=1e-12)


def test_line_search_sees_the_function_in_pixel_units(x64):
    optimizer = make_optimizer("lbfgs-linesearch", pixel_range=255.0)
    x = jnp.asarray(START)
    state = optimizer.init(x)
    values = []
    for _ in range(10):
        value, gradient = jax.value_and_grad(quartic)(x)
        values.append(float(value))
        updates, state = optimizer.update(
            gradient, state, x, value=value, grad=gradient, value_fn=quartic
        )
        x = x + updates
    assert values == sorted(values, reverse=True) and values[-1] < values[0] - 1


def test_parameters_are_required():
    optimizer = make_optimizer("lbfgs")
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)))


class TestNarrowMemory:
    """Differences remembered in bfloat16."""

    @staticmethod
    def descend(memory_dtype, *, steps=60, size=200, dtype=np.float32):
        """On a quadratic of condition 1000; the values, and the state."""
        scales = jnp.logspace(0, 3, size, dtype=dtype)

        def value(x):
            return jnp.sum(scales * jnp.square(x)) / 2

        optimizer = lbfgs(1.0, 10, memory_dtype=memory_dtype)
        x = jnp.asarray(np.random.default_rng(0).normal(size=size), dtype)
        state, values = optimizer.init(x), []
        update = jax.jit(optimizer.update)
        for _ in range(steps):
            found, gradient = jax.value_and_grad(value)(x)
            updates, state = update(gradient, state, x)
            values.append(float(found))
            x = x + updates
        assert x.dtype == dtype
        return np.array(values), state[0]

    def test_state(self):
        """The differences alone are narrow, and not the sums or what differences are taken of."""
        _, state = self.descend("bfloat16", steps=13)
        types = {name: str(getattr(state, name).dtype) for name in state._fields}
        assert types.pop("s") == types.pop("y") == "uint16"  # its bits
        assert types == dict.fromkeys(("params", "grads", "rho", "gamma"), "float32") | {
            "count": "int32",
            "pairs": "int32",
        }
        before = optax.tree.get(lbfgs(memory_dtype="bfloat16").init(jnp.ones(3)), "s")
        assert before.dtype == np.uint16 and before.shape == (100, 3)

    def test_the_default_is_that_of_the_parameters(self, x64):
        for dtype in (np.float32, np.float64):
            _, state = self.descend(None, steps=3, dtype=dtype)
            assert {leaf.dtype for leaf in (state.s, state.y, state.rho)} == {np.dtype(dtype)}

    def test_rho_and_gamma_are_of_the_pairs_as_remembered(self):
        """The rounded ones: else the inverse Hessian would not be positive in all directions."""
        _, state = self.descend("bfloat16", steps=27)
        s, y = (
            np.asarray(jax.lax.bitcast_convert_type(bits, jnp.bfloat16), np.float64)
            for bits in (state.s, state.y)
        )
        assert state.pairs > 10  # the memory was used again
        curvatures = np.sum(s * y, axis=1)
        np.testing.assert_allclose(state.rho, 1 / curvatures, rtol=1e-5)
        newest = (int(state.pairs) - 1) % 10
        gamma = curvatures[newest] / np.sum(y[newest] ** 2)
        np.testing.assert_allclose(state.gamma, gamma, rtol=1e-5)

    def test_another_type_is_refused(self):
        with pytest.raises(ValueError, match="memory_dtype is 'float16': expected None or"):
            lbfgs(memory_dtype="float16")

    def test_it_converges_nearly_as_well(self):
        wide, narrow = (self.descend(dtype)[0] for dtype in (None, "bfloat16"))
        assert np.isfinite(narrow).all() and not np.array_equal(wide, narrow)
        assert wide.min() < 1e-3 * wide[0]
        assert np.log(narrow.min() / narrow[0]) < 0.8 * np.log(wide.min() / wide[0])

    def test_through_make_optimizer(self):
        for preconditioner in ("none", "spectral"):
            optimizer = make_optimizer(
                "lbfgs", memory_size=3, preconditioner=preconditioner, memory_dtype="bfloat16"
            )
            state = optimizer.init(jnp.ones((8, 8, 3)))
            assert optax.tree.get(state, "s").dtype == np.uint16
            assert optax.tree.get(state, "s").size == 3 * 8 * 8 * 3
