"""A batch's targets and solver: what has a leading axis, and which entry is whose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from nst_jax.transfer.batch_programs import batch_solver, field_specs, own_fields, stack_fields
from nst_jax.types import Info, LossWeights, Similarity, Solver, State, Targets

CONTENTS = [{"l": jnp.full((2, 5), value)} for value in (1.0, 2.0)]
STYLES = [{"l": jnp.full((1, 4, 4), value)} for value in (10.0, 20.0, 30.0)]
SIZES, SHARES = {"l": jnp.ones(())}, {"l": jnp.ones((1, 1))}


def targets(content, style, number):
    weights = LossWeights(*np.float32([0, 0, number]), {}, {})
    return Targets(content, style, SIZES, weights, SHARES)


def batch_of(contents, styles):
    pairs = zip(contents, styles, strict=True)
    return [targets(content, style, number) for number, (content, style) in enumerate(pairs)]


ALL = batch_of(CONTENTS, STYLES[:1] * 2)
PAIRS = batch_of(CONTENTS, STYLES[:2])
SAME = batch_of(CONTENTS[:1] * 3, STYLES[:1] * 3)
ONE = batch_of(CONTENTS[:1], STYLES[:1])
CASES = [ALL, PAIRS, SAME, ONE]


@pytest.mark.parametrize(
    "batch, distinct, expected",
    [
        (ALL, (), {"content"}),
        (PAIRS, (), {"content", "style"}),
        (SAME, (), set()),
        (SAME, ("style",), {"style"}),
        (ALL, ("content", "style"), {"content", "style"}),
        (SAME, ("regions", "keep"), set()),  # there are none
        (ONE, (), set()),
    ],
    ids=range(7),
)
def test_what_differs_gets_an_axis(batch, distinct, expected):
    own = own_fields(batch, distinct=distinct)
    assert set(own) == {"weights"} | expected
    stacked = stack_fields(batch, own)
    for name, tail in (("content", (2, 5)), ("style", (1, 4, 4))):
        field = getattr(stacked, name)["l"]
        assert field.shape == ((len(batch), *tail) if name in expected else tail)
        if name not in expected:
            assert field is getattr(batch[0], name)["l"]
    assert stacked.sizes is SIZES and stacked.shares is SHARES
    for place, one in enumerate(batch):
        assert stacked.weights.tv[place] == one.weights.tv


def test_all_that_is_computed_of_a_content_gets_an_axis():
    """Also self-similarities and Laplacians."""
    places = jnp.arange(2)
    given = [
        one._replace(
            similarity={"l": Similarity(places, places, jnp.full((2, 2), value))},
            laplacian={"laplacian-2": jnp.full((3, 3), value)},
        )
        for value, one in enumerate(ALL, start=1)
    ]
    own = own_fields(given)
    assert set(own) == {"weights", "content", "similarity", "laplacian"}
    stacked = stack_fields(given, own)
    assert stacked.similarity["l"].matrix[:, 0, 0].tolist() == [1, 2]
    assert stacked.laplacian["laplacian-2"][:, 0, 0].tolist() == [1, 2]


def test_equal_arrays_are_not_shared_ones():
    """Only what is the same object is there once."""
    copies = batch_of([dict(CONTENTS[0]), dict(CONTENTS[0])], STYLES[:1] * 2)
    assert "content" in own_fields(copies)


def test_specs():
    specs = field_specs(own_fields(ALL))
    assert specs.weights == specs.content == PartitionSpec("data")
    assert specs.style == specs.sizes == specs.shares == specs.keep == PartitionSpec()


def init(image, variables, targets):
    zero = jnp.zeros(())
    return State(image, zero, jnp.zeros((), jnp.int32), image, zero, jnp.zeros((), bool))


def step(state, variables, targets):
    """Digits: the image's number, the content's, the style's, the network's and the element's."""
    own = targets.content["l"][0, 0] + targets.style["l"][0, 0, 0] + variables
    loss = state.image[0] + own + targets.weights.tv * 1e4
    return state._replace(count=state.count + 1), Info(loss, {}, loss, state.count)


TOY = Solver(init, step)


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("batch", CASES, ids=range(len(CASES)))
def test_each_element_sees_its_own(batch, in_turn):
    own = own_fields(batch)
    solver, stacked = batch_solver(TOY, own, in_turn=in_turn), stack_fields(batch, own)
    numbers = np.arange(len(batch), dtype=np.float32) / 8
    images = jnp.asarray(np.stack([numbers, numbers], axis=-1))
    variables = jnp.asarray(300.0)
    state = jax.jit(solver.init)(images, variables, stacked)
    assert all(len(leaf) == len(batch) for leaf in jax.tree.leaves(state))
    state, info = jax.jit(solver.step)(state, variables, stacked)
    for place, one in enumerate(batch):
        _, expected = step(init(images[place], variables, one), variables, one)
        assert info.loss[place] == expected.loss
    assert state.count.tolist() == [1] * len(batch)


def test_steps_in_turn_are_a_loop():
    own = own_fields(PAIRS)
    args = (jnp.zeros((2, 2)), jnp.zeros(()), stack_fields(PAIRS, own))
    for in_turn in (False, True):
        solver = batch_solver(TOY, own, in_turn=in_turn)
        state = solver.init(*args)
        text = str(jax.make_jaxpr(solver.step)(state, *args[1:]))
        assert ("scan" in text or "while" in text) == in_turn


def test_equal_arguments_give_the_same_solver():
    own = own_fields(PAIRS)
    assert batch_solver(TOY, own) is batch_solver(TOY, own_fields(list(PAIRS)))
    assert batch_solver(TOY, own) is not batch_solver(TOY, own, in_turn=True)
