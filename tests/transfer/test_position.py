"""A resumed run equals the uninterrupted one, bit for bit."""

from functools import partial

import jax
import numpy as np
import pytest
from helpers.images import smooth_image
from helpers.records import stylize

from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.transfer import ExecutionPlan, Position, make_mesh, rows_mesh
from nst_jax.transfer.state import flatten, restore, unflatten

pytestmark = pytest.mark.sampled

LBFGS = Config.of(steps=9, content_layers=["relu2_1"], style_layers=["relu1_1"])
ADAM = LBFGS.but(optimizer="adam", learning_rate=2.0)
CONTENT, STYLE = smooth_image(24, 32, seed=1), smooth_image(26, 24, seed=2)
CONFIGS = {
    "scales": ADAM.but(min_size=16, scale_steps=(5,), tile=16),
    "scales-lbfgs": LBFGS.but(min_size=16, scale_steps=(5,)),
    "lbfgs": LBFGS.but(init="noise", color="luminance"),
    "adam": ADAM.but(averaging=0.9, remat="on"),
    "line-search": LBFGS.but(optimizer="lbfgs-linesearch"),
    "spectral": LBFGS.but(preconditioner="spectral"),
}


def positions(run, *, every=1):
    """The result of a whole run, and its resume points."""
    found = []

    def callback(progress):
        found.append(progress.position())

    return run(callback=callback, every=every), found


def resume(run, position, **options):
    """Resume from a position that can be used again."""
    position = position._replace(state=dict(position.state))
    return run(init=position, **options)


def assert_same(first, second):
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.loss, second.loss) and first.status == second.status
    assert first.scales == second.scales and first.recoveries == second.recoveries
    same = jax.tree.map(partial(np.array_equal, equal_nan=True), first.history, second.history)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("scales", marks=[pytest.mark.optimized, pytest.mark.slow]),
        pytest.param("lbfgs", marks=pytest.mark.optimized),
        *sorted(CONFIGS.keys() - {"scales", "lbfgs"}),
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one(variables, name):
    run = partial(stylize, variables, CONTENT, [STYLE], config=CONFIGS[name])
    whole, found = positions(run)
    assert [position.step for position in found] == list(range(1, len(whole.history.loss) + 1))
    for position in found:  # only what a file can hold
        assert isinstance(position, Position)
        for arrays in (position.state, position.history):
            assert all(type(array) is np.ndarray for array in arrays.values())
    # Within a scale, at its end, and at the end of the run.
    for place in {4, len(found) - 1}:
        assert_same(resume(run, found[place]), whole)
    # A resumed run can be resumed.
    resumed, later = positions(partial(resume, run, found[1]), every=(3, 4))
    assert_same(resumed, whole)
    assert_same(resume(run, later[1]), whole)
    assert later[-1].step == found[-1].step


def test_the_execution_plan_is_that_of_the_start(variables):
    """Even if another one would be made now."""
    run = partial(stylize, variables, CONTENT, [STYLE], config=ADAM.but(steps=4))
    plan = ExecutionPlan(tile=16)
    whole, found = positions(partial(run, execution_plan=plan))
    resumed = resume(run, found[2])
    assert found[2].execution_plan == plan == resumed.scales[0].execution_plan
    assert_same(resumed, whole)


@pytest.mark.parametrize("make", [rows_mesh, make_mesh])
@pytest.mark.slow
def test_on_several_devices(variables, make):
    content, config = smooth_image(64, 40, seed=3), LBFGS.but(steps=4, convolution="direct")
    run = partial(stylize, variables, content, [STYLE], config=config, mesh=make())
    whole, found = positions(run)
    assert_same(resume(run, found[2]), whole)


def test_the_resume_point_of_another_run_is_refused(variables):
    run = partial(stylize, variables, CONTENT, [STYLE])
    config = LBFGS.but(steps=2)
    _, found = positions(partial(run, config=config))
    other = ADAM.but(steps=2)
    with pytest.raises(InputError, match="does not belong to this run .*: start it again"):
        run(config=other, init=found[0])
    with pytest.raises(InputError, match="at scale 2 of a run of 1"):
        run(config=config, init=found[0]._replace(scale=2))
    with pytest.raises(InputError, match=r"expected float32\[.*20, 32"):
        stylize(variables, CONTENT[:20], [STYLE], config=config, init=found[0])


def test_flatten_and_restore():
    tree = {"a": (np.ones(2, np.float32), None), "b": jax.numpy.ones(3, "bfloat16")}
    flat = flatten(tree)
    assert list(flat) == ["a/0", "b"] and flat["b"].dtype == np.uint16
    device = jax.tree.map(jax.numpy.asarray, tree)
    restored = restore(device, dict(flat))
    assert restored["b"].dtype == jax.numpy.bfloat16 and device["b"].is_deleted()
    assert np.array_equal(restored["a"][0], tree["a"][0])
    with pytest.raises(InputError, match="b is in only one of the two"):
        unflatten({"a": tree["a"]}, flat)
    longer = {"a/0": np.ones((5, 2), np.float32)}
    like = {"a": (np.ones((3, 2), np.float32),)}
    assert unflatten(like, longer, rows=True)["a"][0].shape == (5, 2)
    with pytest.raises(InputError, match=r"a/0 is float32\[5, 2\], expected float32\[3, 2\]"):
        unflatten(like, longer)
