"""The solver and its compiled loop, on a small network and on a quadratic."""

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

STEPS = 10


def quadratic():
    """A loss whose targets are the image to reach."""

    def statistics(variables, image, targets):
        return jnp.sum(jnp.square(image - targets))

    def head(statistics, targets):
        return statistics, Terms(statistics, statistics * 0, statistics * 0)

    return Loss(targets=lambda target: target, statistics=statistics, head=head)


def start(solver, image, variables, targets):
    return jax.jit(solver.init)(jnp.asarray(image), variables, targets)


def copied(tree):
    """Copies of arrays, which remain valid when their buffers are donated."""
    return jax.tree.map(np.array, tree)


@pytest.fixture(scope="module")
def problem(variables, content, style):
    """Loss, its targets, and a function that starts a solver from the content."""
    config = Config.of(content_layers=["relu2_2"], style_layers=["relu1_1", "relu3_1"])
    loss, image = make_loss(config.loss), content[:32, :32]
    targets = jax.jit(
        lambda *given: loss.targets(given[0], given[1], [given[2]], weights=loss_weights(config))
    )(variables, image, style)
    return loss, targets, lambda solver: start(solver, image, variables, targets)


@pytest.fixture(scope="module", params=["lbfgs", "adam"])
def whole(request, problem, variables):
    """A solver, its state after ten steps in one loop, and what was recorded."""
    loss, targets, begin = problem
    # On plain pixels, L-BFGS drops the first pairs here and its memory would remain empty.
    options = {"memory_size": 4, "preconditioner": "spectral"} if request.param == "lbfgs" else {}
    solver = make_solver(loss, make_optimizer(request.param, **options))
    state, info = run(solver, begin(solver), variables, targets, num_steps=STEPS)
    return solver, copied(state), copied(info)


@pytest.mark.optimized
class TestLoop:
    """On the network; programs are shared, hence one class with one marker."""

    def test_a_run_in_pieces_is_bit_equal_to_a_run_in_one(self, problem, variables, whole):
        solver, expected, info = whole
        _, targets, begin = problem
        state, losses = begin(solver), []
        for steps in (1, 7, 2):
            state, piece = run(solver, state, variables, targets, num_steps=steps)
            losses.append(piece.loss[:steps])
        np.testing.assert_array_equal(np.concatenate(losses), info.loss[:STEPS])
        jax.tree.map(np.testing.assert_array_equal, copied(state), expected)

    def test_the_loop_is_the_step_repeated(self, problem, variables, whole):
        solver, _, info = whole
        _, targets, begin = problem
        state, step, losses = begin(solver), jax.jit(solver.step), []
        for _ in range(4):
            state, one = step(state, variables, targets)
            losses.append(one.loss)
        np.testing.assert_allclose(info.loss[:4], losses, rtol=1e-4)

    def test_the_loss_falls_and_the_best_image_is_kept(self, problem, variables, whole):
        _, state, info = whole
        loss, targets, _ = problem
        losses = info.loss[:STEPS]
        assert losses.min() < 0.9 * losses[0] and state.count == STEPS
        np.testing.assert_allclose(sum(info.terms)[:STEPS], losses, rtol=1e-6)
        assert info.evaluations[:STEPS].tolist() == [1] * STEPS
        assert state.best_loss == losses.min()
        value, _ = jax.jit(lambda v, x, t: loss.head(loss.statistics(v, x, t), t))(
            variables, state.best_image, targets
        )
        np.testing.assert_allclose(value, state.best_loss, rtol=1e-5)

    def test_the_compiled_loop_reuses_the_memory_of_the_state(self, problem, variables):
        """Every buffer is donated, and the loop copies none of the pairs of L-BFGS."""
        loss, targets, begin = problem
        solver = make_solver(loss, make_optimizer("lbfgs", memory_size=4))
        state = begin(solver)
        compiled = run.lower(solver, state, variables, targets, num_steps=2).compile()
        sizes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        assert compiled.memory_analysis().alias_size_in_bytes >= sizes
        assert not re.findall(r"f32\[4,32,32,3\]\S* copy\(", compiled.as_text())
        run(solver, state, variables, targets, num_steps=1)
        assert state.image.is_deleted() and state.opt_state.inner_state[0].s.is_deleted()


def test_evaluations_of_a_line_search_are_counted():
    solver = make_solver(quadratic(), make_optimizer("lbfgs-linesearch"))
    target = jnp.full((2, 2, 3), 0.3)
    state = start(solver, jnp.ones((2, 2, 3)), {}, target)
    _, info = run(solver, state, {}, target, num_steps=3)
    assert (info.evaluations[:2] > 1).all() and info.loss[2] < 0.1 * info.loss[0]


def test_a_run_freezes_if_the_loss_is_not_finite():
    """The best image and its loss stay; the average of a frozen run is finite."""
    solver = make_solver(quadratic(), optax.sgd(1e20), averaging=0.5)
    target = jnp.zeros((2, 2, 3))
    state = start(solver, jnp.ones((2, 2, 3)), {}, target)
    state, info = run(solver, state, {}, target, num_steps=50)
    assert bool(state.frozen) and int(state.count) < 50
    assert float(state.best_loss) == 12.0
    np.testing.assert_array_equal(state.best_image, np.ones((2, 2, 3)))
    assert not np.isfinite(info.loss[int(state.count) - 1])
    assert np.isfinite(averaged(state, averaging=0.5)).all()
    image = np.array(state.image)
    again, _ = run(solver, state, {}, target, num_steps=5)
    np.testing.assert_array_equal(again.image, image)


def test_a_frozen_batch_element_does_not_affect_the_others():
    solver = make_solver(quadratic(), optax.sgd(0.25), averaging=0.8)
    target = jnp.zeros((3, 2, 2, 3))
    images = jnp.stack([jnp.full((2, 2, 3), value) for value in (1.0, np.nan, 2.0)])
    state = jax.vmap(solver.init, in_axes=(0, None, 0))(images, {}, target)
    step = jax.jit(jax.vmap(solver.step, in_axes=(0, None, 0)))
    for _ in range(2):
        state, _ = step(state, {}, target)
    assert state.frozen.tolist() == [False, True, False]
    np.testing.assert_allclose(state.image[0], 0.25)
    np.testing.assert_allclose(state.image[2], 0.5)
    mean = jax.vmap(lambda state: averaged(state, averaging=0.8))(state)
    np.testing.assert_allclose(mean[0], (0.8 * 0.5 + 0.25) / 1.8, rtol=1e-5)


def test_equal_arguments_share_a_solver():
    loss, optimizer = quadratic(), make_optimizer("adam")
    assert make_solver(loss, optimizer) is make_solver(loss, optimizer)
    assert make_optimizer("adam") is optimizer


def test_the_average_is_the_weighted_mean_of_the_images_after_each_step(x64):
    """Step by step, in one compiled loop, and in pieces; the images are those without averaging."""
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
    looped = start(solver, np.ones((2, 3, 3)), {}, target)
    for steps in (3, 4):
        looped, _ = run(solver, looped, {}, target, num_steps=steps)
    np.testing.assert_allclose(averaged(looped, averaging=decay), expected, rtol=1e-12)
    plain = make_solver(quadratic(), optax.sgd(0.2))
    without = start(plain, np.ones((2, 3, 3)), {}, target)
    without, _ = run(plain, without, {}, target, num_steps=7)
    assert without.average is None
    jax.tree.map(np.testing.assert_array_equal, without, looped._replace(average=None))
