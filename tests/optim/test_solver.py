"""The solver and its compiled loop on the small network and on a quadratic."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nst_jax.config import Config
from nst_jax.losses import loss_weights, make_loss
from nst_jax.optim import make_optimizer, make_solver, run
from nst_jax.optim.solver import averaged
from nst_jax.types import Loss, Terms

pytestmark = pytest.mark.sampled

OPTIMIZERS = ("lbfgs", "lbfgs-linesearch", "adam")


def quadratic():
    """A loss whose targets are the image to reach."""

    def statistics(variables, image, targets):
        return jnp.sum(jnp.square(image - targets))

    def head(statistics, targets):
        return statistics, Terms(statistics, statistics * 0, statistics * 0)

    return Loss(targets=lambda target: target, statistics=statistics, head=head)


def start(solver, image, variables, targets):
    return jax.jit(solver.init)(jnp.asarray(image), variables, targets)


@pytest.fixture(scope="module")
def problem(variables, content, style):
    config = Config()
    loss = make_loss(config.loss)
    targets = jax.jit(
        lambda variables, content, style: loss.targets(
            variables, content, [style], weights=loss_weights(config)
        )
    )(variables, content, style)
    return loss, targets


def values(tree):
    """Arrays of a tree, copied, so that donated buffers may go."""
    return jax.tree.map(np.array, tree)


@pytest.mark.optimized
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_in_pieces_is_bit_equal_to_a_run_in_one(variables, content, problem, name):
    loss, targets = problem
    solver = make_solver(loss, make_optimizer(name, memory_size=None if name == "adam" else 4))
    whole, info = run(
        solver, start(solver, content, variables, targets), variables, targets, num_steps=6
    )
    state, losses = start(solver, content, variables, targets), []
    for steps in (1, 3, 2):
        state, piece = run(solver, state, variables, targets, num_steps=steps)
        losses.append(piece.loss[:steps])
    np.testing.assert_array_equal(np.concatenate(losses), info.loss[:6])
    jax.tree.map(np.testing.assert_array_equal, values(state), values(whole))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loop_is_the_step_repeated(variables, content, problem, name):
    loss, targets = problem
    solver = make_solver(loss, make_optimizer(name))
    state = start(solver, content, variables, targets)
    step, losses = jax.jit(solver.step), []
    for _ in range(4):
        state, info = step(state, variables, targets)
        losses.append(info.loss)
    looped, record = run(
        solver, start(solver, content, variables, targets), variables, targets, num_steps=4
    )
    np.testing.assert_allclose(record.loss[:4], losses, rtol=1e-4)
    assert int(looped.count) == 4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loss_falls(variables, content, problem, name):
    loss, targets = problem
    solver = make_solver(loss, make_optimizer(name))
    _, info = run(
        solver, start(solver, content, variables, targets), variables, targets, num_steps=15
    )
    assert info.loss[14] < 0.6 * info.loss[0]
    np.testing.assert_allclose(sum(info.terms), info.loss, rtol=1e-6)


def test_the_best_image_has_the_best_loss(variables, content, problem):
    loss, targets = problem
    solver = make_solver(loss, make_optimizer("lbfgs"))
    state, info = run(
        solver, start(solver, content, variables, targets), variables, targets, num_steps=10
    )
    assert state.best_loss == info.loss[:10].min()
    value, _ = jax.jit(lambda v, x, t: loss.head(loss.statistics(v, x, t), t))(
        variables, state.best_image, targets
    )
    np.testing.assert_allclose(value, state.best_loss, rtol=1e-5)


def test_evaluations_are_counted(variables, content, problem):
    loss, targets = problem
    counts = {}
    for name in OPTIMIZERS:
        solver = make_solver(loss, make_optimizer(name))
        _, info = run(
            solver, start(solver, content, variables, targets), variables, targets, num_steps=3
        )
        counts[name] = info.evaluations[:3]
    assert counts["lbfgs"].tolist() == counts["adam"].tolist() == [1, 1, 1]
    assert (counts["lbfgs-linesearch"] > 1).all()


def test_a_run_freezes_where_the_loss_is_not_finite():
    solver = make_solver(quadratic(), optax.sgd(1e20))
    target = jnp.zeros((2, 2, 3))
    state = start(solver, jnp.ones((2, 2, 3)), {}, target)
    state, info = run(solver, state, {}, target, num_steps=50)
    assert bool(state.frozen) and int(state.count) < 50
    assert float(state.best_loss) == 12.0
    np.testing.assert_array_equal(state.best_image, np.ones((2, 2, 3)))
    assert not np.isfinite(info.loss[int(state.count) - 1])
    image = values(state.image)
    again, _ = run(solver, state, {}, target, num_steps=5)
    np.testing.assert_array_equal(again.image, image)


def test_a_frozen_image_does_not_spoil_its_batch():
    solver = make_solver(quadratic(), optax.sgd(0.25))
    target = jnp.zeros((3, 2, 2, 3))
    images = jnp.stack([jnp.full((2, 2, 3), value) for value in (1.0, np.nan, 2.0)])
    state = jax.vmap(solver.init, in_axes=(0, None, 0))(images, {}, target)
    step = jax.jit(jax.vmap(solver.step, in_axes=(0, None, 0)))
    for _ in range(3):
        state, _ = step(state, {}, target)
    assert state.frozen.tolist() == [False, True, False]
    np.testing.assert_allclose(state.image[0], 0.125)
    np.testing.assert_allclose(state.image[2], 0.25)


@pytest.mark.optimized
@pytest.mark.parametrize("name", ["lbfgs", "adam"])
def test_a_batch_is_bit_equal_to_singles(name):
    solver = make_solver(quadratic(), make_optimizer(name, memory_size=None))
    generator = np.random.default_rng(0)
    images, targets = jnp.asarray(generator.uniform(size=(2, 3, 4, 5, 3)), jnp.float32)
    batch = jax.jit(jax.vmap(solver.init, in_axes=(0, None, 0)))(images, {}, targets)
    step = jax.jit(jax.vmap(solver.step, in_axes=(0, None, 0)))
    single_step = jax.jit(solver.step)
    singles = [start(solver, image, {}, target) for image, target in zip(images, targets)]
    for _ in range(4):
        batch, _ = step(batch, {}, targets)
        singles = [single_step(state, {}, t)[0] for state, t in zip(singles, targets)]
    np.testing.assert_array_equal(batch.image, [state.image for state in singles])


def test_equal_arguments_share_a_solver():
    loss, optimizer = quadratic(), make_optimizer("adam")
    assert make_solver(loss, optimizer) is make_solver(loss, optimizer)
    assert make_optimizer("adam") is optimizer


def test_the_state_is_donated(variables, content, problem):
    loss, targets = problem
    solver = make_solver(loss, make_optimizer("lbfgs"))
    state = start(solver, content, variables, targets)
    new_state, _ = run(solver, state, variables, targets, num_steps=1)
    assert state.image.is_deleted() and state.opt_state.inner_state[0].s.is_deleted()
    assert not new_state.image.is_deleted()


@pytest.mark.optimized
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_compiled_loop_reuses_the_state_s_memory(variables, content, problem, name):
    """Every buffer of the state is donated, and the loop copies none of L-BFGS's memory."""
    loss, targets = problem
    solver = make_solver(loss, make_optimizer(name, memory_size=None if name == "adam" else 7))
    state = start(solver, content, variables, targets)
    compiled = run.lower(solver, state, variables, targets, num_steps=2).compile()
    sizes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes >= sizes
    height, width, _ = content.shape
    memory = rf"f32\[7,{height},{width},3\]\S* copy\("
    if name == "lbfgs":  # optax's own, with line search, does copy
        assert not re.findall(memory, compiled.as_text())


