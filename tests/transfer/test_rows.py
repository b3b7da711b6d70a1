"""Images divided by rows: the numbers of one device, and no device holds a whole layer."""

import re
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import smooth_image
from helpers.records import make_problem
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.losses import loss_weights, make_loss
from nst_jax.models import init_variables, prepare_kernels
from nst_jax.optim import make_optimizer, make_solver, run, set_learning_rate
from nst_jax.transfer import make_mesh, rows_mesh
from nst_jax.transfer.batch_programs import batch_solver, batched_fields, stack_fields
from nst_jax.transfer.sharding import (
    check_rows,
    image_sharding,
    replicate,
    start_rows,
    state_shardings,
    targets_shardings,
)
from nst_jax.types import Targets
from nst_jax.weights import load_weights

pytestmark = pytest.mark.sampled

SLIM = Path(__file__).resolve().parents[2] / "weights" / "vgg19-slim.safetensors"
DEEP = Config.of(optimizer="adam", convolution="direct")
SHALLOW = DEEP.but(
    content_layers=["relu2_1"], style_layers=["relu1_1", "relu2_1"], gram_normalization="hw"
)
STYLES = [smooth_image(40, 33, seed=2), smooth_image(24, 36, seed=3)]
SOFT = smooth_image(64, 48, seed=4)
MASKS = [SOFT[..., 0], SOFT[..., 1]]
KEEP = (np.arange(64)[:, None] < np.full(48, 21)).astype(np.float32)
SMALL = 2**10  # more numbers than a Gram matrix or a border row has, fewer than features have


def as_float64(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def collectives(compiled):
    """The collectives of a compiled program: shapes of their results, by name."""
    found = {}
    names = "all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute"
    pattern = rf"= (\(.*?\)|\S+) ({names}|reduce-scatter)(?:-start)?\("
    for shapes, name in re.findall(pattern, compiled.as_text()):
        for sizes in re.findall(r"\[([\d,]*)\]", shapes):
            shape = tuple(int(size) for size in sizes.split(",") if size)
            found.setdefault(name, []).append(shape)
    return found


def largest(found):
    return max(int(np.prod(shape)) for shapes in found.values() for shape in shapes)


def loss_and_gradient(config):
    """A jitted function ``(image, variables, targets) -> (loss, gradient)``."""
    loss = make_loss(config.loss)

    def value(image, variables, targets):
        return loss.head(loss.statistics(variables, image, targets), targets)[0]

    return jax.jit(jax.value_and_grad(value))


def placed(image, variables, targets, *, mesh):
    return (
        jax.device_put(image, image_sharding(mesh)),
        replicate(variables, mesh),
        jax.device_put(targets, targets_shardings(targets, mesh=mesh)),
    )


def compare(variables, config, *, height=64, dtype=float, styles=STYLES[0], **controls):
    """Relative error of loss and gradient on four devices, and the program's collectives."""
    cast = partial(jax.tree.map, lambda x: jnp.asarray(x, dtype))
    content, image = (cast(smooth_image(height, 48, seed=seed)) for seed in (5, 6))
    problem = make_problem(cast(variables), content, cast(styles), config=config, **controls)
    function = loss_and_gradient(config)
    whole = image, problem.variables, problem.targets
    rows = placed(*whole, mesh=rows_mesh())
    compiled = function.lower(*rows).compile()
    (value, gradient), (expected, wanted) = compiled(*rows), function(*whole)
    assert gradient.sharding.spec == PartitionSpec("rows") and gradient.dtype == dtype
    errors = abs(value / expected - 1), np.abs(gradient - wanted).max() / np.abs(wanted).max()
    return max(map(float, errors)), collectives(compiled)


def test_meshes():
    four, two = rows_mesh(), rows_mesh(jax.devices()[2:])
    assert dict(four.shape) == {"rows": 4} and dict(two.shape) == {"rows": 2}
    assert two.devices.tolist() == jax.devices()[2:]
    both = rows_mesh(groups=2)
    assert dict(both.shape) == {"data": 2, "rows": 2}
    assert {*four.axis_types, *both.axis_types} == {AxisType.Auto}
    for groups in (0, 3, 8):
        with pytest.raises(InputError, match=f"4 devices for {groups} groups"):
            rows_mesh(groups=groups)


class TestCheck:
    @pytest.mark.parametrize(
        "height, width, devices, layers, size",
        [
            (720, 1280, 4, (), 1252),  # 704 px high
            (100, 1000, 2, ("relu3_1",), 965),
            (33, 20, 4, ("relu1_2",), 32),
        ],
    )
    def test_a_refusal_names_the_nearest_size(self, height, width, devices, layers, size):
        mesh = rows_mesh(jax.devices()[:devices])
        with pytest.raises(InputError) as error:
            check_rows(height, width, mesh=mesh, config=DEEP, layers=layers)
        message = str(error.value)
        assert f"{width}x{height} px" in message and "\n" not in message
        longer, fits = map(int, re.findall(r"side of (\d+) px \(height (\d+) px\)", message)[0])
        assert round(height * longer / max(height, width)) == fits
        check_rows(fits, width, mesh=mesh, config=DEEP, layers=layers)
        assert longer == size

    def test_heights_that_fit(self):
        check_rows(96, 50, mesh=rows_mesh(jax.devices()[:3]), config=DEEP)
        check_rows(32, 51, mesh=rows_mesh(groups=2), config=DEEP)
        check_rows(8, 51, mesh=rows_mesh(), config=SHALLOW)
        check_rows(8, 51, mesh=rows_mesh(), config=DEEP, layers=["conv2_2"])

    @pytest.mark.parametrize(
        "change, groups, word",
        [
            ({"preconditioner": "spectral"}, 1, "spectral"),
            ({"convolution": "winograd"}, 1, "winograd"),
            ({"tile": 512}, 1, "tile is 512"),
            ({"optimizer": "lbfgs-linesearch"}, 2, "line searches"),
        ],
    )
    def test_settings_that_need_the_whole_image(self, change, groups, word):
        config = DEEP.but(**change)
        with pytest.raises(InputError, match=word) as error:
            check_rows(64, 64, mesh=rows_mesh(groups=groups), config=config)
        assert "\n" not in str(error.value) and ": use " in str(error.value)

    def test_other_meshes(self):
        explicit = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Explicit,))
        turned = Mesh(np.array(jax.devices()).reshape(2, 2), ("rows", "data"))
        for mesh in (make_mesh(), explicit, turned):
            with pytest.raises(InputError, match="rows_mesh"):
                check_rows(64, 64, mesh=mesh, config=DEEP)


