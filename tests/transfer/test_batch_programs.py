"""Targets and solver of a batch: which fields have a batch axis, and whose entry is which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from nst_jax.transfer.batch_programs import batch_solver, batched_fields, field_specs, stack_fields
from nst_jax.types import Info, LossWeights, Solver, State, Targets

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
        (SAME, ("regions", "preserved"), set()),  # the targets have none
        (ONE, (), set()),
    ],
    ids=range(6),
)
def test_what_differs_has_a_batch_axis(batch, distinct, expected):
    batched = batched_fields(batch, distinct=distinct)
    assert set(batched) == {"weights"} | expected
    stacked = stack_fields(batch, batched)
    for name, tail in (("content", (2, 5)), ("style", (1, 4, 4))):
        field = getattr(stacked, name)["l"]
        assert field.shape == ((len(batch), *tail) if name in expected else tail)
        if name not in expected:
            assert field is getattr(batch[0], name)["l"]
    assert stacked.sizes is SIZES and stacked.style_weights is SHARES
    for place, one in enumerate(batch):
        assert stacked.weights.tv[place] == one.weights.tv


def test_equal_arrays_are_not_shared():
    """Only the same object is."""
    copies = batch_of([dict(CONTENTS[0]), dict(CONTENTS[0])], STYLES[:1] * 2)
    assert "content" in batched_fields(copies)


def test_specs():
    specs = field_specs(batched_fields(ALL))
    assert specs.weights == specs.content == PartitionSpec("data")
    assert specs.style == specs.sizes == specs.style_weights == specs.preserved == PartitionSpec()


def init(image, variables, targets):
    zero = jnp.zeros(())
    return State(image, zero, jnp.zeros((), jnp.int32), image, zero, jnp.zeros((), bool))


def step(state, variables, targets):
    """A loss with a digit for each of element, network, style, content and image."""
    number = targets.content["l"][0, 0] + targets.style["l"][0, 0, 0] + variables
    loss = state.image[0] + number + targets.weights.tv * 1e4
    return state._replace(count=state.count + 1), Info(loss, {}, loss, state.count)


TOY = Solver(init, step)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("batch", CASES, ids=range(len(CASES)))
def test_each_element_has_its_own_targets(batch, sequential):
    batched = batched_fields(batch)
    solver = batch_solver(TOY, batched, sequential=sequential)
    stacked = stack_fields(batch, batched)
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


def test_sequential_steps_are_a_loop():
    batched = batched_fields(PAIRS)
    args = (jnp.zeros((2, 2)), jnp.zeros(()), stack_fields(PAIRS, batched))
    for sequential in (False, True):
        solver = batch_solver(TOY, batched, sequential=sequential)
        state = solver.init(*args)
        text = str(jax.make_jaxpr(solver.step)(state, *args[1:]))
        assert ("scan" in text or "while" in text) == sequential


def test_equal_arguments_give_the_same_solver():
    batched = batched_fields(PAIRS)
    assert batch_solver(TOY, batched) is batch_solver(TOY, batched_fields(list(PAIRS)))
    assert batch_solver(TOY, batched) is not batch_solver(TOY, batched, sequential=True)
