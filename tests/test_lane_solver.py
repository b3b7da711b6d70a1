"""Lanes' targets and solver: what has leading axes, and which entry is whose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from nst_jax.lane_solver import field_specs, lanes_solver, own_fields, stack_fields
from nst_jax.types import Info, LossWeights, Solver, State, Targets

CONTENTS = [{"l": jnp.full((2, 5), value)} for value in (1.0, 2.0)]
STYLES = [{"l": jnp.full((1, 4, 4), value)} for value in (10.0, 20.0, 30.0)]
SIZES, SHARES = {"l": jnp.ones(())}, {"l": jnp.ones((1, 1))}


def targets(content, style, number):
    weights = LossWeights(*np.float32([0, 0, number]), {}, {})
    return Targets(content, style, SIZES, weights, SHARES)


def lanes_of(contents, styles, *, grid):
    pairs = [(c, s) for c in contents for s in styles] if grid else zip(contents, styles)
    lanes = [targets(content, style, number) for number, (content, style) in enumerate(pairs)]
    array = np.empty(len(lanes), object)
    array[:] = lanes
    return array.reshape(len(contents), len(styles)) if grid else array


GRID = lanes_of(CONTENTS, STYLES, grid=True)
ALL = lanes_of(CONTENTS, STYLES[:1] * 2, grid=False)
PAIRS = lanes_of(CONTENTS, STYLES[:2], grid=False)
SAME = lanes_of(CONTENTS[:1] * 3, STYLES[:1] * 3, grid=False)


@pytest.mark.parametrize(
    "lanes, distinct, expected",
    [
        (ALL, (), {"content": (True,)}),
        (PAIRS, (), {"content": (True,), "style": (True,)}),
        (SAME, (), {}),
        (SAME, ("style",), {"style": (True,)}),
        (ALL, ("content", "style"), {"content": (True,), "style": (True,)}),
        (SAME, ("regions", "keep"), {}),  # there are none
        (GRID, (), {"content": (True, False), "style": (False, True)}),
        (GRID[:1], (), {"style": (False, True)}),
        (GRID[:, :1], (), {"content": (True, False)}),
    ],
    ids=range(9),
)
def test_what_differs_gets_an_axis(lanes, distinct, expected):
    own = dict(own_fields(lanes, distinct=distinct))
    assert own.pop("weights") == (True,) * lanes.ndim
    assert own == expected
    stacked = stack_fields(lanes, own_fields(lanes, distinct=distinct))
    for name, tail in (("content", (2, 5)), ("style", (1, 4, 4))):
        axes = expected.get(name, (False,) * lanes.ndim)
        lead = tuple(n for n, own in zip(lanes.shape, axes, strict=True) if own)
        field = getattr(stacked, name)["l"]
        assert field.shape == (*lead, *tail)
        if not lead:
            assert field is getattr(lanes.flat[0], name)["l"]
    assert stacked.sizes is SIZES and stacked.shares is SHARES
    for place in np.ndindex(lanes.shape):
        assert stacked.weights.tv[place] == lanes[place].weights.tv


def test_equal_arrays_are_not_shared_ones():
    """Only what is the same object is there once."""
    copies = lanes_of([dict(CONTENTS[0]), dict(CONTENTS[0])], STYLES[:1] * 2, grid=False)
    assert dict(own_fields(copies))["content"] == (True,)


@pytest.mark.parametrize(
    "axis, weights, content, style",
    [
        (0, PartitionSpec("data"), PartitionSpec("data"), PartitionSpec()),
        (1, PartitionSpec(None, "data"), PartitionSpec(), PartitionSpec("data")),
    ],
)
def test_specs_of_a_grid(axis, weights, content, style):
    specs = field_specs(own_fields(GRID), axis=axis)
    assert (specs.weights, specs.content, specs.style) == (weights, content, style)
    assert specs.sizes == specs.shares == specs.keep == specs.regions == PartitionSpec()
    both = field_specs((("weights", (True, True)), ("style", (True, True))), axis=1)
    assert both.style == PartitionSpec(None, "data")


def init(image, variables, targets):
    zero = jnp.zeros(())
    return State(image, zero, jnp.zeros((), jnp.int32), image, zero, jnp.zeros((), bool))


def step(state, variables, targets):
    """Digits: the picture's number, the content's, the style's, the network's and the lane's."""
    own = targets.content["l"][0, 0] + targets.style["l"][0, 0, 0] + variables
    loss = state.image[0] + own + targets.weights.tv * 1e4
    return state._replace(count=state.count + 1), Info(loss, {}, loss, state.count)


TOY = Solver(init, step)


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("lanes", [ALL, PAIRS, SAME, GRID, GRID[:1], GRID[:, :1]], ids=range(6))
def test_each_lane_sees_its_own(lanes, in_turn):
    own = own_fields(lanes)
    solver, stacked = lanes_solver(TOY, own, in_turn=in_turn), stack_fields(lanes, own)
    numbers = np.arange(lanes.size, dtype=np.float32).reshape(lanes.shape) / 8
    images = jnp.asarray(np.stack([numbers, numbers], axis=-1))
    variables = jnp.asarray(300.0)
    state = jax.jit(solver.init)(images, variables, stacked)
    assert all(leaf.shape[: lanes.ndim] == lanes.shape for leaf in jax.tree.leaves(state))
    state, info = jax.jit(solver.step)(state, variables, stacked)
    for place in np.ndindex(lanes.shape):
        alone = init(images[place], variables, lanes[place])
        _, expected = step(alone, variables, lanes[place])
        assert info.loss[place] == expected.loss
    assert (np.asarray(state.count) == 1).all() and state.count.shape == lanes.shape


def test_steps_in_turn_are_a_loop():
    own = own_fields(GRID)
    args = (jnp.zeros((2, 3, 2)), jnp.zeros(()), stack_fields(GRID, own))
    for in_turn in (False, True):
        solver = lanes_solver(TOY, own, in_turn=in_turn)
        state = solver.init(*args)
        text = str(jax.make_jaxpr(solver.step)(state, *args[1:]))
        assert ("scan" in text or "while" in text) == in_turn


def test_equal_arguments_give_the_same_solver():
    own = own_fields(GRID)
    assert lanes_solver(TOY, own) is lanes_solver(TOY, own_fields(GRID.copy()))
    assert lanes_solver(TOY, own) is not lanes_solver(TOY, own, in_turn=True)