class TestLossAndGradient:
    @pytest.mark.slow
    @pytest.mark.optimized
    def test_of_the_whole_depth_and_its_collectives(self, variables, x64):
        error, found = compare(variables, DEEP)
        assert error < 1e-12
        # One row from each neighbour for each of 13 convolutions, forward and backward, and for
        # the differences of neighbouring rows; all sums over pixels in one.
        assert set(found) == {"collective-permute", "all-reduce"}
        assert len(found["collective-permute"]) == 2 * (2 * 13 + 1)
        grams = [(width, width) for width in (4, 6, 8, 10, 12)]
        assert Counter(found["all-reduce"]) == Counter([*grams, (), (), ()])
        for shape in found["collective-permute"]:
            assert shape[-3] == 1

    CASES = {
        "circular": (
            dict(padding="circular", style_mixing="sum", guides="all"),
            dict(styles=STYLES, content_masks=MASKS),
        ),
        "reflect, each device has one row of the deepest layer": (
            dict(padding="reflect", pooling="l2", content_layers=["relu3_1"]),
            dict(height=16),
        ),
        "replicate": (
            dict(padding="replicate", pooling="average-scaled", tv_order=2),
            dict(styles=STYLES, blend=[1.0, 3.0]),
        ),
        "regions": (dict(guides="inside"), dict(styles=STYLES, content_masks=MASKS, preserve=KEEP)),
        "remat": (
            dict(remat="on", padding="replicate-input"),
            dict(content_masks=MASKS[:1], region_weights=[2.0]),
        ),
    }

    @pytest.mark.parametrize(
        "change, given",
        [
            pytest.param(
                *case,
                id=name,
                marks=[pytest.mark.optimized, pytest.mark.slow] * (name == "circular"),
            )
            for name, case in CASES.items()
        ],
    )
    def test_of_settings(self, variables, x64, change, given):
        error, found = compare(variables, SHALLOW.but(**change), **given)
        assert error < 1e-12
        assert set(found) <= {"collective-permute", "all-reduce"}
        assert largest(found) < SMALL

    @pytest.mark.slow
    def test_of_the_shipped_slim_weights_in_single_precision(self):
        slim = load_weights(SLIM).variables
        error, found = compare(slim, Config.of(convolution="direct"), dtype=jnp.float32)
        assert error < 1e-5 and set(found) <= {"collective-permute", "all-reduce"}


