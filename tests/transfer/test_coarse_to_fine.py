"""Runs of several scales against their scales one by one; callbacks, averages, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.images import smooth_image
from helpers.records import stylize
from helpers.traces import count_traces

from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.losses import make_loss
from nst_jax.optim import run, set_learning_rate
from nst_jax.transfer import (
    ExecutionPlan,
    Inputs,
    check_inputs,
    make_mesh,
    make_problem,
    rows_mesh,
    single,
)
from nst_jax.transfer.loop import CHUNK_SIZE
from nst_jax.transfer.problem import start
from nst_jax.transfer.pyramid import at_scale, rescale_opt_state, resize
from nst_jax.types import Guidance

pytestmark = pytest.mark.sampled

SHALLOW = dict(content_layers=["relu2_1"], style_layers=["relu1_1", "relu2_1"])
SCALES = dict(min_size=16, scale_factor=2.0, scale_steps=(4,), steps=5)
LBFGS = Config.of(memory_size=4, **SHALLOW, **SCALES)
ADAM = Config.of(optimizer="adam", **SHALLOW, **SCALES)
SHAPES, STEPS = [(12, 16), (24, 32)], [4, 5]
CONTENT = smooth_image(24, 32, seed=1)
STYLES = [smooth_image(32, 26, seed=11), smooth_image(20, 40, seed=12)]
INIT = smooth_image(24, 32, seed=9) * 1.6 - 0.3
SOFT = smooth_image(24, 32, seed=5)
HALF = (np.arange(32) < np.full((24, 1), 15)).astype(np.float32)
CONTROLS = dict(
    content_masks=[SOFT[..., 0], SOFT[..., 1]], style_masks=[None, np.ones((20, 40))], preserve=HALF
)


def single_scale(config):
    """The settings without scales before the last."""
    return config.but(min_size=None, scale_factor=Config().pyramid.scale_factor, scale_steps=())


def by_hand(variables, config, *, content=CONTENT, styles=STYLES[:1], init=None, **given):
    """Run scale after scale with the functions for one: the losses and the result."""
    checked = check_inputs(content, styles, config=config, guidance=Guidance(**given))
    image = opt_state = None
    losses = []
    for index, (shape, steps) in enumerate(zip(SHAPES, STEPS, strict=True)):
        inputs = at_scale(checked, shape=shape, config=config)
        problem = make_problem(variables, inputs, config=single_scale(config))
        if image is None:
            first = None if init is None else resize(jnp.asarray(init), shape=shape)
            image = problem.initial(config, None, first)
        state = start(problem.solver, image, problem.variables, problem.targets)
        state = state._replace(opt_state=opt_state or set_learning_rate(state.opt_state, config))
        state, info = run(
            problem.solver,
            state,
            variables=problem.variables,
            targets=problem.targets,
            num_steps=steps,
            chunk_size=CHUNK_SIZE,
        )
        losses += info.loss[:steps].tolist()
        if index == 0:
            image = resize(state.best_image, shape=SHAPES[1])
            if config.optimizer.name == "adam":
                opt_state = rescale_opt_state(state.opt_state, old_shape=shape, new_shape=SHAPES[1])
    return losses, problem.finish(state.best_image)


def test_a_last_scale_that_does_not_fit_is_refused_before_the_first(variables):
    seen = []
    config = ADAM.but(min_size=8, scale_factor=2.0)
    with pytest.raises(InputError, match="^an image of 32x24 px needs about"):
        options = dict(config=config, callback=seen.append, free=200_000)
        stylize(variables, CONTENT, STYLES[:1], **options)
    assert not seen


def test_a_mesh_with_groups_is_for_batches(variables):
    with pytest.raises(InputError, match="groups is for stylize_batch"):
        stylize(variables, CONTENT, STYLES[:1], config=single_scale(ADAM), mesh=rows_mesh(groups=2))


CASES = {
    "adam": (ADAM.but(preconditioner="spectral"), {}),
    "lbfgs": (LBFGS.but(memory_size=None), {}),
    "controls": (ADAM.but(color="luminance"), dict(styles=STYLES, init=INIT, **CONTROLS)),
    "texture": (
        ADAM.but(content_layers=[], padding="circular", init="noise", noise_scale=0.2),
        dict(content=np.full_like(CONTENT, 0.5), styles=STYLES, blend=[1.0, 3.0]),
    ),
    "reconstruction": (
        ADAM.but(style_layers=[], init="noise", noise_scale=0.2),
        dict(styles=[]),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("config, given", CASES.values(), ids=CASES)
def test_scales_one_by_one(variables, monkeypatch, config, given):
    content, styles, *_ = given.get("content", CONTENT), given.get("styles", STYLES[:1])
    rest = {name: value for name, value in given.items() if name not in ("content", "styles")}
    pairs = []

    def spy(*args, **options):
        pairs.append(getattr(options["config"].optimizer, "memory_size", None))
        return make_problem(*args, **options)

    monkeypatch.setattr(single, "make_problem", spy)
    result = stylize(variables, content, styles, config=config, **rest)
    # A coarse scale of L-BFGS has no memory for more pairs than steps, which changes nothing.
    assert pairs == ([4, None] if config.optimizer.name == "lbfgs" else [None, None])
    losses, image = by_hand(variables, config, **given)
    np.testing.assert_array_equal(result.history.loss, np.float32(losses))
    np.testing.assert_allclose(result.image, image, atol=1e-6)
    assert result.loss == min(losses[4:]) and result.status == "done"
    assert int(result.state.count) == 5 and result.state.image.shape == CONTENT.shape
    assert result.image.dtype == np.float32
    assert result.scales == tuple(
        (*pair, ExecutionPlan()) for pair in zip(SHAPES, STEPS, strict=True)
    )


def test_nothing_is_clipped_or_rounded_between_scales(variables):
    """With one step per scale the result is the initial image, resized twice."""
    config = ADAM.but(scale_steps=(1,), steps=1)
    result = stylize(variables, CONTENT, STYLES[:1], config=config, init=INIT)
    small = resize(jnp.asarray(INIT), shape=SHAPES[0])
    np.testing.assert_array_equal(result.image, resize(small, shape=SHAPES[1]))
    assert result.image.min() < -0.05 and result.image.max() > 1.05


def never(progress):
    raise AssertionError("a step was taken")


def watch(variables, config=ADAM, *, stop=None, every=2, **given):
    """A run with all its ``Progress``, stopped at a step."""
    seen = []

    def callback(progress):
        image = np.asarray(progress.image)  # a copy: the buffer is soon reused
        seen.append(progress._replace(image=image, position=progress.position()))
        return None if progress.step != stop else False

    options = dict(callback=callback, every=every) | given
    return stylize(variables, CONTENT, STYLES[:1], config=config, **options), seen


def test_progress_counts_over_all_scales(variables):
    result, seen = watch(variables, ADAM.but(scale_steps=(3,)), every=2)
    steps = [progress.step for progress in seen]
    assert steps == sorted(set(steps)) and {2, 3, 4, 6, 8} <= set(steps)
    assert 5 not in steps and 7 not in steps  # multiples of the whole run's steps
    for progress in seen:
        coarse = progress.step <= 3
        assert (progress.steps, progress.scales) == (8, 2)
        assert progress.scale == (1 if coarse else 2)
        assert progress.image.shape == ((12, 16, 3) if coarse else CONTENT.shape)
        assert progress.info.loss == result.history.loss[progress.step - 1]
        assert progress.compile_s > 0
    assert len(result.history.loss) == 8 and set(result.timing) == {"compile_s", "steps_s"}


@pytest.mark.parametrize(
    "stop, status, scales",
    [
        (2, "stopped", [((12, 16), 2)]),
        (4, "stopped", [((12, 16), 4)]),  # at the end of a scale
        (6, "stopped", [((12, 16), 4), ((24, 32), 2)]),
    ],
)
def test_the_callback_may_stop_the_run(variables, stop, status, scales):
    result, seen = watch(variables, stop=stop)
    assert result.status == status and seen[-1].step == stop
    assert [scale[:2] for scale in result.scales] == scales
    assert len(result.history.loss) == stop and result.image.shape == CONTENT.shape
    assert result.loss == result.history.loss[4 if stop > 4 else 0 :].min()
    assert result.state.image.shape[:2] == scales[-1][0]
    if stop <= 4:
        expected = resize(result.state.best_image, shape=SHAPES[1])
        np.testing.assert_array_equal(result.image, expected)


def test_a_run_may_diverge_at_the_first_scale(variables):
    """Its result is the best image, also instead of an average."""
    config = ADAM.but(learning_rate=1e30, scale_steps=(9,), averaging=0.8)
    result, seen = watch(variables, config)
    assert result.status == "diverged" and len(result.history.loss) == 8 == seen[-1].step
    assert [scale[:2] for scale in result.scales] == [((12, 16), 8)]
    assert result.recoveries == 3 == seen[-1].recoveries
    start = at_scale(Inputs(CONTENT, []), shape=SHAPES[0], config=config).content
    np.testing.assert_array_equal(result.image, resize(start, shape=SHAPES[1]))
    assert result.loss == result.history.loss[0]


def test_after_a_divergence_at_the_end_of_a_scale_the_next_starts_from_the_best_image(variables):
    config = ADAM.but(learning_rate=1e30, scale_steps=(2,), steps=1)
    result, seen = watch(variables, config)
    assert np.isfinite(result.history.loss).tolist() == [True, False, True]
    assert result.status == "done" and result.recoveries == 1
    start = at_scale(Inputs(CONTENT, []), shape=SHAPES[0], config=config).content
    np.testing.assert_array_equal(result.image, resize(start, shape=SHAPES[1]))
    resumed, _ = watch(variables, config, init=seen[1].position)
    np.testing.assert_array_equal(resumed.image, result.image)


def loss_of(variables, image, config):
    """The loss at an image of the size of one of the scales."""
    inputs = at_scale(Inputs(CONTENT, STYLES[:1]), shape=image.shape[:2], config=config)
    problem = make_problem(variables, inputs, config=single_scale(config))
    loss, targets = make_loss(config.loss), problem.targets
    return loss.head(loss.statistics(problem.variables, jnp.asarray(image), targets), targets)[0]


class TestAveraging:
    def average(self, images, decay):
        weights = decay ** np.arange(len(images))[::-1]
        return np.einsum("n,nijk->ijk", weights / weights.sum(), np.float64(images))

    def test_of_each_scale(self, variables):
        config = ADAM.but(averaging=0.8)
        result, seen = watch(variables, config, every=1)
        assert len(seen) == 9
        images = [progress.image for progress in seen]
        np.testing.assert_allclose(result.image, self.average(images[4:], 0.8), atol=1e-6)
        expected = loss_of(variables, result.image, config)
        assert result.loss == pytest.approx(float(expected), rel=1e-5)
        assert result.loss not in result.history.loss and len(result.history.loss) == 9
        assert result.state is None and result.status == "done"
        # The second scale starts from the first's average.
        first = resize(jnp.float32(self.average(images[:4], 0.8)), shape=SHAPES[1])
        expected = loss_of(variables, first, config)
        assert result.history.loss[4] == pytest.approx(float(expected), rel=1e-5)

    def test_stopped_early(self, variables):
        config = ADAM.but(averaging=0.8)
        result, seen = watch(variables, config, every=1, stop=3)
        average = self.average([progress.image for progress in seen], 0.8)
        expected = resize(jnp.float32(average), shape=SHAPES[1])
        np.testing.assert_allclose(result.image, expected, atol=1e-6)
        expected = loss_of(variables, jnp.float32(average), config)
        assert result.loss == pytest.approx(float(expected), rel=1e-5) and result.state is None


class TestCustom:
    """A custom objective and optimiser."""

    def test_optimizer(self, variables):
        """It starts afresh at each scale, even if the config names Adam."""
        optimizer = optax.adam(0.01)
        result = stylize(variables, CONTENT, STYLES[:1], config=ADAM, optimizer=optimizer)
        assert result.state.opt_state[0].count == 5 and result.history.loss[-1] < result.loss * 1.5
        inputs = at_scale(Inputs(CONTENT, STYLES[:1]), shape=SHAPES[0], config=ADAM)
        one, options = single_scale(ADAM), dict(optimizer=optimizer)
        coarse = stylize(variables, *inputs[:2], config=one.but(steps=4), **options)
        first = resize(coarse.image, shape=SHAPES[1])
        fine = stylize(variables, CONTENT, STYLES[:1], config=one, init=first, **options)
        np.testing.assert_array_equal(result.image, fine.image)

    def test_loss(self, variables):
        loss = make_loss(ADAM.loss)
        result = stylize(variables, CONTENT, STYLES[:1], config=ADAM, loss=loss)
        expected = stylize(variables, CONTENT, STYLES[:1], config=ADAM)
        np.testing.assert_allclose(result.history.loss, expected.history.loss, rtol=1e-5)


class TestPrograms:
    def test_one_per_scale(self, variables, monkeypatch):
        traces = count_traces(monkeypatch)
        content = CONTENT[:, :30]  # sizes that no other test uses
        first = LBFGS.but(min_size=14)
        for config in (first, first, first.but(style_weight=7.0, scale_steps=(2,), steps=3)):
            stylize(variables, content, STYLES[:1], config=config)
            assert len(traces) == 2
        stylize(variables, content, STYLES[1:], config=first, init=INIT[:, :30])
        assert len(traces) == 2

    @pytest.mark.parametrize("make", [None, rows_mesh, make_mesh], ids=["one", "rows", "tiles"])
    def test_nothing_is_compiled_twice(self, variables, caplog, make):
        """Neither for a warm start nor for the loss of an average."""
        config = ADAM.but(averaging=0.5, **({"tile": 16} if make is make_mesh else {}))
        content = smooth_image(40, 28, seed=1)
        coarse = (16, 11) if make is rows_mesh else (20, 14)  # a multiple of 8 for four devices

        def compilations():
            caplog.clear()
            with jax.log_compiles():
                mesh = make and make()
                result = stylize(variables, content, STYLES[:1], config=config, mesh=mesh)
            assert [scale.shape for scale in result.scales] == [coarse, (40, 28)]
            return sum("XLA compilation of jit(run) " in message for message in caplog.messages)

        assert compilations() == 2
        assert compilations() == 0


class TestDevices:
    @pytest.mark.slow
    def test_rows(self, variables):
        content = smooth_image(32, 40, seed=1)
        config = ADAM.but(steps=3, scale_steps=(3,))
        result = stylize(variables, content, STYLES[:1], config=config, mesh=rows_mesh())
        expected = stylize(variables, content, STYLES[:1], config=config)
        assert [scale.shape for scale in result.scales] == [(16, 20), (32, 40)]
        np.testing.assert_allclose(result.history.loss, expected.history.loss, rtol=1e-5)
        np.testing.assert_allclose(result.image, expected.image, atol=1e-4)
        images = [leaf for leaf in jax.tree.leaves(result.state) if leaf.ndim == 3]
        assert len(images) == 4
        for leaf in images:  # Adam's means included
            assert {shard.data.shape for shard in leaf.addressable_shards} == {(8, 40, 3)}

    @pytest.mark.slow
    def test_tiles(self, variables):
        content = smooth_image(64, 80, seed=1)
        config = ADAM.but(min_size=40, steps=3, scale_steps=(2,), tile=32)
        result = stylize(variables, content, STYLES[:1], config=config, mesh=make_mesh())
        # The coarse scale is no larger than a tile with its halo.
        assert [scale[2] for scale in result.scales] == [ExecutionPlan(), ExecutionPlan(tile=32)]
        whole = config.but(tile="off")
        expected = stylize(variables, content, STYLES[:1], config=whole)
        np.testing.assert_allclose(result.history.loss, expected.history.loss, rtol=1e-5)
        np.testing.assert_allclose(result.image, expected.image, atol=1e-4)
        assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(result.state))

    def test_settings_without_tiles_have_nothing_to_divide(self, variables):
        config, options = single_scale(ADAM).but(tile="off"), dict(mesh=make_mesh())
        with pytest.raises(InputError, match="without tiles there is nothing to divide"):
            stylize(variables, CONTENT, STYLES[:1], config=config, **options)


def test_masks_that_are_empty_at_a_scale_are_refused(variables):
    thin = np.zeros((24, 32))
    thin[:, 12:22] = 1
    config = ADAM.but(guides="inside")
    given = dict(content_masks=[thin], callback=never)
    with pytest.raises(InputError, match="at the scale of 16x12 px: content mask 1 leaves"):
        stylize(variables, CONTENT, STYLES[:1], config=config, **given)
