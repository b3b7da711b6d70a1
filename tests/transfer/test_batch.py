"""Batches: each image as the run alone, whatever its neighbours do, on one device or several."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import smooth_image
from helpers.records import run_batch, stylize, stylize_batch
from helpers.traces import count_traces

from nst_jax.cli import app
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.transfer import (
    batch,
    batch_programs,
    check_inputs,
    each_result,
    make_mesh,
    problem,
    rows_mesh,
)
from nst_jax.transfer.batch_programs import Element

pytestmark = pytest.mark.sampled

SHALLOW = {"content_layers": ["relu2_1"], "style_layers": ["relu1_1", "relu2_1"]}
ADAM = Config.of(steps=6, optimizer="adam", **SHALLOW)
LBFGS = Config.of(steps=6, memory_size=4, **SHALLOW)
SPECTRAL = LBFGS.but(preconditioner="spectral")
SLIM = ADAM.but(content_layers=["relu3_1"], style_layers={"relu1_1": 1.0, "relu2_2": 0.5})
SEARCH = Config.of(steps=3, optimizer="lbfgs-linesearch", **SHALLOW)
CONFIGS = {"adam": ADAM, "lbfgs": LBFGS, "spectral": SPECTRAL, "search": SEARCH}
CONTENTS = np.stack([smooth_image(24, 32, seed=seed) for seed in (1, 2, 3)])
STYLES = [
    smooth_image(32, 26, seed=11),
    smooth_image(20, 40, seed=12),
    smooth_image(32, 26, seed=13),
]
CASES = {
    "all": dict(contents=CONTENTS, styles=STYLES[0]),
    "mixed": dict(contents=CONTENTS[:2], styles=STYLES[:2], blend=[1.0, 3.0]),
    "pairs": dict(contents=CONTENTS, styles=STYLES, pairing="pairs"),
    "grid": dict(contents=CONTENTS[:2], styles=STYLES, pairing="grid"),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def of_each(contents, styles, *, pairing="all", blend=None):
    """The images of a case by hand: content, styles and options of each."""
    if pairing == "pairs":
        return [(content, [style], {}) for content, style in zip(contents, styles, strict=True)]
    if pairing == "grid":
        return [(content, [style], {}) for content in contents for style in styles]
    return [(content, styles, {"blend": blend}) for content in contents]


def singles(variables, case, *, configs, **each):
    """The runs alone; ``each`` has lists of what differs between them."""
    images = of_each(**case)
    configs = [configs] * len(images) if isinstance(configs, Config) else configs
    return [
        stylize(
            variables,
            content,
            styles,
            config=configs[index],
            **options,
            **{name: values[index] for name, values in each.items()},
        )
        for index, (content, styles, options) in enumerate(images)
    ]


def assert_same(found, expected):
    """Check every bit of several images against runs alone."""
    assert found.image.shape == (len(expected), *expected[0].image.shape) and found.state is None
    for one, other in zip(each_result(found), expected, strict=True):
        assert one.status == other.status and one.loss == other.loss
        assert type(one.loss) is float
        np.testing.assert_array_equal(one.image, other.image)
        jax.tree.map(np.testing.assert_array_equal, one.history, other.history)


def assert_close(found, expected, *, rtol):
    """Check numbers against runs alone, and images to a twentieth of a grey value."""
    assert found.image.shape == (len(expected), *expected[0].image.shape) and found.state is None
    for one, other in zip(each_result(found), expected, strict=True):
        assert one.status == other.status
        assert one.loss == pytest.approx(other.loss, rel=rtol)
        for name in ("loss", "grad_norm", "evaluations"):
            values = getattr(one.history, name), getattr(other.history, name)
            np.testing.assert_allclose(*values, rtol=rtol)
        assert np.abs(one.image - other.image).mean() < 0.05 / 255


def wide(tree):
    """A tree in double precision."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


def wide_case(case):
    images = {name: wide(case[name]) for name in ("contents", "styles")}
    return case | images


def devices_mesh(count):
    return None if count == 1 else make_mesh(devices=jax.devices()[:count])