class TestAveraging:
    def test_is_the_decaying_mean_of_the_images_after_each_step(self, x64):
        decay, target = 0.7, jnp.full((2, 3, 3), 0.3)
        solver = make_solver(quadratic(), optax.sgd(0.2), averaging=decay)
        state, iterates = start(solver, np.ones((2, 3, 3)), {}, target), []
        step = jax.jit(solver.step)
        for count in range(1, 8):
            state, _ = step(state, {}, target)
            iterates.append(np.array(state.image))
            factors = decay ** np.arange(count - 1.0, -1, -1)
            expected = np.tensordot(factors / factors.sum(), np.array(iterates), 1)
            np.testing.assert_allclose(averaged(state, averaging=decay), expected, rtol=1e-12)
        # In one compiled loop, and in pieces, it is the same.
        looped = start(solver, np.ones((2, 3, 3)), {}, target)
        for steps in (3, 4):
            looped, _ = run(solver, looped, {}, target, num_steps=steps)
        np.testing.assert_allclose(averaged(looped, averaging=decay), expected, rtol=1e-12)

    def test_changes_nothing_else(self):
        target = jnp.zeros((2, 2, 3))
        states = []
        for decay in (0.0, 0.9):
            solver = make_solver(quadratic(), optax.sgd(0.25), averaging=decay)
            state, _ = run(
                solver, start(solver, jnp.ones((2, 2, 3)), {}, target), {}, target, num_steps=5
            )
            states.append(state)
        assert states[0].average is None and states[1].average is not None
        without = states[1]._replace(average=None)
        jax.tree.map(np.testing.assert_array_equal, states[0], without)

    def test_of_a_frozen_image_is_finite(self):
        """The image that stays takes the place of the one that a step would have made."""
        decay, target = 0.5, jnp.zeros((2, 2, 3))
        solver = make_solver(quadratic(), optax.sgd(1e20), averaging=decay)
        state = start(solver, jnp.ones((2, 2, 3)), {}, target)
        step, iterates = jax.jit(solver.step), []
        for _ in range(4):
            state, _ = step(state, {}, target)
            iterates.append(np.float64(state.image))
        assert bool(state.frozen)
        factors = decay ** np.arange(3.0, -1, -1)
        expected = np.tensordot(factors / factors.sum(), np.array(iterates), 1)
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(averaged(state, averaging=decay), expected, rtol=1e-5)

    def test_of_a_batch(self):
        solver = make_solver(quadratic(), optax.sgd(0.25), averaging=0.8)
        images = jnp.stack([jnp.full((2, 2, 3), x) for x in (1.0, np.nan)])
        target = jnp.zeros((2, 2, 3))
        state = jax.vmap(solver.init, in_axes=(0, None, None))(images, {}, target)
        step = jax.jit(jax.vmap(solver.step, in_axes=(0, None, None)))
        for _ in range(2):
            state, _ = step(state, {}, target)
        mean = jax.vmap(lambda state: averaged(state, averaging=0.8))(state)
        np.testing.assert_allclose(mean[0], (0.8 * 0.5 + 0.25) / 1.8, rtol=1e-5)
