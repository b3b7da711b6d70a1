"""Images divided by rows: the numbers of one device, and no layer whole on any device."""

import re
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import smooth_image
from helpers.records import make_problem
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.losses import loss_weights, make_loss
from nst_jax.models import init_variables, prepare_kernels
from nst_jax.models.convolution import winograd_conv
from nst_jax.optim import make_optimizer, make_solver, run, set_learning_rate
from nst_jax.transfer import make_mesh, rows_mesh
from nst_jax.transfer.batch_programs import batch_solver, own_fields, stack_fields
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
SMALL = 2**10  # numbers of a collective's result: Gram matrices and borders, not features


def wide(tree):
    """A tree in double precision."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def collectives(compiled):
    """The collectives of a compiled program: the results' shapes by name."""
    found = {}
    names = "all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute"
    pattern = rf"= (\(.*?\)|\S+) ({names}|reduce-scatter)(?:-start)?\("
    for shapes, name in re.findall(pattern, compiled.as_text()):
        for sizes in re.findall(r"\[([\d,]*)\]", shapes):
            shape = tuple(int(size) for size in sizes.split(",") if size)
            found.setdefault(name, []).append(shape)
    return found


def counted(found):
    return {name: len(shapes) for name, shapes in found.items()}


def largest(found):
    return max(int(np.prod(shape)) for shapes in found.values() for shape in shapes)


def of_loss(config):
    """Loss and gradient as a jitted function of ``(image, variables, targets)``."""
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
    """Relative errors of loss and gradient on devices, and the compiled program's collectives."""
    cast = partial(jax.tree.map, lambda x: jnp.asarray(x, dtype))
    content, image = (cast(smooth_image(height, 48, seed=seed)) for seed in (5, 6))
    problem = make_problem(cast(variables), content, cast(styles), config=config, **controls)
    function = of_loss(config)
    whole = image, problem.variables, problem.targets
    rows = placed(*whole, mesh=rows_mesh())
    compiled = function.lower(*rows).compile()
    (value, gradient), (expected, wanted) = compiled(*rows), function(*whole)
    assert gradient.sharding.spec == PartitionSpec("rows") and gradient.dtype == dtype
    errors = abs(value / expected - 1), np.abs(gradient - wanted).max() / np.abs(wanted).max()
    return max(map(float, errors)), collectives(compiled)


class TestMesh:
    def test_axes(self):
        four, two = rows_mesh(), rows_mesh(jax.devices()[2:])
        assert dict(four.shape) == {"rows": 4} and dict(two.shape) == {"rows": 2}
        assert two.devices.tolist() == jax.devices()[2:]
        both = rows_mesh(groups=2)
        assert dict(both.shape) == {"data": 2, "rows": 2}
        assert {*four.axis_types, *both.axis_types} == {AxisType.Auto}

    @pytest.mark.parametrize("groups", [0, 3, 8])
    def test_groups_divide_the_devices(self, groups):
        with pytest.raises(InputError, match=f"4 devices for {groups} groups"):
            rows_mesh(groups=groups)


class TestCheck:
    @pytest.mark.parametrize(
        "height, width, devices, layers, size",
        [
            (720, 1280, 4, (), 1252),  # 704 px high
            (1280, 721, 3, (), 1296),
            (100, 1000, 2, ("relu3_1",), 965),
            (10, 300, 4, (), 1905),
            (33, 20, 4, ("relu1_2",), 32),
            (96, 96, 4, (), 64),
        ],
    )
    def test_other_heights_are_refused_with_the_nearest_size(
        self, height, width, devices, layers, size
    ):
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
        for height, devices in ((64, 4), (32, 2), (96, 3), (17, 1), (1088, 4)):
            mesh = rows_mesh(jax.devices()[:devices])
            check_rows(height - height % 16, 50, mesh=mesh, config=DEEP)
        both = rows_mesh(groups=2)
        check_rows(32, 51, mesh=both, config=DEEP)
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

    @pytest.mark.slow
    def test_why_heights_are_refused(self, variables, x64):
        """Numbers are right for any height, but features are gathered."""
        config = SHALLOW.but(content_layers=["relu1_1"])
        error, found = compare(variables, config, height=60)
        assert error < 1e-12
        assert "all-gather" in found and largest({"": found["all-gather"]}) >= 30 * 24 * 6

    def test_why_winograd_is_refused(self):
        mesh = rows_mesh()
        x = jax.device_put(
            np.zeros((1, 64, 48, 8)), NamedSharding(mesh, PartitionSpec(None, "rows"))
        )
        kernel = replicate(jnp.zeros((6, 6, 8, 8)), mesh)
        found = collectives(winograd_conv.lower(x, kernel).compile())
        assert largest({"": found["all-gather"]}) >= 64 * 48 * 8