class TestApart:
    """On CPUs each goes through the program of ``stylize``: not a bit differs."""

    @each_config
    @pytest.mark.parametrize(
        "case",
        [
            pytest.param(CASES[name], id=name, marks=[pytest.mark.optimized] * (name == "all"))
            for name in CASES
        ],
    )
    def test_each_is_the_run_alone(self, variables, config, case):
        if "blend" in case and config is not ADAM:
            return  # other programs for nothing new
        found = stylize_batch(variables, **case, config=config)
        assert_same(found, singles(variables, case, configs=config))

    @pytest.mark.optimized
    @pytest.mark.parametrize("case, devices", [("all", 2), ("grid", 2), ("pairs", 4)])
    def test_on_several_devices(self, variables, case, devices):
        found = stylize_batch(variables, **CASES[case], config=ADAM, mesh=devices_mesh(devices))
        assert_same(found, singles(variables, CASES[case], configs=ADAM))

    @pytest.mark.parametrize("color", ["keep-yiq", "match-symmetric", "luminance"])
    def test_colours_follow_each_content(self, variables, color):
        config = ADAM.but(color=color)
        for case in (CASES["all"], CASES["grid"]):
            found = stylize_batch(variables, **case, config=config)
            assert_same(found, singles(variables, case, configs=config))

    def test_numbers_noise_and_starts_of_each(self, variables):
        noisy = ADAM.but(init="noise", noise_scale=0.2)
        configs = [
            noisy,
            noisy.but(noise_scale=0.1, style_layers={"relu1_1": 0.3, "relu2_1": 2.0}),
            noisy.but(learning_rate=3.0, style_weight=7.0),
        ]
        each = {
            "key": [jax.random.key(seed) for seed in (4, 5, 4)],
            "init": [None, None, STYLES[0][:24, :1].repeat(32, 1)],
        }
        found = stylize_batch(
            variables, **CASES["all"], config=configs, keys=each["key"], inits=each["init"]
        )
        expected = singles(variables, CASES["all"], configs=configs, **each)
        assert_same(found, expected)
        assert len({result.history.loss[0] for result in expected}) == 3
        # Without keys all have the noise of stylize, the same one.
        found = stylize_batch(variables, **CASES["all"], config=noisy)
        assert_same(found, singles(variables, CASES["all"], configs=noisy))
        keys = jax.random.split(jax.random.key(0), 3)  # an array of keys
        found = stylize_batch(variables, **CASES["all"], config=noisy, keys=keys)
        assert_same(found, singles(variables, CASES["all"], configs=noisy, key=keys))

    def test_numbers_along_a_grid(self, variables):
        configs = [LBFGS.but(style_weight=10.0 * (index + 1)) for index in range(6)]
        found = stylize_batch(variables, **CASES["grid"], config=configs)
        assert_same(found, singles(variables, CASES["grid"], configs=configs))

    def test_slim_weights(self, slim_variables):
        found = stylize_batch(slim_variables, **CASES["all"], config=SLIM)
        assert_same(found, singles(slim_variables, CASES["all"], configs=SLIM))

    def test_without_styles(self, variables):
        config = ADAM.but(init="noise", noise_scale=0.1, style_layers=[])
        case = dict(contents=CONTENTS, styles=[])
        found = stylize_batch(variables, **case, config=config)
        assert_same(found, singles(variables, case, configs=config))

    @pytest.mark.slow
    def test_where_things_are_does_not_matter(self, variables):
        """Images and network may be on other devices than those of the mesh."""
        first, _, *others = jax.devices()
        here, there = jax.device_put((CONTENTS, STYLES[0]), first)
        mesh = make_mesh(devices=others)
        for together in (False, True):
            found = stylize_batch(variables, here, there, config=ADAM, mesh=mesh, together=together)
            check = partial(assert_close, rtol=1e-5) if together else assert_same
            check(found, singles(variables, CASES["all"], configs=ADAM))
        assert not here.is_deleted()


