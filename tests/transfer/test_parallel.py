"""Meshes, copies on devices, and tiles divided among devices."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import smooth_image
from helpers.records import make_problem
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.losses import make_loss
from nst_jax.losses.tiling import make_grid
from nst_jax.transfer import ExecutionPlan, make_mesh
from nst_jax.transfer.plan import Task
from nst_jax.transfer.problem import _plan_for_devices
from nst_jax.transfer.sharding import copy_to, flat_mesh, replicate

CONFIG = Config.of(content_layers=["relu2_1"], style_layers=["relu1_1", "relu2_1"])


def test_meshes():
    assert make_mesh().devices.tolist() == jax.local_devices()
    some = make_mesh(devices=jax.devices()[1:3])
    assert some.devices.tolist() == jax.devices()[1:3] and some.axis_names == ("data",)
    devices = np.array(jax.devices()[::-1]).reshape(2, 2)
    flat = flat_mesh(Mesh(devices, ("a", "b"), axis_types=(AxisType.Explicit,) * 2))
    assert flat == make_mesh(devices=jax.devices()[::-1])
    assert set(flat.axis_types) == {AxisType.Auto}


def test_copies_on_every_device():
    mesh = make_mesh(devices=jax.devices()[:3])
    tree = {"a": jnp.arange(4.0), "b": np.ones((2, 2))}
    assert replicate(tree, None) is tree and copy_to(tree, None, copies={}) is tree
    everywhere = replicate(tree, mesh)
    for name, leaf in everywhere.items():
        assert leaf.is_fully_replicated and leaf.devices() == set(mesh.devices.flat)
        np.testing.assert_array_equal(leaf, tree[name])
    copies = {}
    for device in (*mesh.devices.flat, jax.devices()[3]):
        one = copy_to(everywhere, device, copies=copies)
        assert {device} == set().union(*(leaf.devices() for leaf in one.values()))
        again = copy_to(everywhere, device, copies=copies)
        afresh = copy_to(everywhere, device, copies={})
        for name, leaf in one.items():
            np.testing.assert_array_equal(leaf, tree[name])
            assert again[name] is leaf
            if device in mesh.devices:  # the replica on that device
                assert leaf.unsafe_buffer_pointer() == afresh[name].unsafe_buffer_pointer()
    divided = jax.device_put(jnp.arange(6.0), NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_array_equal(copy_to(divided, jax.devices()[0], copies={}), np.arange(6.0))


@pytest.mark.parametrize(
    "devices, height, width, layers",
    [(4, 384, 512, ("relu5_1", "relu4_2")), (8, 2048, 2048, ("relu3_1",))],
)
def test_tiles_minimise_the_work_of_the_busiest_device(devices, height, width, layers):
    """Compared with all tiles from 128 px on."""
    config = Config.of(content_layers=[], style_layers=list(layers))
    task = Task({}, jax.ShapeDtypeStruct((height, width, 3), "float32"), [], config)
    execution_plan = _plan_for_devices(task, AbstractMesh((devices,), ("data",)))

    def grid(tile):
        return make_grid((height, width), layers=layers, tile=tile)

    def work(tile):
        return math.ceil(grid(tile).count / devices) * math.prod(grid(tile).size)

    others = [tile for tile in range(128, max(height, width)) if grid(tile).count > 1]
    assert execution_plan == ExecutionPlan(tile=execution_plan.tile)
    assert grid(execution_plan.tile).count > 1
    assert work(execution_plan.tile) == min(map(work, others)) < height * width


@pytest.mark.parametrize("devices, side", [(4, 200), (1, 2048)])
def test_small_images_and_single_devices_have_no_tiles(devices, side):
    task = Task({}, jax.ShapeDtypeStruct((side, side, 3), "float32"), [], Config())
    assert _plan_for_devices(task, AbstractMesh((devices,), ("data",))) == ExecutionPlan()


def test_a_custom_objective_has_no_execution_plan(variables):
    images = smooth_image(16, 16, seed=0), smooth_image(16, 16, seed=1)
    make = partial(make_problem, variables, *images, config=CONFIG, loss=make_loss(CONFIG.loss))
    assert make().execution_plan == ExecutionPlan()
    with pytest.raises(InputError, match="tile, remat .* leave them out"):
        make(execution_plan=ExecutionPlan(remat=True))
