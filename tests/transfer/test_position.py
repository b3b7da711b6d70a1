"""A run that goes on from where another stood is the same run, bit for bit."""

from functools import partial

import jax
import numpy as np
import pytest
from helpers.records import stylize

from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.transfer import ExecutionPlan, Position
from nst_jax.transfer.state import flatten, restore, unflatten

pytestmark = pytest.mark.sampled

PLAIN = Config.of(steps=9, content_layers=(("relu2_2", 1.0),), style_layers=(("relu1_1", 1.0),))
CONFIGS = {
    "adam": PLAIN.but(optimizer="adam", learning_rate=2.0),
    "lbfgs": PLAIN,
    "linesearch": PLAIN.but(optimizer="lbfgs-linesearch"),
    "spectral": PLAIN.but(preconditioner="spectral"),
    "tiles": PLAIN.but(tile=16),
    "remat": PLAIN.but(remat="on", optimizer="adam"),
    "scales": PLAIN.but(min_size=12, scale_steps=(5,), optimizer="adam", tile=16),
    "scales-lbfgs": PLAIN.but(min_size=12, scale_steps=(5, 4)),
    "average": PLAIN.but(optimizer="adam", averaging=0.9),
    "noise": PLAIN.but(init="noise", color="luminance"),
    "wasserstein": PLAIN.but(style_losses=(("wasserstein", 1.0),), optimizer="adam"),
}


def positions(run, *, every=1):
    """The result of a whole run, and where it stood at each report."""
    found = []

    def callback(progress):
        found.append(progress.position())

    return run(callback=callback, every=every), found


def again(run, position, **options):
    """A run from a position that can be taken again."""
    position = position._replace(state=dict(position.state))
    return run(init=position, **options)


def assert_same(first, second):
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.loss, second.loss) and first.status == second.status
    assert first.scales == second.scales and first.recoveries == second.recoveries
    same = jax.tree.map(partial(np.array_equal, equal_nan=True), first.history, second.history)
    assert all(jax.tree.leaves(same))


def as_users_have_it(names, *chosen):
    """Cases of which the chosen ones are compiled as users' runs are."""
    marks = dict.fromkeys(chosen, pytest.mark.optimized)
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]


@pytest.mark.parametrize("name", as_users_have_it(CONFIGS, "adam", "lbfgs", "scales"))
def test_a_resumed_run_is_the_uninterrupted_one(variables, content, style, name):
    run = partial(stylize, variables, content, [style], config=CONFIGS[name])
    whole, found = positions(run)
    steps = [position.step for position in found]
    assert steps == list(range(1, len(whole.history.loss) + 1))
    # Amid a scale, at its end and at the end of all; and from a resumed run again.
    for place in {3, 5, 9, len(found) - 1} & set(range(len(found))):
        assert_same(again(run, found[place]), whole)
    resumed, later = positions(partial(again, run, found[1]), every=(3, 4))
    assert_same(resumed, whole)
    assert_same(again(run, later[1]), whole)
    assert later[-1].step == steps[-1]


def test_the_way_is_that_of_the_start(variables, content, style):
    """Also where another one would be chosen now."""
    config = PLAIN.but(optimizer="adam")
    run = partial(stylize, variables, content, [style], config=config)
    whole, found = positions(partial(run, execution_plan=ExecutionPlan(tile=16)))
    assert (
        found[2].execution_plan
        == ExecutionPlan(tile=16)
        == again(run, found[2]).scales[0].execution_plan
    )
    assert_same(again(run, found[2]), whole)


@pytest.mark.parametrize("rows", [True, False], ids=["rows", "tiles"])
@pytest.mark.slow
def test_on_several_devices(variables, style, rows):
    from conftest import smooth_image

    from nst_jax.transfer import make_mesh, rows_mesh

    config = PLAIN.but(steps=5, convolution="direct")
    mesh = rows_mesh() if rows else make_mesh()
    content = smooth_image(64, 40, seed=3)
    run = partial(stylize, variables, content, [style], config=config, mesh=mesh)
    whole, found = positions(run)
    assert_same(again(run, found[2]), whole)


def test_a_position_of_another_run_is_refused(variables, content, style):
    run = partial(stylize, variables, content, [style])
    _, found = positions(partial(run, config=PLAIN.but(steps=2)))
    other = PLAIN.but(steps=2, optimizer="adam")
    with pytest.raises(InputError, match="does not belong to this run .*: begin anew"):
        run(config=other, init=found[0])
    with pytest.raises(InputError, match="at scale 2 of a run of 1"):
        run(config=PLAIN, init=found[0]._replace(scale=2))
    smaller = partial(stylize, variables, content[:32], [style], config=PLAIN.but(steps=2))
    with pytest.raises(InputError, match=r"expected float32\[.*32, 48"):
        smaller(init=found[0])


def test_leaves_by_their_paths():
    tree = {"a": (np.ones(2, np.float32), None), "b": jax.numpy.ones(3, "bfloat16")}
    flat = flatten(tree)
    assert list(flat) == ["a/0", "b"] and flat["b"].dtype == np.uint16
    device = jax.tree.map(jax.numpy.asarray, tree)
    restored = restore(device, dict(flat))
    assert restored["b"].dtype == jax.numpy.bfloat16 and device["b"].is_deleted()
    assert np.array_equal(restored["a"][0], tree["a"][0])
    with pytest.raises(InputError, match="b is in one of the two only"):
        unflatten({"a": tree["a"]}, flat)
    longer = {"a/0": np.ones((5, 2), np.float32)}
    like = {"a": (np.ones((3, 2), np.float32),)}
    assert unflatten(like, longer, rows=True)["a"][0].shape == (5, 2)
    with pytest.raises(InputError, match=r"a/0 is float32\[5, 2\], expected float32\[3, 2\]"):
        unflatten(like, longer)


def test_a_position_is_plain(variables, content, style):
    """What a file can hold: numbers, strings, arrays."""
    run = partial(stylize, variables, content, [style], config=CONFIGS["scales"])
    for position in positions(run)[1]:
        assert isinstance(position, Position)
        for arrays in (position.state, position.history):
            assert all(type(array) is np.ndarray for array in arrays.values())