class TestTogether:
    """By ``vmap`` numbers are rounded otherwise, and L-BFGS magnifies that."""

    @pytest.mark.parametrize(
        "name, case", [*(("adam", case) for case in CASES), ("search", "grid")]
    )
    def test_each_is_the_run_alone(self, variables, name, case):
        case, config = CASES[case], CONFIGS[name]
        found = stylize_batch(variables, **case, config=config, together=True)
        assert_close(found, singles(variables, case, configs=config), rtol=1e-5)

    @pytest.mark.slow
    def test_in_double_precision(self, x64, variables):
        case = wide_case(CASES["all"])
        found = stylize_batch(wide(variables), **case, config=LBFGS, together=True)
        assert found.image.dtype == np.float64
        assert_close(found, singles(wide(variables), case, configs=LBFGS), rtol=1e-9)

    @pytest.mark.parametrize(
        "color, case", [("keep-yiq", "grid"), ("match-symmetric", "grid"), ("luminance", "all")]
    )
    @pytest.mark.slow
    def test_colours_follow_each_content(self, variables, color, case):
        # Of white pixels side by side rounding decides the sign of a difference of luminances, and
        # Adam makes whole steps of it: not so of squares.
        config = ADAM.but(color=color, tv_order=2)
        found = stylize_batch(variables, **CASES[case], config=config, together=True)
        assert_close(found, singles(variables, CASES[case], configs=config), rtol=1e-5)

    def test_numbers_noise_and_starts_of_each(self, variables):
        noisy = ADAM.but(init="noise", noise_scale=0.2)
        configs = [noisy, noisy.but(noise_scale=0.1), noisy.but(learning_rate=3.0)]
        keys = [jax.random.key(seed) for seed in (4, 5, 4)]
        inits = [None, None, CONTENTS[0]]
        options = dict(config=configs, keys=keys, inits=inits, together=True)
        expected = singles(variables, CASES["all"], configs=configs, key=keys, init=inits)
        for devices in (1, 2):
            mesh = devices_mesh(devices)
            found = stylize_batch(variables, **CASES["all"], **options, mesh=mesh)
            assert_close(found, expected, rtol=1e-5)

    def test_every_content_loss_sees_its_own_content(self, variables):
        losses = {"features": 1.0, "self-similarity": 2.0, "laplacian4": 3.0}
        config = ADAM.but(content_losses=losses)
        found = stylize_batch(variables, **CASES["all"], config=config, together=True)
        expected = singles(variables, CASES["all"], configs=config)
        # At first each is its content.
        np.testing.assert_allclose(found.history.terms.content[0], 0, atol=1e-2)
        for index, alone in enumerate(expected):
            losses = found.history.loss[:2, index], alone.history.loss[:2]
            np.testing.assert_allclose(*losses, rtol=1e-4)
            contents = found.history.terms.content[1, index], alone.history.terms.content[1]
            np.testing.assert_allclose(*contents, rtol=0.1)
            assert contents[1] > 1

    def test_slim_weights(self, slim_variables):
        found = stylize_batch(slim_variables, **CASES["all"], config=SLIM, together=True)
        assert_close(found, singles(slim_variables, CASES["all"], configs=SLIM), rtol=1e-5)


def image_grid(contents, styles):
    styles = [STYLES[index % 3][:, ::-1] if index > 2 else STYLES[index] for index in range(styles)]
    return dict(contents=CONTENTS[:contents], styles=styles, pairing="grid")


class TestSpread:
    """Together on several devices, of whose number that of the images is no multiple."""

    @pytest.mark.parametrize(
        "case, devices",
        [
            pytest.param(CASES["all"], 2, id="all-2"),
            pytest.param(CASES["all"], 4, id="all-4"),
            pytest.param(CASES["pairs"], 2, id="pairs-2"),
            pytest.param(image_grid(1, 4), 2, id="1x4-2"),
            pytest.param(image_grid(3, 2), 2, id="3x2-2"),
            pytest.param(image_grid(3, 2), 4, id="3x2-4"),  # neither axis divides: filled along one
            pytest.param(image_grid(2, 3), 2, id="2x3-2"),
            pytest.param(image_grid(2, 3), 4, id="2x3-4"),  # nor here: along the other
        ],
    )
    def test_each_is_the_run_alone(self, variables, case, devices):
        """Each has its own numbers, so that none can stand for another."""
        count = len(of_each(**case))
        configs = [
            ADAM.but(learning_rate=4.0 + index, style_weight=50.0 + 20 * index)
            for index in range(count)
        ]
        found = stylize_batch(
            variables, **case, config=configs, mesh=devices_mesh(devices), together=True
        )
        assert_close(found, singles(variables, case, configs=configs), rtol=1e-5)

    def test_line_searches(self, variables):
        options = dict(config=SEARCH, mesh=devices_mesh(2), together=True)
        found = stylize_batch(variables, **CASES["grid"], **options)
        assert_close(found, singles(variables, CASES["grid"], configs=SEARCH), rtol=1e-5)

    def test_after_fifty_steps_of_adam(self, variables):
        """In float32: losses to a thousandth, images to a twentieth of a grey value."""
        config = ADAM.but(steps=50)
        options = dict(config=config, mesh=devices_mesh(4), together=True)
        found = stylize_batch(variables, **CASES["all"], **options)
        assert_close(found, singles(variables, CASES["all"], configs=config), rtol=1e-3)

    @pytest.mark.slow
    def test_after_fifty_steps_of_lbfgs(self, x64, variables):
        """In float32 L-BFGS on this random network magnifies rounding to per cents by then."""
        case, config = wide_case(CASES["all"]), LBFGS.but(steps=50)
        options = dict(config=config, mesh=devices_mesh(2), together=True)
        found = stylize_batch(wide(variables), **case, **options)
        expected = singles(wide(variables), case, configs=config)
        assert_close(found, expected, rtol=1e-5)
        for element, result in enumerate(expected):
            losses = found.history.loss[:6, element], result.history.loss[:6]
            np.testing.assert_allclose(*losses, rtol=1e-9)

    @pytest.mark.parametrize("together", [False, True])
    @pytest.mark.parametrize("shape", [(2,), (2, 2)])
    def test_meshes_of_any_kind(self, variables, together, shape):
        """Of explicit axes, as ``jax.make_mesh`` makes them, and of two."""
        devices = jax.devices() if shape == (2, 2) else jax.devices()[2:]
        mesh = jax.make_mesh(shape, ("left", "right")[: len(shape)], devices=devices)
        found = stylize_batch(variables, **CASES["all"], config=ADAM, mesh=mesh, together=together)
        assert_close(found, singles(variables, CASES["all"], configs=ADAM), rtol=1e-5)