class TestShardings:
    def test_of_states(self, variables):
        """The image is as high as L-BFGS's memory is long, which must not be mistaken for rows."""
        mesh = rows_mesh()
        image = smooth_image(8, 6, seed=1)
        rows, memory = PartitionSpec("rows"), PartitionSpec(None, "rows")
        for config, divided in (
            (SHALLOW, [rows] * 4),
            (SHALLOW.but(optimizer="lbfgs", memory_size=8), [rows] * 4 + [memory] * 2),
        ):
            problem = make_problem(variables, image, STYLES[0], config=config)
            given = placed(image, problem.variables, problem.targets, mesh=mesh)
            state = start_rows(problem.solver, *given, mesh=mesh)
            specs = [leaf.sharding.spec for leaf in jax.tree.leaves(state)]
            assert sorted(filter(None, specs), key=len) == divided
            for leaf in jax.tree.leaves(state):
                parts = {shard.data.size for shard in leaf.addressable_shards}
                assert parts == {leaf.size // 4 if leaf.sharding.spec else leaf.size}

    def test_of_targets(self, variables):
        controls = dict(content_masks=MASKS, preserve=KEEP)
        content = smooth_image(64, 48, seed=1)
        problem = make_problem(variables, content, STYLES, config=DEEP, **controls)
        targets, rows = problem.targets, PartitionSpec("rows")
        found = jax.tree.map(lambda x: x.spec, targets_shardings(targets, mesh=rows_mesh()))
        assert found.content == {"relu4_2": rows}
        assert set(found.regions.guides.values()) == {PartitionSpec(None, "rows")}
        assert tuple(found.preserved) == (rows, rows)
        rest = found._replace(content={}, preserved=None, regions=found.regions._replace(guides={}))
        assert set(jax.tree.leaves(rest)) == {PartitionSpec()}
        found = targets_shardings(targets, mesh=rows_mesh(groups=2), batched=("weights", "regions"))
        found = jax.tree.map(lambda x: x.spec, found)
        assert found.content == {"relu4_2": rows} and found.weights.tv == PartitionSpec("data")
        assert set(found.regions.guides.values()) == {PartitionSpec("data", None, "rows")}
        assert isinstance(found, Targets)

    def test_of_images(self):
        assert image_sharding(rows_mesh(), batched=True).spec == PartitionSpec(None, "rows")
        both = image_sharding(rows_mesh(groups=2), batched=True)
        assert both.spec == PartitionSpec("data", "rows")
        assert image_sharding(rows_mesh(groups=2)).spec == PartitionSpec("rows")


def take(problem, config, image, *, mesh):
    """Run twice three steps: the losses and the last state."""
    given = image, problem.variables, problem.targets
    if mesh is None:
        state = jax.jit(problem.solver.init)(*given)
    else:
        given = placed(*given, mesh=mesh)
        state = start_rows(problem.solver, *given, mesh=mesh)
    return chunks(problem.solver, state, *given[1:], configs=[config], mesh=mesh)


def chunks(solver, state, variables, targets, *, configs, mesh):
    state = state._replace(opt_state=set_learning_rate(state.opt_state, *configs))
    if mesh is not None:
        state = jax.device_put(state, state_shardings(state, mesh=mesh))
    call = partial(run, solver, variables=variables, targets=targets, num_steps=3, chunk_size=3)
    state, first = call(state)
    before = run._cache_size()
    state, second = call(state)
    assert run._cache_size() == before  # equal shardings, so not compiled again
    if mesh is not None:
        found = [leaf.sharding for leaf in jax.tree.leaves(state)]
        assert found == jax.tree.leaves(state_shardings(state, mesh=mesh))
    return np.concatenate([first.loss, second.loss]), state


LBFGS = SHALLOW.but(optimizer="lbfgs", memory_size=3)


@pytest.mark.slow
def test_steps(variables, x64):
    content = as_float64(smooth_image(16, 24, seed=7))
    problem = make_problem(as_float64(variables), content, as_float64(STYLES[0]), config=LBFGS)
    found, state = take(problem, LBFGS, content, mesh=rows_mesh())
    expected, other = take(problem, LBFGS, content, mesh=None)
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(state.best_image, other.best_image, atol=1e-6)


def test_a_frozen_run_stops(variables):
    config = SHALLOW.but(style_weight=3e38)
    problem = make_problem(variables, SOFT[:8], STYLES[0], config=config)
    losses, state = take(problem, config, SOFT[:8], mesh=rows_mesh())
    assert state.frozen and state.count == 1 and not np.isfinite(losses[0])


def test_batch(variables, x64):
    """Two images with different styles and weights, each divided by rows."""
    configs = [LBFGS.but(style_weight=weight) for weight in (100.0, 30.0)]
    contents = as_float64(np.stack([smooth_image(16, 24, seed=seed) for seed in (7, 8)]))
    problems = [
        make_problem(as_float64(variables), content, as_float64(style), config=config)
        for content, style, config in zip(contents, STYLES, configs, strict=True)
    ]
    targets = [problem.targets for problem in problems]
    batched, mesh = batched_fields(targets), rows_mesh(groups=2)
    stacked, solver = stack_fields(targets, batched), batch_solver(problems[0].solver, batched)
    given = (
        replicate(problems[0].variables, mesh),
        jax.device_put(stacked, targets_shardings(stacked, mesh=mesh, batched=batched)),
    )
    images = jax.device_put(contents, image_sharding(mesh, batched=True))
    state = start_rows(solver, images, *given, mesh=mesh)
    lowered = run.lower(solver, state, *given, num_steps=3, chunk_size=3)  # as it is called below
    found = collectives(lowered.compile())
    assert set(found) <= {"collective-permute", "all-reduce"} and largest(found) < SMALL
    losses, state = chunks(solver, state, *given, configs=configs, mesh=mesh)
    for element, (problem, config) in enumerate(zip(problems, configs, strict=True)):
        expected, other = take(problem, config, contents[element], mesh=None)
        np.testing.assert_allclose(losses[:, element], expected, rtol=1e-8)
        np.testing.assert_allclose(state.best_image[element], other.best_image, atol=1e-6)


def run_bytes(config, devices, *, shape):
    """Bytes on each device of a run without its kernels: arguments and scratch memory."""
    mesh = rows_mesh(jax.devices()[:devices])
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    loss = make_loss(config.loss)
    layers = config.loss.content_names + config.loss.style_names
    variables = jax.eval_shape(
        lambda: prepare_kernels(
            init_variables(jax.random.key(0), channels=(16, 32, 32, 32, 32)), layers=layers
        )
    )
    targets = jax.eval_shape(
        lambda *given: loss.targets(*given, weights=loss_weights(config)), variables, image, [image]
    )
    solver = make_solver(
        loss, make_optimizer(config.optimizer.name, memory_size=config.optimizer.memory_size)
    )
    state = jax.eval_shape(solver.init, image, variables, targets)

    def at(tree, shardings):
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings
        )

    everywhere = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), variables)
    lowered = run.lower(
        solver,
        at(state, state_shardings(state, mesh=mesh)),
        at(variables, everywhere),
        at(targets, targets_shardings(targets, mesh=mesh)),
        num_steps=1,
        chunk_size=4,
    )
    analysis = lowered.compile().memory_analysis()
    kernels = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))
    return np.array([analysis.argument_size_in_bytes - kernels, analysis.temp_size_in_bytes])


@pytest.mark.slow
@pytest.mark.optimized
def test_memory_of_each_device():
    config = Config.of(
        memory_size=10, content_layers=["relu3_1"], style_layers=["relu1_1", "relu3_1"]
    )
    one, two, four = (run_bytes(config, devices, shape=(256, 192, 3)) for devices in (1, 2, 4))
    assert (one / two > [1.9, 1.6]).all(), (one, two)
    assert (one / four > [3.6, 2.8]).all(), (one, four)


@pytest.mark.parametrize(
    "losses",
    [
        {"style_losses": ["mean-std", "wasserstein", "histogram"]},
        {"content_losses": ["self-similarity", "laplacian4"]},
    ],
    ids=["style", "content"],
)
@pytest.mark.slow
def test_further_losses_gather_no_layer(x64, variables, losses):
    config = SHALLOW.but(tv_form="nine-point", tv_order=2, tv_reduction="mean", **losses)
    error, found = compare(variables, config)
    assert error < 1e-9
    # All-reduces may be larger: histograms of channels, and features at the positions of a grid.
    assert not {"all-gather", "all-to-all", "collective-broadcast"} & set(found)
    assert largest({"": found["collective-permute"]}) < SMALL