class TestLossAndGradient:
    @pytest.mark.slow
    @pytest.mark.optimized
    def test_of_the_whole_depth_and_its_collectives(self, variables, x64):
        error, found = compare(variables, DEEP)
        assert error < 1e-12
        # One row from each neighbour for each of 13 convolutions, forward and backward, and for
        # the differences of neighbouring rows; all sums over pixels in one.
        counts = counted(found)
        assert counts.pop("collective-permute") == 2 * (2 * 13 + 1)
        shapes = found["all-reduce"]
        grams = [(width, width) for width in (4, 6, 8, 10, 12)]
        assert Counter(shapes) == Counter([*grams, (), (), ()])
        assert list(counts) == ["all-reduce"]
        for shape in found["collective-permute"]:
            assert shape[-3] == 1

    CASES = {
        "average": (
            dict(pooling="average", tv_order=2, content_layers=["conv2_2", "relu1_1"]),
            dict(styles=STYLES, blend=[1.0, 3.0]),
        ),
        "circular": (dict(padding="circular", style_mixing="sum"), dict(styles=STYLES)),
        "reflect": (dict(padding="reflect", pooling="l2", guides="all"), dict(content_masks=MASKS)),
        "replicate": (dict(padding="replicate", pooling="average-scaled"), {}),
        "reflect, a row of the deepest layer each": (
            dict(padding="reflect", content_layers=["relu3_1"], style_layers=["relu2_2"]),
            dict(height=16),
        ),
        "regions": (dict(guides="inside"), dict(styles=STYLES, content_masks=MASKS, preserve=KEEP)),
        "remat, replicate-input": (
            dict(remat="on", padding="replicate-input"),
            dict(content_masks=MASKS[:1], region_weights=[2.0]),
        ),
    }

    @pytest.mark.parametrize(
        "change, given",
        [
            pytest.param(*case, id=name, marks=[pytest.mark.optimized] * (name == "circular"))
            for name, case in CASES.items()
        ],
    )
    def test_of_every_setting(self, variables, x64, change, given):
        error, found = compare(variables, SHALLOW.but(**change), **given)
        assert error < 1e-12
        assert set(found) <= {"collective-permute", "all-reduce"}
        assert largest(found) < SMALL

    @pytest.mark.slow
    def test_of_the_shipped_slim_weights_in_single_precision(self):
        slim = load_weights(SLIM).variables
        error, found = compare(slim, Config.of(convolution="direct"), dtype=jnp.float32)
        assert error < 1e-5 and set(found) <= {"collective-permute", "all-reduce"}