class TestRows:
    """Together, each image divided by rows, and on 2x2 devices the images, too."""

    @pytest.mark.parametrize(
        "name, case, parts",
        [
            ("adam", "all", 2),  # three images, filled up to four
            ("adam", "grid", 2),
            ("adam", "pairs", 1),
            ("search", "all", 1),
        ],
    )
    @pytest.mark.slow
    def test_each_is_the_run_alone(self, variables, name, case, parts):
        """Each has its own numbers, so that none can stand for another."""
        case, mesh = CASES[case], rows_mesh(groups=parts)
        configs = [
            CONFIGS[name].but(style_weight=50.0 + 20 * index)
            for index in range(len(of_each(**case)))
        ]
        found = stylize_batch(variables, **case, config=configs, mesh=mesh)
        assert_close(found, singles(variables, case, configs=configs), rtol=1e-5)

    @pytest.mark.slow
    def test_lbfgs_in_double_precision(self, x64, variables):
        case = wide_case(CASES["pairs"])
        found = stylize_batch(wide(variables), **case, config=LBFGS, mesh=rows_mesh(groups=2))
        assert_close(found, singles(wide(variables), case, configs=LBFGS), rtol=1e-8)

    @pytest.mark.parametrize("color", ["keep-yiq", "match-symmetric"])
    def test_colours_starts_and_reports(self, variables, color):
        seen, config = [], ADAM.but(color=color, init="noise", noise_scale=0.2)
        case, keys = CASES["grid"], list(jax.random.split(jax.random.key(5), 6))
        found = stylize_batch(
            variables,
            **case,
            config=config,
            keys=keys,
            mesh=rows_mesh(groups=2),
            callback=seen.append,
        )
        assert_close(found, singles(variables, case, configs=config, key=keys), rtol=1e-5)
        assert seen[-1].image.shape == (6, 24, 32, 3)

    @pytest.mark.slow
    def test_neighbours_do_not_notice_a_divergence(self, variables):
        configs = [ADAM, ADAM.but(learning_rate=1e30), ADAM]
        found = stylize_batch(variables, **CASES["all"], config=configs, mesh=rows_mesh(groups=2))
        assert found.status == ("done", "diverged", "done")
        calm = singles(variables, CASES["all"], configs=ADAM)
        for index in (0, 2):
            losses = found.history.loss[:, index], calm[index].history.loss
            np.testing.assert_allclose(*losses, rtol=1e-5)

    @pytest.mark.parametrize("parts", [1, 2])
    def test_where_things_are(self, variables, taken, parts):
        """Each device has its part of the images and of their features."""
        config = ADAM.but(steps=1)
        stylize_batch(variables, **CASES["grid"], config=config, mesh=rows_mesh(groups=parts))
        given = taken[0].keywords
        features = given["targets"].content["relu2_1"]
        assert features.shape == (6, 12, 16, 6)
        shards = {shard.data.shape for shard in features.addressable_shards}
        assert shards == {(6 // parts, 3 * parts, 16, 6)}
        assert jax.tree.leaves(given["variables"])[0].is_fully_replicated

    @pytest.mark.slow
    def test_it_is_compiled_once(self, variables, caplog):
        contents = CONTENTS[:, :, :30]  # a size of this test's own

        def compiled():
            caplog.clear()
            with jax.log_compiles():
                stylize_batch(variables, contents, STYLES[0], config=ADAM, mesh=rows_mesh(groups=2))
            messages = [record.getMessage() for record in caplog.records]
            return sum("XLA compilation of jit(run) " in message for message in messages)

        assert compiled() == 1
        assert compiled() == 0

    @pytest.mark.parametrize(
        "options, message",
        [
            (dict(together=False), "take each step together: leave out together"),
            (dict(contents=CONTENTS[:, :22]), "32x22 px, but divided by rows over 2 devices"),
            (dict(config=SEARCH), "line searches of several images"),
            (dict(config=SPECTRAL), "spectral"),
            (dict(mesh=jax.make_mesh((4,), ("rows",))), "make it by rows_mesh"),
        ],
    )
    def test_what_is_refused(self, variables, options, message):
        given = dict(contents=CONTENTS, styles=STYLES[:1], config=ADAM, mesh=rows_mesh(groups=2))
        with pytest.raises(InputError, match=message):
            stylize_batch(variables, **given | options)


@pytest.fixture
def taken(monkeypatch):
    """What the elements of each run take steps with together."""
    seen = []
    original = batch.together

    def spy(*args, **options):
        program = original(*args, **options)
        seen.append(program.take)
        return program

    monkeypatch.setattr(batch, "together", spy)
    return seen


def addresses(tree):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]


class TestSharing:
    @pytest.mark.parametrize(
        "pairing, color, content, style",
        [
            ("all", "none", (3,), ()),
            ("pairs", "none", (3,), (3,)),
            ("grid", "none", (6,), (6,)),
            ("all", "keep-lab", (3,), ()),
            ("grid", "match-symmetric", (6,), (6,)),
            ("all", "match-symmetric", (3,), (3,)),
        ],
    )
    def test_leading_axes(self, variables, taken, pairing, color, content, style):
        config = ADAM.but(steps=1, color=color)
        stylize_batch(variables, **CASES[pairing], config=config, together=True)
        targets = taken[0].keywords["targets"]
        assert targets.content["relu2_1"].shape == (*content, 12, 16, 6)
        assert targets.style["relu2_1"].gram.shape == (*style, 1, 6, 6)
        assert targets.weights.tv.shape == (6 if pairing == "grid" else 3,)
        assert targets.shares["relu1_1"].shape == (1, 1)
        kernels = taken[0].keywords["variables"]["params"]["conv1_1"]["kernel"]
        assert kernels.shape[-1] == 4 and kernels.ndim <= 5

    @pytest.mark.parametrize(
        "shape, content, style", [((1, 4), None, "data"), ((3, 2), "data", "data")]
    )
    def test_what_differs_is_divided_among_devices(self, variables, taken, shape, content, style):
        config = ADAM.but(steps=1)
        mesh = devices_mesh(2)
        case = image_grid(*shape)
        stylize_batch(variables, **case, config=config, mesh=mesh, together=True)
        targets = taken[0].keywords["targets"]
        for field, axis in (
            (targets.content["relu2_1"], content),
            (targets.style["relu2_1"].gram, style),
        ):
            assert "data" in field.sharding.spec if axis else field.is_fully_replicated
        assert jax.tree.leaves(taken[0].keywords["variables"])[0].is_fully_replicated

    @pytest.mark.parametrize("devices", [1, 2])
    def test_apart_kernels_and_styles_are_there_once(self, variables, monkeypatch, devices):
        """On each device."""
        given, original = {}, batch_programs.run

        def spy(solver, state, *, variables, targets, **options):
            (device,) = state.image.devices()
            given.setdefault(device, []).append((variables, targets))
            return original(solver, state, variables=variables, targets=targets, **options)

        monkeypatch.setattr(batch_programs, "run", spy)
        config = ADAM.but(steps=1)
        stylize_batch(variables, **CASES["grid"], config=config, mesh=devices_mesh(devices))
        assert len(given) == devices
        assert sum(map(len, given.values())) == 2 * 6  # with the run of no steps
        for calls in given.values():
            assert len({tuple(addresses(variables)) for variables, _ in calls}) == 1
            assert len({tuple(addresses(targets.style)) for _, targets in calls}) == 3
            assert len({tuple(addresses(targets.content)) for _, targets in calls}) == 2

    @pytest.mark.parametrize(
        "pairing, color, calls",
        [
            ("all", "none", 1),
            ("mixed", "none", 1),
            ("pairs", "keep-yiq", 3),
            ("grid", "none", 3),
            ("all", "match-symmetric", 3),
            ("grid", "match-symmetric", 6),
            ("grid", "luminance", 6),
        ],
    )
    def test_gram_matrices_are_computed_once(self, variables, monkeypatch, pairing, color, calls):
        computed, original = [], problem.compute_moments

        def counting(*args):
            computed.append(None)
            return original(*args)

        monkeypatch.setattr(problem, "compute_moments", counting)
        config = ADAM.but(steps=1, color=color)
        stylize_batch(variables, **CASES[pairing], config=config)
        assert len(computed) == calls

    def test_few_styles_are_kept(self, variables):
        """Where there are more than a job keeps, they are computed again, and right."""
        expected = singles(variables, CASES["grid"], configs=ADAM)
        images = [(content, style) for content in CASES["grid"]["contents"] for style in STYLES]
        elements = make_elements(variables, images, names=[0, 1, 2] * 2, keep=2)
        assert_same(run_batch(elements), expected)
        assert_close(run_batch(elements, together=True), expected, rtol=1e-5)


# At once, at the second step, at the third, at the fourth.
AT_ONCE = SPECTRAL.but(style_weight=3.4e38)
SOON = SPECTRAL.but(learning_rate=1e30)
THIRD = SPECTRAL.but(learning_rate=1e5)
FOURTH = SPECTRAL.but(learning_rate=1e4)
CALM = SPECTRAL.but(learning_rate=0.1)  # rounding is not magnified


class TestDivergence:
    @pytest.mark.parametrize(
        "together, devices, every",
        [(False, 1, None), (False, 2, 1), (True, 1, 1), (True, 2, None)],
    )
    def test_each_ends_for_itself(self, variables, together, devices, every):
        """Also where the host, or a device beside one with nothing left to do, goes on."""
        case = dict(contents=CONTENTS[np.arange(6) % 3], styles=STYLES[0])
        configs = [replace(one, steps=10) for one in (SOON, AT_ONCE, THIRD, CALM, FOURTH, CALM)]
        options = dict(mesh=devices_mesh(devices), together=together, every=every)
        found = stylize_batch(variables, **case, config=configs, **options)
        lengths = [2, 1, 3, 10, 4, 10]
        wanted = ["done" if length == 10 else "diverged" for length in lengths]
        assert found.status == tuple(wanted) and found.recoveries == (0,) * 6
        results, expected = each_result(found), singles(variables, case, configs=configs)
        assert [len(result.history.loss) for result in results] == lengths
        for one, alone, length in zip(results, expected, lengths, strict=True):
            # Alone a run would go on from the best image of these very steps.
            losses = one.history.loss, alone.history.loss[:length]
            if not together:
                np.testing.assert_array_equal(*losses)
            elif length == 10:
                np.testing.assert_allclose(losses[0][:6], losses[1][:6], rtol=1e-5)
            finite = one.history.loss[np.isfinite(one.history.loss)]
            assert one.loss == min(finite, default=np.inf) and np.isfinite(one.image).all()
        for index, length in enumerate(lengths):
            for values in jax.tree.leaves(found.history):
                assert values.shape == (10, 6)
                np.testing.assert_array_equal(values[length:, index], values[length - 1, index])

    @pytest.mark.parametrize("together", [False, True])
    def test_neighbours_do_not_notice(self, variables, together):
        """Whatever is beside them, they have the same bits."""
        rates = [None, 1e30, None]
        configs = [ADAM.but(learning_rate=rate) for rate in rates]
        found = stylize_batch(variables, **CASES["all"], config=configs, together=together)
        assert found.status == ("done", "diverged", "done")
        calm = stylize_batch(variables, **CASES["all"], config=ADAM, together=together)
        for element in (0, 2):
            np.testing.assert_array_equal(found.image[element], calm.image[element])
            np.testing.assert_array_equal(
                found.history.loss[:, element], calm.history.loss[:, element]
            )
        np.testing.assert_array_equal(found.image[1], CONTENTS[1])  # only the start had a loss

    @pytest.mark.parametrize("together", [False, True])
    @pytest.mark.parametrize("devices", [1, 2])
    def test_all_diverge(self, variables, together, devices):
        soon = ADAM.but(learning_rate=1e30)
        configs = [soon, ADAM.but(style_weight=3.4e38), soon]
        found = stylize_batch(
            variables,
            **CASES["all"],
            config=configs,
            mesh=devices_mesh(devices),
            together=together,
        )
        assert found.status == ("diverged",) * 3 and found.history.loss.shape == (2, 3)
        assert [len(result.history.loss) for result in each_result(found)] == [2, 1, 2]
        assert np.isinf(found.loss[1]) and np.isfinite(found.loss[[0, 2]]).all()
        np.testing.assert_array_equal(found.image, CONTENTS)

    @pytest.mark.parametrize("together", [False, True])
    def test_what_the_callback_sees_of_an_ended_image(self, variables, together):
        """Its last numbers, as in the history, and no others."""
        seen = []
        found = stylize_batch(
            variables,
            **CASES["all"],
            config=[ADAM, ADAM.but(style_weight=3.4e38), ADAM],
            together=together,
            callback=lambda progress: seen.append(progress.info),
            every=1,
        )
        for step, info in enumerate(seen):
            row = jax.tree.map(lambda x, step=step: x[step], found.history)
            if step == 0:
                assert not np.isfinite(info.loss[1])
            jax.tree.map(np.testing.assert_array_equal, info, row)


class TestPrograms:
    @pytest.mark.parametrize("together", [False, True])
    def test_numbers_and_images_do_not_recompile(self, variables, monkeypatch, together):
        traces = count_traces(monkeypatch)
        for weight in (10.0, 20.0):
            config = LBFGS.but(style_weight=weight, steps=int(weight) // 5)
            options = dict(config=config, together=together)
            stylize_batch(variables, **CASES["all"], **options)
            stylize_batch(variables, CONTENTS[::-1], STYLES[1], **options)
            configs = [config, config.but(learning_rate=0.5), config]
            stylize_batch(variables, **CASES["all"], config=configs, together=together)
        other = jax.tree.map(lambda x: x * 1.01, variables)
        stylize_batch(other, **CASES["all"], config=LBFGS, together=together)
        assert len(traces) == 1
        if not together:  # one program for all numbers of images, and for stylize
            stylize_batch(variables, CONTENTS[:2], STYLES, config=LBFGS, pairing="grid")
            stylize(variables, CONTENTS[0], STYLES[2], config=LBFGS)
            assert len(traces) == 1

    @pytest.mark.parametrize("together", [False, True])
    def test_on_devices_once_for_each(self, variables, together, caplog):
        """Neither for the second chunk nor for the next batch."""
        mesh = devices_mesh(2)
        contents = CONTENTS[:, :, :30]  # a size of this test's own

        def compiled():
            caplog.clear()
            with jax.log_compiles():
                stylize_batch(
                    variables, contents, STYLES[0], config=ADAM, mesh=mesh, together=together
                )
            names = ("XLA compilation of jit(run) ", "XLA compilation of jit(run_spread) ")
            messages = [record.getMessage() for record in caplog.records]
            return sum(name in message for message in messages for name in names)

        assert compiled() == (1 if together else 2)
        assert compiled() == 0

    @pytest.mark.optimized
    @pytest.mark.parametrize("devices", [1, 2])
    @pytest.mark.slow
    def test_a_filled_batch_has_the_program_of_a_full_one(self, variables, monkeypatch, devices):
        """``distinct`` gives one whose elements share a field the program of others."""
        expected = singles(variables, CASES["pairs"], configs=ADAM)
        traces = count_traces(monkeypatch)
        four = np.concatenate([CONTENTS, CONTENTS[:1, ::-1]])
        run = partial(
            run_batch,
            mesh=devices_mesh(devices),
            together=True,
            width=4,
            distinct=("content", "style"),
        )
        made = make_elements(variables, list(zip(four, [*STYLES, STYLES[0]], strict=True)))
        full = run(made)
        found = run(made[:3])
        assert len(found.status) == 3
        for name in ("image", "loss"):
            np.testing.assert_array_equal(getattr(found, name), getattr(full, name)[:3])
        assert_close(found, expected, rtol=3e-5)
        one = make_elements(variables, [(CONTENTS[0], STYLES[0])]) * 3
        shared = run([each._replace(key=jax.random.key(index)) for index, each in enumerate(one)])
        assert_close(shared, expected[:1] * 3, rtol=3e-5)
        assert len(traces) == 1


def make_elements(variables, images, config=ADAM, *, names=range(100), keep=None):
    """An element for each content and style, which has this name."""
    make = batch.problem_maker(variables, config=config, keep=keep)
    return [
        Element(make(check_inputs(content, style, config=config), [name]), config)
        for name, (content, style) in zip(names, images)
    ]


class TestCallback:
    @pytest.mark.parametrize("together", [False, True])
    @pytest.mark.parametrize("devices", [1, 4])
    def test_it_sees_finished_images(self, variables, together, devices):
        """In the order of the images, with the contents' colours."""
        seen, config = [], ADAM.but(color="keep-yiq", steps=3)
        found = stylize_batch(
            variables,
            **CASES["grid"],
            config=config,
            mesh=devices_mesh(devices),
            together=together,
            callback=seen.append,
            every=1,
        )
        assert found.status == ("done",) * 6
        assert [(progress.step, progress.steps) for progress in seen] == [(1, 3), (2, 3), (3, 3)]
        alone = []
        for content, styles, options in of_each(**CASES["grid"]):
            of_one = []
            options = dict(callback=of_one.append, every=1) | options
            stylize(variables, content, styles, config=config, **options)
            alone.append(of_one)
        for step, progress in enumerate(seen):
            assert progress.info.loss.shape == (6,) and progress.image.shape == (6, 24, 32, 3)
            for index, of_one in enumerate(alone):
                assert progress.info.loss[index] == pytest.approx(of_one[step].info.loss, rel=1e-5)
                difference = np.abs(progress.image[index] - of_one[step].image)
                assert difference.mean() < 0.05 / 255 if together else not difference.any()

    @pytest.mark.parametrize("together", [False, True])
    def test_it_may_stop_all(self, variables, together):
        found = stylize_batch(
            variables,
            **CASES["all"],
            config=ADAM.but(steps=50),
            together=together,
            callback=lambda _: False,
        )
        assert found.status == ("stopped",) * 3 and found.history.loss.shape == (1, 3)
        np.testing.assert_array_equal(found.image, CONTENTS)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(contents=CONTENTS[0]), "shape .24, 32, 3.: expected .batch, height, width, 3."),
        (dict(contents=CONTENTS[:0]), "shape .0, 24, 32, 3."),
        (dict(contents=CONTENTS[..., :2]), "content image has shape .24, 32, 2."),
        (dict(contents=[CONTENTS[0], CONTENTS[1][1:]]), "content images"),
        (dict(contents=np.uint8(CONTENTS * 255)), "type uint8: expected floats"),
        (dict(contents=CONTENTS * np.nan), "content image has NaN"),
        (dict(styles=[STYLES[0] * 255]), "style image has values from"),
        (dict(styles=np.stack([STYLES[0], STYLES[2]])), "style image has shape .2, 32, 26, 3."),
        (dict(pairing="pairs", styles=STYLES[:2]), "2 styles for 3 contents"),
        (dict(pairing="each"), "pairing is 'each': expected all, pairs or grid"),
        (dict(pairing="grid", blend=[1.0]), "blend is for pairing 'all'"),
        (dict(pairing="pairs", styles=STYLES, blend=[1.0]), "blend is for pairing 'all'"),
        (dict(blend=[1.0, 2.0]), "2 blend factors for 1 styles"),
        (dict(keys=[jax.random.key(0)]), "1 keys for 3 images"),
        (dict(pairing="grid", styles=STYLES, keys=[jax.random.key(0)] * 3), "3 keys for 9 pict"),
        (dict(config=[LBFGS]), "1 configs for 3 images"),
        (dict(config=[]), "0 configs for 3 images"),
        (dict(inits=[None]), "1 initial images for 3 images"),
        (dict(inits=[None, None, CONTENTS[0, 1:]]), "initial image has shape"),
        (dict(config=[LBFGS, LBFGS, LBFGS.but(steps=9)]), "config 3 differs .* in steps"),
        (dict(config=[LBFGS, SPECTRAL, LBFGS]), "config 2 differs .* in preconditioner"),
        (dict(styles=[]), "no style image"),
        (dict(styles=[], pairing="grid"), "no style image|0 styles"),
    ],
)
def test_unfit_input_is_refused(variables, options, message):
    given = dict(contents=CONTENTS, styles=STYLES[:1], config=LBFGS) | options
    with pytest.raises(InputError, match=message):
        stylize_batch(variables, given.pop("contents"), given.pop("styles"), **given)


