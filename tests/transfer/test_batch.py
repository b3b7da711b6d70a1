"""Batches: every element equals its single run, on one device or several."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import smooth_image
from helpers.records import run_batch, stylize, stylize_batch
from helpers.traces import count_traces

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
CONTENTS = np.stack([smooth_image(24, 32, seed=seed) for seed in (1, 2, 3)])
STYLES = [smooth_image(*shape, seed=11 + i) for i, shape in enumerate([(32, 26), (20, 40)] * 2)][:3]
CASES = {
    "all": dict(contents=CONTENTS, styles=STYLES[0]),
    "mixed": dict(contents=CONTENTS[:2], styles=STYLES[:2], blend=[1.0, 3.0]),
    "pairs": dict(contents=CONTENTS, styles=STYLES, pairing="pairs"),
    "grid": dict(contents=CONTENTS[:2], styles=STYLES, pairing="grid"),
    "3x2": dict(contents=CONTENTS, styles=STYLES[:2], pairing="grid"),
}


def arguments_of_each(contents, styles, *, pairing="all", blend=None):
    """Content, styles and options of each image of a case."""
    if pairing == "pairs":
        return [(content, [style], {}) for content, style in zip(contents, styles, strict=True)]
    if pairing == "grid":
        return [(content, [style], {}) for content in contents for style in styles]
    return [(content, styles, {"blend": blend}) for content in contents]


def own_weights(config, case):
    """A config for each image; different weights, so that no image can stand for another."""
    count = len(arguments_of_each(**case))
    return [config.but(style_weight=50.0 + 20 * index) for index in range(count)]


def singles(variables, case, *, configs, **each):
    """The single runs of a case; ``each`` holds lists of what differs between them."""
    images = arguments_of_each(**case)
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


def assert_equal(found, expected):
    """Check a batch against single runs, bit for bit."""
    assert found.image.shape == (len(expected), *expected[0].image.shape) and found.state is None
    for one, other in zip(each_result(found), expected, strict=True):
        assert one.status == other.status and one.loss == other.loss
        assert type(one.loss) is float
        np.testing.assert_array_equal(one.image, other.image)
        jax.tree.map(np.testing.assert_array_equal, one.history, other.history)


def assert_close(found, expected, *, rtol=1e-5):
    """Check the numbers of a batch to ``rtol``, and its images to a twentieth of a grey level."""
    assert found.image.shape == (len(expected), *expected[0].image.shape) and found.state is None
    for one, other in zip(each_result(found), expected, strict=True):
        assert one.status == other.status
        assert one.loss == pytest.approx(other.loss, rel=rtol)
        for name in ("loss", "grad_norm", "evaluations"):
            values = getattr(one.history, name), getattr(other.history, name)
            np.testing.assert_allclose(*values, rtol=rtol)
        assert np.abs(one.image - other.image).mean() < 0.05 / 255


def as_float64(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


def devices_mesh(count):
    return None if count == 1 else make_mesh(devices=jax.devices()[:count])


class TestApart:
    """On CPUs each image runs the program of ``stylize``: not a bit differs."""

    @pytest.mark.parametrize(
        "config, case, devices",
        [
            pytest.param(LBFGS, "pairs", 1, marks=pytest.mark.optimized),
            (ADAM, "mixed", 1),
            pytest.param(ADAM, "grid", 2, marks=pytest.mark.optimized),
        ],
        ids=["lbfgs-pairs", "adam-mixed", "adam-grid-devices"],
    )
    def test_equals_single_runs(self, variables, config, case, devices):
        case, mesh = CASES[case], devices_mesh(devices)
        configs = own_weights(config, case)
        found = stylize_batch(variables, **case, config=configs, mesh=mesh)
        assert_equal(found, singles(variables, case, configs=configs))

    @pytest.mark.slow
    def test_colours_follow_each_content(self, variables):
        config = ADAM.but(color="match-symmetric")
        found = stylize_batch(variables, **CASES["grid"], config=config)
        assert_equal(found, singles(variables, CASES["grid"], configs=config))

    def test_numbers_noise_and_initial_image_of_each(self, variables):
        noisy = ADAM.but(init="noise", noise_scale=0.2)
        configs = [
            noisy,
            noisy.but(noise_scale=0.1, style_layers={"relu1_1": 0.3, "relu2_1": 2.0}),
            noisy.but(learning_rate=3.0, style_weight=7.0),
        ]
        keys = [jax.random.key(seed) for seed in (4, 5, 4)]
        inits = [None, None, STYLES[0][:24, :1].repeat(32, 1)]
        found = stylize_batch(variables, **CASES["all"], config=configs, keys=keys, inits=inits)
        expected = singles(variables, CASES["all"], configs=configs, key=keys, init=inits)
        assert_equal(found, expected)
        assert len({result.history.loss[0] for result in expected}) == 3
        # Without keys all images have the noise of stylize; keys may also be one array.
        found = stylize_batch(variables, **CASES["all"], config=noisy)
        assert_equal(found, singles(variables, CASES["all"], configs=noisy))
        keys = jax.random.split(jax.random.key(0), 3)
        found = stylize_batch(variables, **CASES["all"], config=noisy, keys=keys)
        assert_equal(found, singles(variables, CASES["all"], configs=noisy, key=keys))

    def test_without_styles(self, variables):
        config = ADAM.but(init="noise", noise_scale=0.1, style_layers=[])
        case = dict(contents=CONTENTS, styles=[])
        found = stylize_batch(variables, **case, config=config)
        assert_equal(found, singles(variables, case, configs=config))


class TestTogether:
    """``vmap`` rounds differently, and the images may be spread over devices in any number."""

    @pytest.mark.parametrize(
        "config, case, devices",
        [
            (ADAM, "3x2", 4),  # neither contents nor styles divide by the devices: padded
            (ADAM, "mixed", 1),
            (ADAM, "pairs", 2),
            (SEARCH, "grid", 2),
        ],
        ids=["3x2-on-4", "mixed", "pairs-on-2", "search-on-2"],
    )
    def test_equals_single_runs(self, variables, config, case, devices):
        case, mesh = CASES[case], devices_mesh(devices)
        configs = own_weights(config, case)
        found = stylize_batch(variables, **case, config=configs, mesh=mesh, together=True)
        assert_close(found, singles(variables, case, configs=configs))

    @pytest.mark.slow
    def test_lbfgs_in_float64(self, x64, variables):
        """In float32 L-BFGS on this random network magnifies rounding to per cents."""
        case, wide = as_float64(dict(CASES["all"])), as_float64(variables)
        options = dict(config=LBFGS.but(steps=20), together=True, mesh=devices_mesh(2))
        found = stylize_batch(wide, **case, **options)
        assert found.image.dtype == np.float64
        assert_close(found, singles(wide, case, configs=options["config"]), rtol=1e-7)

    def test_numbers_noise_and_initial_image_of_each(self, variables):
        noisy = ADAM.but(init="noise", noise_scale=0.2)
        configs = [noisy, noisy.but(noise_scale=0.1), noisy.but(learning_rate=3.0)]
        keys = [jax.random.key(seed) for seed in (4, 5, 4)]
        inits = [None, None, CONTENTS[0]]
        expected = singles(variables, CASES["all"], configs=configs, key=keys, init=inits)
        options = dict(config=configs, keys=keys, inits=inits, together=True, mesh=devices_mesh(2))
        assert_close(stylize_batch(variables, **CASES["all"], **options), expected)

    def test_every_content_loss_uses_its_own_content(self, variables):
        losses = {"features": 1.0, "self-similarity": 2.0, "laplacian4": 3.0}
        config = ADAM.but(content_losses=losses)
        found = stylize_batch(variables, **CASES["all"], config=config, together=True)
        expected = singles(variables, CASES["all"], configs=config)
        # Each run starts from its content.
        np.testing.assert_allclose(found.history.terms.content[0], 0, atol=1e-2)
        for index, single in enumerate(expected):
            losses = found.history.loss[:2, index], single.history.loss[:2]
            np.testing.assert_allclose(*losses, rtol=1e-4)
            contents = found.history.terms.content[1, index], single.history.terms.content[1]
            np.testing.assert_allclose(*contents, rtol=0.1)
            assert contents[1] > 1

    def test_slim_weights(self, slim_variables):
        found = stylize_batch(slim_variables, **CASES["all"], config=SLIM, together=True)
        assert_close(found, singles(slim_variables, CASES["all"], configs=SLIM))

    @pytest.mark.parametrize("together", [False, True])
    def test_any_mesh_and_arrays_on_other_devices(self, variables, together):
        """Also a mesh of two explicit axes, as ``jax.make_mesh`` makes it."""
        first, *others = jax.devices()
        content = jax.device_put(CONTENTS, first)
        mesh = jax.make_mesh((2, 1), ("left", "right"), devices=others[:2])
        options = dict(config=ADAM, mesh=mesh, together=together)
        found = stylize_batch(variables, content, STYLES[0], **options)
        assert_close(found, singles(variables, CASES["all"], configs=ADAM))
        assert not content.is_deleted()


class TestRows:
    """Images divided by rows; on 2x2 devices the batch is divided as well."""

    @pytest.mark.parametrize(
        "config, case, groups", [(ADAM, "all", 2), (SEARCH, "all", 1)], ids=["adam", "search"]
    )
    @pytest.mark.slow
    def test_equals_single_runs(self, variables, config, case, groups):
        case, mesh = CASES[case], rows_mesh(groups=groups)
        configs = own_weights(config, case)
        found = stylize_batch(variables, **case, config=configs, mesh=mesh)
        assert_close(found, singles(variables, case, configs=configs))

    @pytest.mark.slow
    def test_colours_noise_and_callback(self, variables):
        seen = []
        config = ADAM.but(color="match-symmetric", init="noise", noise_scale=0.2)
        case, keys = CASES["grid"], list(jax.random.split(jax.random.key(5), 6))
        options = dict(config=config, keys=keys, mesh=rows_mesh(groups=2), callback=seen.append)
        found = stylize_batch(variables, **case, **options)
        assert_close(found, singles(variables, case, configs=config, key=keys))
        assert seen[-1].image.shape == (6, 24, 32, 3)

    def test_each_device_has_its_part(self, variables, shared_takes):
        """Its rows of its images and of their features, and all of the kernels."""
        config, mesh = ADAM.but(steps=1), rows_mesh(groups=2)
        stylize_batch(variables, **CASES["grid"], config=config, mesh=mesh)
        arguments = shared_takes[0].keywords
        features = arguments["targets"].content["relu2_1"]
        assert features.shape == (6, 12, 16, 6)
        assert {shard.data.shape for shard in features.addressable_shards} == {(3, 6, 16, 6)}
        assert jax.tree.leaves(arguments["variables"])[0].is_fully_replicated

    @pytest.mark.parametrize(
        "options, message",
        [
            (dict(together=False), "take each step together: leave out together"),
            (dict(contents=CONTENTS[:, :22]), "32x22 px, but divided by rows over 2 devices"),
        ],
    )
    def test_refusals(self, variables, options, message):
        arguments = dict(contents=CONTENTS, styles=STYLES[:1], config=ADAM)
        with pytest.raises(InputError, match=message):
            stylize_batch(variables, **arguments | dict(mesh=rows_mesh(groups=2)) | options)


@pytest.fixture
def shared_takes(monkeypatch):
    """The ``take`` of each shared program that is made, with its bound arguments."""
    takes = []
    original = batch.together

    def spy(*args, **options):
        program = original(*args, **options)
        takes.append(program.take)
        return program

    monkeypatch.setattr(batch, "together", spy)
    return takes


def addresses(tree):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]


class TestSharing:
    def test_only_what_differs_is_divided_among_devices(self, variables, shared_takes):
        case = dict(contents=CONTENTS[:1], styles=[*STYLES, STYLES[0][:, ::-1]], pairing="grid")
        options = dict(config=ADAM.but(steps=1), mesh=devices_mesh(2), together=True)
        stylize_batch(variables, **case, **options)
        arguments = shared_takes[0].keywords
        assert arguments["targets"].content["relu2_1"].is_fully_replicated
        assert "data" in arguments["targets"].style["relu2_1"].gram.sharding.spec
        assert jax.tree.leaves(arguments["variables"])[0].is_fully_replicated

    def test_apart_each_device_has_kernels_and_styles_once(self, variables, monkeypatch):
        calls, original = {}, batch_programs.run

        def spy(solver, state, *, variables, targets, **options):
            (device,) = state.image.devices()
            calls.setdefault(device, []).append((variables, targets))
            return original(solver, state, variables=variables, targets=targets, **options)

        monkeypatch.setattr(batch_programs, "run", spy)
        config = ADAM.but(steps=1)
        stylize_batch(variables, **CASES["grid"], config=config, mesh=devices_mesh(2))
        assert len(calls) == 2
        assert sum(map(len, calls.values())) == 2 * 6  # each once with zero steps
        for found in calls.values():
            assert len({tuple(addresses(variables)) for variables, _ in found}) == 1
            assert len({tuple(addresses(targets.style)) for _, targets in found}) == 3
            assert len({tuple(addresses(targets.content)) for _, targets in found}) == 2

    @pytest.mark.parametrize(
        "pairing, color, calls",
        [
            ("grid", "none", 3),
            ("mixed", "none", 1),
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
        stylize_batch(variables, **CASES[pairing], config=ADAM.but(steps=1, color=color))
        assert len(computed) == calls

    def test_styles_beyond_those_kept_are_computed_again(self, variables):
        expected = singles(variables, CASES["grid"], configs=ADAM)
        images = [(content, style) for content in CASES["grid"]["contents"] for style in STYLES]
        elements = make_elements(variables, images, names=[0, 1, 2] * 2, keep=2)
        assert_equal(run_batch(elements), expected)

    def test_a_size_has_one_execution_plan(self, variables, monkeypatch):
        """Whatever memory is free when each element is prepared."""
        planned = []
        monkeypatch.setattr(problem, "fits_surely", lambda task, free: False)
        monkeypatch.setattr(problem, "choose", lambda task, *, free: planned.append(task))
        stylize_batch(variables, **CASES["grid"], config=ADAM.but(steps=1))
        assert len(planned) == 1


class TestDivergence:
    @pytest.mark.parametrize("together, devices, every", [(False, 1, None), (True, 2, 1)])
    def test_each_element_ends_by_itself(self, variables, together, devices, every):
        """Even if the host, or a device whose other elements have ended, goes on."""
        case = dict(contents=CONTENTS[np.arange(5) % 3], styles=STYLES[0])
        # Diverge at the first, second, third and fourth step, and not at all.
        changes = [
            dict(style_weight=3.4e38),
            dict(learning_rate=1e30),
            dict(learning_rate=1e5),
            dict(learning_rate=1e4),
            dict(learning_rate=0.1),
        ]
        configs = [replace(SPECTRAL.but(**change), steps=10) for change in changes]
        lengths = [1, 2, 3, 4, 10]
        options = dict(mesh=devices_mesh(devices), together=together, every=every)
        found = stylize_batch(variables, **case, config=configs, **options)
        assert found.status == ("diverged",) * 4 + ("done",) and found.recoveries == (0,) * 5
        results, expected = each_result(found), singles(variables, case, configs=configs)
        assert [len(result.history.loss) for result in results] == lengths
        for one, single, length in zip(results, expected, lengths, strict=True):
            # A single run would recover after these very steps.
            losses = one.history.loss, single.history.loss[:length]
            if not together:
                np.testing.assert_array_equal(*losses)
            elif length == 10:
                np.testing.assert_allclose(losses[0][:6], losses[1][:6], rtol=1e-5)
            finite = one.history.loss[np.isfinite(one.history.loss)]
            assert one.loss == min(finite, default=np.inf) and np.isfinite(one.image).all()
        for index, length in enumerate(lengths):
            for values in jax.tree.leaves(found.history):
                assert values.shape == (10, 5)
                np.testing.assert_array_equal(values[length:, index], values[length - 1, index])

    @pytest.mark.parametrize(
        "make",
        [lambda: dict(together=False), lambda: dict(mesh=rows_mesh(groups=2))],
        ids=["apart", "rows"],
    )
    def test_neighbours_keep_their_bits(self, variables, make):
        configs = [ADAM.but(learning_rate=rate) for rate in (None, 1e30, None)]
        found = stylize_batch(variables, **CASES["all"], config=configs, **make())
        assert found.status == ("done", "diverged", "done")
        calm = stylize_batch(variables, **CASES["all"], config=ADAM, **make())
        for element in (0, 2):
            np.testing.assert_array_equal(found.image[element], calm.image[element])
            losses = found.history.loss[:, element], calm.history.loss[:, element]
            np.testing.assert_array_equal(*losses)
        np.testing.assert_array_equal(found.image[1], CONTENTS[1])  # only the start had a loss

    @pytest.mark.parametrize("together, devices", [(True, 2), (False, 1)])
    def test_all_diverge(self, variables, together, devices):
        """And the callback sees the repeated numbers of the history."""
        seen, soon = [], ADAM.but(learning_rate=1e30)
        found = stylize_batch(
            variables,
            **CASES["all"],
            config=[soon, ADAM.but(style_weight=3.4e38), soon],
            mesh=devices_mesh(devices),
            together=together,
            callback=lambda progress: seen.append(progress.info),
            every=1,
        )
        assert found.status == ("diverged",) * 3 and found.history.loss.shape == (2, 3)
        assert [len(result.history.loss) for result in each_result(found)] == [2, 1, 2]
        assert np.isinf(found.loss[1]) and np.isfinite(found.loss[[0, 2]]).all()
        np.testing.assert_array_equal(found.image, CONTENTS)
        assert len(seen) == 2 and not np.isfinite(seen[0].loss[1])
        for step, info in enumerate(seen):
            row = jax.tree.map(lambda x, step=step: x[step], found.history)
            jax.tree.map(np.testing.assert_array_equal, info, row)


class TestPrograms:
    @pytest.mark.parametrize("together", [False, True])
    def test_numbers_and_images_do_not_recompile(self, variables, monkeypatch, together):
        traces = count_traces(monkeypatch)
        for weight in (10.0, 20.0):
            config = ADAM.but(style_weight=weight, steps=int(weight) // 10)
            options = dict(config=config, together=together)
            stylize_batch(variables, **CASES["all"], **options)
            stylize_batch(variables, CONTENTS[::-1], STYLES[1], **options)
            configs = [config, config.but(learning_rate=0.5), config]
            stylize_batch(variables, **CASES["all"], config=configs, together=together)
        other = jax.tree.map(lambda x: x * 1.01, variables)
        stylize_batch(other, **CASES["all"], config=ADAM, together=together)
        assert len(traces) == 1
        if not together:  # one program for all numbers of images, and for stylize
            stylize_batch(variables, CONTENTS[:2], STYLES, config=ADAM, pairing="grid")
            stylize(variables, CONTENTS[0], STYLES[2], config=ADAM)
            assert len(traces) == 1

    @pytest.mark.parametrize(
        "make, programs",
        [
            (lambda: dict(mesh=devices_mesh(2), together=True), 1),
            (lambda: dict(mesh=devices_mesh(2), together=False), 2),  # one on each device
            (lambda: dict(mesh=rows_mesh(groups=2)), 1),
        ],
        ids=["together", "apart", "rows"],
    )
    def test_nothing_is_compiled_twice_on_devices(self, variables, make, programs, caplog):
        """Neither for the second chunk nor for the next batch."""
        contents = CONTENTS[:, :, :30]  # a size that no other test uses

        def compilations():
            caplog.clear()
            with jax.log_compiles():
                stylize_batch(variables, contents, STYLES[0], config=ADAM, **make())
            names = ("XLA compilation of jit(run) ", "XLA compilation of jit(run_spread) ")
            return sum(name in message for message in caplog.messages for name in names)

        assert compilations() == programs
        assert compilations() == 0

    @pytest.mark.optimized
    @pytest.mark.slow
    def test_a_padded_batch_uses_the_program_of_a_full_one(self, variables, monkeypatch):
        """``distinct`` does so for a batch whose elements share a field."""
        expected = singles(variables, CASES["pairs"], configs=ADAM)
        traces = count_traces(monkeypatch)
        four = np.concatenate([CONTENTS, CONTENTS[:1, ::-1]])
        options = dict(mesh=devices_mesh(2), together=True, width=4, distinct=("content", "style"))
        run = partial(run_batch, **options)
        elements = make_elements(variables, list(zip(four, [*STYLES, STYLES[0]], strict=True)))
        full = run(elements)
        found = run(elements[:3])
        assert len(found.status) == 3
        for name in ("image", "loss"):
            np.testing.assert_array_equal(getattr(found, name), getattr(full, name)[:3])
        assert_close(found, expected, rtol=3e-5)
        one = make_elements(variables, [(CONTENTS[0], STYLES[0])]) * 3
        shared = run([each._replace(key=jax.random.key(index)) for index, each in enumerate(one)])
        assert_close(shared, expected[:1] * 3, rtol=3e-5)
        assert len(traces) == 1


def make_elements(variables, images, config=ADAM, *, names=range(100), keep=None):
    """An element for each content and style; ``names`` names the styles."""
    make = batch.problem_maker(variables, config=config, keep=keep)
    return [
        Element(make(check_inputs(content, style, config=config), [name]), config)
        for name, (content, style) in zip(names, images)
    ]


class TestCallback:
    @pytest.mark.parametrize("together, devices", [(True, 4), (False, 1)])
    def test_it_gets_finished_images(self, variables, together, devices):
        """In the order of the images, with the contents' colours."""
        seen, config = [], ADAM.but(color="keep-yiq", steps=2)
        options = dict(config=config, every=1)
        mesh = devices_mesh(devices)
        found = stylize_batch(
            variables,
            **CASES["grid"],
            **options,
            mesh=mesh,
            together=together,
            callback=seen.append,
        )
        assert found.status == ("done",) * 6
        assert [(progress.step, progress.steps) for progress in seen] == [(1, 2), (2, 2)]
        for index, (content, styles, _) in enumerate(arguments_of_each(**CASES["grid"])):
            single = []
            stylize(variables, content, styles, callback=single.append, **options)
            for progress, expected in zip(seen, single, strict=True):
                assert progress.info.loss[index] == pytest.approx(expected.info.loss, rel=1e-5)
                difference = np.abs(progress.image[index] - expected.image)
                assert difference.mean() < 0.05 / 255 if together else not difference.any()

    def test_it_may_stop_all(self, variables):
        options = dict(config=ADAM.but(steps=50), together=True, callback=lambda _: False)
        found = stylize_batch(variables, **CASES["all"], **options)
        assert found.status == ("stopped",) * 3 and found.history.loss.shape == (1, 3)
        np.testing.assert_array_equal(found.image, CONTENTS)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(contents=CONTENTS[0]), "shape .24, 32, 3.: expected .batch, height, width, 3."),
        (dict(contents=CONTENTS[:0]), "shape .0, 24, 32, 3."),
        (dict(contents=[CONTENTS[0], CONTENTS[1][1:]]), "content images are not an array"),
        (dict(pairing="pairs", styles=STYLES[:2]), "2 styles for 3 contents"),
        (dict(pairing="each"), "pairing is 'each': expected all, pairs or grid"),
        (dict(pairing="pairs", styles=STYLES, blend=[1.0]), "blend is for pairing 'all'"),
        (dict(blend=[1.0, 2.0]), "2 .* for 1 styles"),
        (dict(pairing="grid", styles=STYLES, keys=[jax.random.key(0)] * 3), "3 keys for 9 images"),
        (dict(inits=[None]), "1 initial images for 3 images"),
        (dict(inits=[None, None, CONTENTS[0, 1:]]), "initial image has shape"),
        (dict(config=[LBFGS, LBFGS, LBFGS.but(steps=9)]), "config 3 differs .* in steps"),
        (dict(config=[LBFGS, SPECTRAL, LBFGS]), "config 2 differs .* in preconditioner"),
        (dict(config=LBFGS.but(min_size=16)), "min_size is for stylize, one image at a time"),
        (dict(config=[ADAM, ADAM, ADAM.but(averaging=0.9)]), "averaging is for stylize"),
        (dict(styles=[], pairing="grid"), "no style image"),
    ],
)
def test_refusals(variables, options, message):
    arguments = dict(contents=CONTENTS, styles=STYLES[:1], config=LBFGS) | options
    with pytest.raises(InputError, match=message):
        stylize_batch(variables, **arguments)


@pytest.mark.weights
@pytest.mark.campaign
@pytest.mark.optimized
def test_with_the_real_network(vgg19_weights, images_folder):
    from nst_jax.images import load_image

    names = ["content/tubingen.jpg", "style/starry_night.jpg", "style/shipwreck.jpg"]
    images = [load_image(images_folder / name, size=96)[:56, :64] for name in names]
    case = dict(contents=np.stack(images), styles=images[1])
    config = Config(steps=10)
    expected = singles(vgg19_weights.variables, case, configs=config)
    mesh = devices_mesh(2)
    apart = stylize_batch(vgg19_weights.variables, **case, config=config, mesh=mesh)
    assert_equal(apart, expected)
    found = stylize_batch(vgg19_weights.variables, **case, config=config, mesh=mesh, together=True)
    first = [result.history.loss[0] for result in expected]
    np.testing.assert_allclose(found.history.loss[0], first, rtol=1e-5)
    assert (found.loss < found.history.loss[0]).all()