class TestPlaces:
    def test_of_states(self, variables):
        """Also of an image that is as high as the memory is long."""
        mesh = rows_mesh()
        image = smooth_image(8, 6, seed=1)
        rows, memory = PartitionSpec("rows"), PartitionSpec(None, "rows")
        for config, divided in (
            (SHALLOW, [rows] * 4),
            (SHALLOW.but(optimizer="lbfgs", memory_size=8), [rows] * 4 + [memory] * 2),
            (
                SHALLOW.but(optimizer="lbfgs-linesearch", memory_size=8),
                [rows] * 5 + [memory] * 2,
            ),
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
        problem = make_problem(
            variables, smooth_image(64, 48, seed=1), STYLES, config=DEEP, **controls
        )
        targets, rows = problem.targets, PartitionSpec("rows")
        found = jax.tree.map(lambda x: x.spec, targets_shardings(targets, mesh=rows_mesh()))
        assert found.content == {"relu4_2": rows}
        assert set(found.regions.guides.values()) == {PartitionSpec(None, "rows")}
        assert tuple(found.keep) == (rows, rows)
        rest = found._replace(content={}, keep=None, regions=found.regions._replace(guides={}))
        assert set(jax.tree.leaves(rest)) == {PartitionSpec()}
        found = targets_shardings(targets, mesh=rows_mesh(groups=2), own=("weights", "regions"))
        found = jax.tree.map(lambda x: x.spec, found)
        assert found.content == {"relu4_2": rows} and found.weights.tv == PartitionSpec("data")
        assert set(found.regions.guides.values()) == {PartitionSpec("data", None, "rows")}
        assert isinstance(found, Targets)

    def test_of_batches_without_an_axis_of_their_own(self):
        assert image_sharding(rows_mesh(), batched=True).spec == PartitionSpec(None, "rows")
        assert image_sharding(rows_mesh(groups=2), batched=True).spec == PartitionSpec(
            "data", "rows"
        )
        assert image_sharding(rows_mesh(groups=2)).spec == PartitionSpec("rows")


def take(problem, config, image, *, mesh):
    """Two runs of three steps: the losses, the last state, and how it was compiled."""
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
    assert run._cache_size() == before  # places did not drift
    if mesh is not None:
        for leaf, place in zip(
            jax.tree.leaves(state), jax.tree.leaves(state_shardings(state, mesh=mesh)), strict=True
        ):
            assert leaf.sharding == place
    return np.concatenate([first.loss, second.loss]), state


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs", "lbfgs-linesearch"])
def test_steps(variables, x64, optimizer):
    memory = {} if optimizer == "adam" else {"memory_size": 3}
    config = SHALLOW.but(optimizer=optimizer, **memory)
    content = wide(smooth_image(16, 24, seed=7))
    problem = make_problem(wide(variables), content, wide(STYLES[0]), config=config)
    found, state = take(problem, config, content, mesh=rows_mesh())
    expected, other = take(problem, config, content, mesh=None)
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(state.best_image, other.best_image, atol=1e-6)


def test_a_frozen_run_stops(variables):
    config = SHALLOW.but(style_weight=3e38)
    problem = make_problem(variables, SOFT[:8], STYLES[0], config=config)
    losses, state = take(problem, config, SOFT[:8], mesh=rows_mesh())
    assert state.frozen and state.count == 1 and not np.isfinite(losses[0])


@pytest.mark.parametrize("optimizer, parts", [("adam", 2), ("lbfgs", 2), ("lbfgs", 1)])
def test_batch(variables, x64, optimizer, parts):
    """Two images with two styles and factors, each divided by rows."""
    memory = {} if optimizer == "adam" else {"memory_size": 3}
    configs = [
        SHALLOW.but(optimizer=optimizer, style_weight=weight, **memory) for weight in (100.0, 30.0)
    ]
    contents = wide(np.stack([smooth_image(16, 24, seed=seed) for seed in (7, 8)]))
    problems = [
        make_problem(wide(variables), content, wide(style), config=config)
        for content, style, config in zip(contents, STYLES, configs, strict=True)
    ]
    targets = [problem.targets for problem in problems]
    own, mesh = own_fields(targets), rows_mesh(groups=parts)
    stacked, solver = stack_fields(targets, own), batch_solver(problems[0].solver, own)
    given = (
        replicate(problems[0].variables, mesh),
        jax.device_put(stacked, targets_shardings(stacked, mesh=mesh, own=own)),
    )
    images = jax.device_put(contents, image_sharding(mesh, batched=True))
    state = start_rows(solver, images, *given, mesh=mesh)
    found = collectives(
        run.lower(solver, state, *given, num_steps=3, chunk_size=3).compile()  # as it will be run
    )
    assert set(found) <= {"collective-permute", "all-reduce"} and largest(found) < SMALL
    losses, state = chunks(solver, state, *given, configs=configs, mesh=mesh)
    for element, (problem, config) in enumerate(zip(problems, configs, strict=True)):
        expected, other = take(problem, config, contents[element], mesh=None)
        np.testing.assert_allclose(losses[:, element], expected, rtol=1e-8)
        np.testing.assert_allclose(state.best_image[element], other.best_image, atol=1e-6)


def run_bytes(config, devices, *, shape):
    """Bytes on each device of a run, without its kernels: what goes in, and scratch."""
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
        {"style_losses": ["covariance", "mean-std", "wasserstein"]},
        {"style_losses": ["histogram"]},
        {"content_losses": ["self-similarity", "laplacian4"]},
        {"tv_form": "nine-point", "tv_order": 2, "tv_reduction": "mean"},
    ],
    ids=lambda losses: "-".join(map(str, losses)),
)
@pytest.mark.slow
def test_further_losses_gather_no_layer(x64, variables, losses):
    error, found = compare(variables, SHALLOW.but(**losses))
    assert error < 1e-9
    # Beyond borders and sums: histograms of channels, and features at the positions of a grid.
    assert not {"all-gather", "all-to-all", "collective-broadcast"} & set(found)
    assert largest({"": found["collective-permute"]}) < SMALL