@pytest.mark.parametrize(
    "change", [{"min_size": 16}, {"averaging": 0.9}], ids=["scales", "average"]
)
def test_what_is_for_single_images_is_refused_before_any_work(variables, change, tmp_path, capsys):
    config, (name,) = ADAM.but(**change), change
    message = f"{name} is for stylize, one image at a time: leave it out"
    with pytest.raises(InputError, match=message):
        stylize_batch(variables, **CASES["all"], config=[ADAM, ADAM, config])

    given = [str(tmp_path / "none.png"), "--style", str(tmp_path / "none.png")]
    setting = ["--" + name.replace("_", "-"), str(change[name])]
    for words in (
        ["batch", *given, "--output-dir", str(tmp_path), *setting],
        [
            "sweep",
            *given,
            "-o",
            str(tmp_path / "sheet.png"),
            *setting,
            "--over",
            "style_weight=1,2",
        ],
    ):
        assert app.main(words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_how_a_size_is_computed_is_found_out_once(variables, monkeypatch):
    """Lanes of one program are computed in one way, whatever is free when each is prepared."""
    found = []

    def choose(task, *, free):
        found.append(task)
        return None

    monkeypatch.setattr(problem, "fits_surely", lambda task, free: False)
    monkeypatch.setattr(problem, "choose", choose)
    stylize_batch(variables, **CASES["grid"], config=ADAM.but(steps=1))
    assert len(found) == 1


@pytest.mark.weights
@pytest.mark.campaign
@pytest.mark.optimized
def test_the_real_network(vgg19_weights, images_folder):
    from nst_jax.images import load_image

    names = ["content/tubingen.jpg", "style/starry_night.jpg", "style/shipwreck.jpg"]
    images = [load_image(images_folder / name, size=96)[:56, :64] for name in names]
    case = dict(contents=np.stack(images), styles=images[1])
    config = Config(steps=10)
    expected = singles(vgg19_weights.variables, case, configs=config)
    mesh = devices_mesh(2)
    apart = stylize_batch(vgg19_weights.variables, **case, config=config, mesh=mesh)
    assert_same(apart, expected)
    found = stylize_batch(vgg19_weights.variables, **case, config=config, mesh=mesh, together=True)
    first = [result.history.loss[0] for result in expected]
    np.testing.assert_allclose(found.history.loss[0], first, rtol=1e-5)
    assert (found.loss < found.history.loss[0]).all()
