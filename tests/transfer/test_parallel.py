"""Meshes: where arrays are, and the loop on every device."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import smooth_image
from helpers.records import make_problem
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.losses import make_loss
from nst_jax.losses.tiling import make_grid
from nst_jax.transfer import ExecutionPlan, make_mesh
from nst_jax.transfer.batch_programs import batch_solver, field_specs, own_fields, stack_fields
from nst_jax.transfer.plan import Task
from nst_jax.transfer.problem import _on_mesh, start
from nst_jax.transfer.sharding import DATA, copy_on, flat_mesh, replicate, run_spread

DESCENT = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)
CONFIG = Config.of(content_layers=["relu2_1"], style_layers=["relu1_1", "relu2_1"])


def test_a_mesh_of_all_devices_or_some():
    assert make_mesh().devices.tolist() == jax.local_devices()
    some = make_mesh(devices=jax.devices()[1:3])
    assert some.devices.tolist() == jax.devices()[1:3] and some.axis_names == ("data",)


@pytest.mark.parametrize("shape", [(4,), (2, 2), (1, 4), (4, 1, 1)])
def test_a_flat_mesh_of_any(shape):
    devices = np.array(jax.devices()[::-1]).reshape(shape)
    mesh = Mesh(devices, tuple("abc"[: len(shape)]), axis_types=(AxisType.Explicit,) * len(shape))
    flat = flat_mesh(mesh)
    assert flat == make_mesh(devices=jax.devices()[::-1])
    assert set(flat.axis_types) == {AxisType.Auto}


def test_copies_on_every_device():
    mesh = make_mesh(devices=jax.devices()[:3])
    tree = {"a": jnp.arange(4.0), "b": np.ones((2, 2))}
    assert replicate(tree, None) is tree and copy_on(tree, None, known={}) is tree
    everywhere = replicate(tree, mesh)
    for name, leaf in everywhere.items():
        assert leaf.is_fully_replicated and leaf.devices() == set(mesh.devices.flat)
        np.testing.assert_array_equal(leaf, tree[name])
    known = {}
    for device in (*mesh.devices.flat, jax.devices()[3]):
        one = copy_on(everywhere, device, known=known)
        assert {device} == set().union(*(leaf.devices() for leaf in one.values()))
        again = copy_on(everywhere, device, known=known)
        afresh = copy_on(everywhere, device, known={})
        for name, leaf in one.items():
            np.testing.assert_array_equal(leaf, tree[name])
            assert again[name] is leaf
            if device in mesh.devices:  # the copy that is there
                assert leaf.unsafe_buffer_pointer() == afresh[name].unsafe_buffer_pointer()
    divided = jax.device_put(jnp.arange(6.0), NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_array_equal(copy_on(divided, jax.devices()[0], known={}), np.arange(6.0))


class Batch:
    """A batch with plain gradient descent, whose first step shows the gradient."""

    def __init__(self, variables, contents, styles, *, rates):
        weights = [CONFIG.but(style_weight=10.0 + 30 * index) for index in range(len(rates))]
        self.problems = [
            make_problem(variables, content, style, config=config, optimizer=DESCENT)
            for content, style, config in zip(contents, styles, weights, strict=True)
        ]
        self.variables = self.problems[0].variables
        self.targets = [problem.targets for problem in self.problems]
        self.images = jnp.stack([smooth_image(24, 32, seed=40 + element) for element in range(4)])
        self.rates = jnp.asarray(rates, jnp.float32)

    def spread(self, mesh, steps):
        own = own_fields(self.targets)
        specs, lead = field_specs(own), NamedSharding(mesh, DATA)
        solver, stacked = (
            batch_solver(self.problems[0].solver, own),
            stack_fields(self.targets, own),
        )
        state = start(
            solver, jax.device_put(self.images, lead), self.variables, stacked, sharding=lead
        )
        rates = jax.device_put(self.rates, lead)
        state = state._replace(opt_state=optax.tree.set(state.opt_state, learning_rate=rates))
        variables = replicate(self.variables, mesh)
        options = dict(mesh=mesh, specs=specs, num_steps=steps, chunk_size=8)
        return run_spread(solver, state, variables, stacked, **options)


@pytest.fixture(scope="module")
def four(variables):
    contents = [smooth_image(24, 32, seed=seed) for seed in (1, 2, 3, 4)]
    styles = [smooth_image(32, 26, seed=seed) for seed in (11, 12, 13, 14)]

    def make(**options):
        return Batch(variables, contents, styles, **options)

    return make


def test_gradients_on_devices(four):
    """Of each element, against that of its own loss alone."""
    elements = four(rates=[1.0] * 4)
    state, info = elements.spread(make_mesh(), 1)
    assert state.image.sharding.spec == DATA
    for element, problem in enumerate(elements.problems):
        image = elements.images[element]
        single = start(problem.solver, image, problem.variables, problem.targets)
        after, alone = jax.jit(problem.solver.step)(single, problem.variables, problem.targets)
        gradient, expected = image - state.image[element], image - after.image
        largest = np.abs(expected).max()
        assert largest > 1e3  # far above the rounding of images
        np.testing.assert_allclose(gradient / largest, expected / largest, atol=1e-5)
        np.testing.assert_allclose(info.grad_norm[0, element], alone.grad_norm, rtol=1e-5)
        np.testing.assert_allclose(info.loss[0, element], alone.loss, rtol=1e-5)


def test_each_device_ends_for_itself(four):
    """One whose elements have all diverged does not go on, the other does."""
    elements = four(rates=[1e30, 1e30, 1e-9, 1e30])
    state, info = elements.spread(make_mesh(devices=jax.devices()[:2]), 5)
    assert state.frozen.tolist() == [True, True, False, True]
    assert state.count.tolist() == [2, 2, 5, 5]
    assert np.isfinite(info.loss[:5, 2]).all() and not info.loss[5:].any()
    assert np.isinf(info.loss[1, :2]).all() | np.isnan(info.loss[1, :2]).all()
    assert not info.loss[2:, :2].any()


@pytest.mark.parametrize(
    "devices, height, width", [(4, 384, 512), (8, 2048, 2048), (2, 512, 512), (3, 700, 1500)]
)
@pytest.mark.parametrize("layers", [("relu5_1", "relu4_2"), ("relu3_1",)])
def test_tiles_divide_the_work_well(devices, height, width, layers):
    """No other tile from 128 px on gives the busiest device less to compute."""
    config = Config.of(content_layers=[], style_layers=list(layers))
    task = Task({}, jax.ShapeDtypeStruct((height, width, 3), "float32"), [], config)
    execution_plan = _on_mesh(task, AbstractMesh((devices,), ("data",)))

    def grid(tile):
        return make_grid((height, width), layers=layers, tile=tile)

    def work(tile):
        return math.ceil(grid(tile).count / devices) * math.prod(grid(tile).size)

    others = [tile for tile in range(128, max(height, width)) if grid(tile).count > 1]
    assert (
        execution_plan == ExecutionPlan(tile=execution_plan.tile)
        and grid(execution_plan.tile).count > 1
    )
    assert work(execution_plan.tile) == min(map(work, others)) < height * width


@pytest.mark.parametrize("devices, side", [(4, 200), (1, 2048)])
def test_what_is_not_worth_dividing(devices, side):
    task = Task({}, jax.ShapeDtypeStruct((side, side, 3), "float32"), [], Config())
    assert _on_mesh(task, AbstractMesh((devices,), ("data",))) == ExecutionPlan()


def test_an_objective_of_ones_own_is_computed_as_it_is(variables):
    """Which the usual choice says, too."""
    images = smooth_image(16, 16, seed=0), smooth_image(16, 16, seed=1)
    run = partial(make_problem, variables, *images, config=CONFIG, loss=make_loss(CONFIG.loss))
    assert (
        run(execution_plan=ExecutionPlan()).execution_plan
        == run().execution_plan
        == ExecutionPlan()
    )
    with pytest.raises(InputError, match="tile and remat, .* leave them out"):
        run(execution_plan=ExecutionPlan(remat=True))
