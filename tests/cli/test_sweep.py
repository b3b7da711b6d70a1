"""Sweeps: combinations, what shares a program, elements against single runs, the command."""

import os
import re
from functools import partial

import jax
import numpy as np
import pytest
from conftest import smooth_image
from helpers.commands import Run, acting, check_refused, ctrl_c, listing, pixels, record
from helpers.records import make_problem, run_batch, stylize
from helpers.traces import count_traces
from PIL import Image

from nst_jax.cli import main, sweep
from nst_jax.cli.planning import image_memory
from nst_jax.cli.sweep import MAX_COMBINATIONS, combinations, groups, log_batch_memory
from nst_jax.config import Config, to_flat
from nst_jax.config.config import flat_types
from nst_jax.errors import InputError
from nst_jax.images import contact_sheet, load_image, load_mask, save_image, to_uint8
from nst_jax.transfer import each_result
from nst_jax.transfer.batch import check_batch, structure
from nst_jax.transfer.batch_programs import Element
from nst_jax.transfer.plan import USABLE

pytestmark = pytest.mark.sampled

SHALLOW = {"content_layers": ["relu2_1"], "style_layers": ["relu1_1", "relu2_1"]}
BASE = Config.of(steps=4, **SHALLOW)
ADAM = Config.of(steps=4, optimizer="adam", learning_rate=2.0, **SHALLOW)
NOISE = BASE.but(init="blend")
SIZE = 32


def configs_of(over, **options):
    return [item.config for item in combinations(over, **{"config": BASE, "seed": 0} | options)]


class TestCombinations:
    def test_the_last_setting_changes_fastest(self):
        found = combinations(["style_weight=1,2,3", "tv_weight=0,0.5"], config=BASE, seed=7)
        words = [(item.words["style_weight"], item.words["tv_weight"]) for item in found]
        expected = [(a, b) for a in ("1", "2", "3") for b in ("0", "0.5")]
        assert words == expected
        assert [list(item.words) for item in found] == [["style_weight", "tv_weight"]] * 6
        numbers = [(item.config.loss.style_weight, item.config.loss.tv_weight) for item in found]
        assert numbers == [(float(a), float(b)) for a, b in expected]
        assert {item.seed for item in found} == {7}
        others = {(item.config.loss.content_weight, item.config.steps) for item in found}
        assert others == {(BASE.loss.content_weight, BASE.steps)}

    @pytest.mark.parametrize(
        "name", ["style_weight", "style-weight", "--style-weight", " style_weight "]
    )
    def test_names_as_a_person_writes_them(self, name):
        (item,) = combinations([f"{name}= 1e3 "], config=BASE, seed=0)
        assert item.words == {"style_weight": "1e3"} and item.config.loss.style_weight == 1000

    @pytest.mark.parametrize(
        "over, values",
        [
            ("style_weight=1,2.5,1e4", [1.0, 2.5, 1e4]),
            ("learning_rate=0.5,2", [0.5, 2.0]),
            ("noise_scale=0,0.1", [0.0, 0.1]),
            ("steps=5,10", [5, 10]),
            ("memory_size=1,20", [1, 20]),
            ("tv_order=1,2", [1.0, 2.0]),
            ("pooling=max,average", ["max", "average"]),
            ("color=none,keep-lab", ["none", "keep-lab"]),
            ("optimizer=lbfgs,lbfgs-linesearch", ["lbfgs", "lbfgs-linesearch"]),
            ("init=noise,content,blend", ["noise", "content", "blend"]),
            ("padding=zero,circular", ["zero", "circular"]),
            (
                "style_layers=relu1_1,relu1_1+relu2_1,relu1_1=0.5+relu3_1=2,geometric+conv1_1+relu2_1",
                [
                    (("relu1_1", 1.0),),
                    (("relu1_1", 1.0), ("relu2_1", 1.0)),
                    (("relu1_1", 0.5), ("relu3_1", 2.0)),
                    (("conv1_1", 0.8), ("relu2_1", 0.2)),
                ],
            ),
            ("content_layers=relu2_1,relu3_1", [(("relu2_1", 1.0),), (("relu3_1", 1.0),)]),
            ("min_size=16,64", [16, 64]),
            ("scale_factor=1.5,2", [1.5, 2.0]),
            ("scale_steps=9,20+10,5+4+3", [(9,), (20, 10), (5, 4, 3)]),
            ("averaging=0,0.9", [0.0, 0.9]),
            ("precision=float32,bfloat16", ["float32", "bfloat16"]),
            ("tile=64,512", [64, 512]),
            ("tile=auto,off", ["auto", "off"]),
            ("remat=auto,on,off", ["auto", "on", "off"]),
        ],
    )
    def test_values_have_their_types(self, over, values):
        name, _, words = over.partition("=")
        base = NOISE.but(min_size=16) if name.startswith("scale_") else NOISE
        found = combinations([over], config=base, seed=0)
        assert [to_flat(item.config)[name] for item in found] == values
        assert all(type(to_flat(item.config)[name]) is type(values[0]) for item in found)
        assert [item.words for item in found] == [{name: word} for word in words.split(",")]

    def test_tiles_are_numbers_and_words(self):
        assert [config.execution.tile for config in configs_of(["tile=off,64,auto"])] == [
            "off",
            64,
            "auto",
        ]

    def test_steps_of_scales_beside_their_sizes(self):
        found = configs_of(["min_size=8,16", "scale_steps=4+2,3"])
        pairs = [(config.pyramid.min_size, config.pyramid.scale_steps) for config in found]
        assert pairs == [(8, (4, 2)), (8, (3,)), (16, (4, 2)), (16, (3,))]

    def test_seeds(self):
        found = combinations(["seed=0,4294967295"], config=NOISE, seed=7)
        assert [item.seed for item in found] == [0, 2**32 - 1]
        assert all(type(item.seed) is int and item.config == NOISE for item in found)

    def test_another_optimizer_has_its_own_learning_rate(self):
        base = Config.of(learning_rate=0.5, memory_size=3, **SHALLOW)
        found = configs_of(["optimizer=lbfgs,adam,lbfgs-linesearch"], config=base, preset=base)
        options = [
            tuple(
                getattr(config.optimizer, name, None) for name in ("learning_rate", "memory_size")
            )
            for config in found
        ]
        assert options == [(0.5, 3), (None, None), (None, None)]
        found = configs_of(["learning_rate=1,2", "optimizer=adam,lbfgs"], config=base, preset=base)
        options = [
            tuple(
                getattr(config.optimizer, name, None) for name in ("learning_rate", "memory_size")
            )
            for config in found
        ]
        assert options == [(1, None), (1, 3), (2, None), (2, 3)]
        asked = Config.of(learning_rate=0.5, **SHALLOW)  # for, and not the preset's
        found = configs_of(["optimizer=lbfgs,adam"], config=asked)
        assert [config.optimizer.learning_rate for config in found] == [0.5, 0.5]

    @pytest.mark.parametrize("over", ["seed=1,2", "noise=normal,uniform", "noise_scale=0,0.1"])
    def test_noise_where_there_is_none(self, over):
        with pytest.raises(InputError, match="no effect with init content: expected --init blend"):
            combinations([over], config=BASE, seed=0)
        assert len(combinations([over, "init=content,noise"], config=BASE, seed=0)) == 4
        with pytest.raises(InputError, match="noise_ratio has no effect with init noise"):
            combinations(["noise_ratio=0,1"], config=BASE.but(init="noise"), seed=0)

    def test_most(self):
        values = ",".join(map(str, range(20)))
        assert len(configs_of([f"style_weight={values}", f"tv_weight={values[:19]}"])) == 200

    @pytest.mark.parametrize(
        "over, message",
        [
            (["sharpness=1"], "--over names 'sharpness': expected seed or one of content_layers, "),
            (["size=1"], "--over names 'size': expected seed or one of "),
            (["style_weight"], "--over 'style_weight': expected NAME=VALUE,VALUE"),
            (["style_weight="], "--over 'style_weight=': expected NAME=VALUE,VALUE"),
            (["style_weight=1,"], "--over 'style_weight=1,': expected NAME=VALUE,VALUE"),
            (["style_weight=1, ,2"], "--over 'style_weight=1, ,2': expected NAME=VALUE,VALUE"),
            ([""], "--over '': expected NAME=VALUE,VALUE"),
            (["=1"], "--over "),
            (["tv_weight=1,2,1"], "--over 'tv_weight=1,2,1' has a value twice"),
            (["tv_weight=1, 1"], "--over 'tv_weight=1, 1' has a value twice"),
            (["tv_weight=1", "tv-weight=2"], "--over names tv_weight twice: give all its values"),
            (["tv_weight=1", "--tv-weight=2"], "--over names tv_weight twice"),
            (["style_weight=1,many"], "--over style_weight: 'many' is no number"),
            (["steps=5,2.5"], "--over steps: '2.5' is no whole number"),
            (["memory_size=x"], "--over memory_size: 'x' is no whole number"),
            (["tv_order=a"], "--over tv_order: 'a' is no number"),
            (["clip=1"], "--over clip: '1' is neither true nor false"),
            (["style_losses=gram=x"], "loss weight 'gram=x' is not a number"),
            (["style_losses=garm"], "unknown loss 'garm': expected one of gram, covariance"),
            (["seed=1.5"], "--over seed: '1.5' is no whole number"),
            (["seed=0,-1"], "seed is -1: expected 0 to 4294967295"),
            (["seed=4294967296"], "seed is 4294967296"),
            (["style_layers=relu6_1"], "unknown layer 'relu6_1'"),
            (["style_layers=relu1_1+relu1_1"], "layer relu1_1 is given twice"),
            (["style_layers=geometric+relu1_1=2"], "layer weight 'relu1_1=2' contradicts the sch"),
            # What Config refuses.
            (["noise_ratio=0.5,2"], "noise_ratio is 2.0: expected 0 to 1"),
            (["style_weight=1,nan"], "style_weight is nan: expected a finite number"),
            (["style_weight=-1"], "style_weight is -1.0"),
            (["steps=0"], "steps is 0: expected a whole number"),
            (["tv_order=3"], "tv_order is 3: expected one of 1, 2"),
            (["pooling=sum"], "pooling is 'sum': expected one of max, average"),
            (["color=sepia"], "color is 'sepia': expected one of none, keep-yiq"),
            (["optimizer=sgd"], "optimizer is 'sgd': expected one of lbfgs"),
            (["min_size=1.5"], "--over min_size: '1.5' is no whole number"),
            (["min_size=0"], "min_size is 0: expected a whole number, 1 or more"),
            (["scale_factor=large"], "--over scale_factor: 'large' is no number"),
            (["scale_factor=2,3"], "--over scale_factor has no effect without min_size"),
            (["scale_factor=2,1"], "--over scale_factor has no effect without min_size"),
            (["scale_factor=2,1", "min_size=16"], "scale_factor is 1.0: expected a finite number"),
            (["scale_steps=9+many"], "--over scale_steps: 'many' is no whole number"),
            (["scale_steps=9+"], "--over scale_steps: '' is no whole number"),
            (["scale_steps=9+8"], "scale_steps has no meaning for one scale"),
            (["scale_steps=9+0", "min_size=16"], "scale_steps is (9, 0): expected whole numbers"),
            (["averaging=1"], "averaging is 1.0: expected 0 to 0.9999"),
            (["averaging=inf"], "averaging is inf: expected 0 to 0.9999"),
            (["precision=float64"], "precision is 'float64': expected one of float32, tf32, bfl"),
            (["tile=auto,banana"], "tile is 'banana': expected auto, off, or a side in pixels"),
            (["tile=1.5"], "tile is '1.5': expected auto, off, or a side in pixels"),
            (["tile=64,0"], "tile is 0: expected auto, off, or a side in pixels"),
            (["tile=-64"], "tile is -64: expected auto, off, or a side in pixels"),
            (["remat=yes"], "remat is 'yes': expected one of auto, on, off"),
            (["tile=off,64", "remat=on"], "remat on has no meaning with tiles"),
            (["precision=float32,bfloat16", "convolution=winograd"], "convolution winograd is too"),
            (
                ["optimizer=lbfgs,adam", "memory_size=5"],
                "memory_size has no meaning for adam: leave it out, or choose lbfgs",
            ),
        ],
    )
    def test_refused(self, over, message):
        with pytest.raises(InputError, match="^" + re.escape(message)) as caught:
            combinations(over, config=BASE, seed=0)
        assert len(str(caught.value).splitlines()) == 1

    def test_too_many(self):
        values = ",".join(map(str, range(MAX_COMBINATIONS // 2 + 1)))
        with pytest.raises(InputError, match="asks for 202 images: expected at most 200; leave"):
            combinations([f"style_weight={values}", "tv_weight=0,1"], config=BASE, seed=0)
        longest = ",".join(map(str, range(200)))
        with pytest.raises(InputError, match="asks for 8000000 images"):
            combinations(
                [f"{name}={longest}" for name in ("style_weight", "tv_weight", "seed")],
                config=BASE,
                seed=0,
            )


NUMBERS = [
    dict(style_weight=3.0),
    dict(content_weight=0.0),
    dict(tv_weight=2.0),
    dict(learning_rate=0.25),
    dict(init="noise"),
    dict(noise="uniform"),
    dict(noise_scale=0.2),
    dict(noise_ratio=0.3),
    dict(style_layers={"relu1_1": 0.3, "relu2_1": 2}),
    dict(content_layers={"relu2_1": 4}),
    dict(content_losses={"features": 3}),
    dict(style_losses={"gram": 2}),
]
STRUCTURES = [
    dict(steps=5),
    dict(style_layers=["relu1_1"]),
    dict(content_layers=["relu1_1"]),
    dict(pooling="average"),
    dict(gram_normalization="hw"),
    dict(tv_order=2),
    dict(tv_form="isotropic"),
    dict(tv_reduction="mean"),
    dict(content_losses=["laplacian4"]),
    dict(style_losses=["gram", "mean-std"]),
    dict(style_losses=["gram", "histogram"], histogram_layers=("relu1_1",)),
    dict(style_losses=["wasserstein"], covariance_eps=0.1),
    dict(optimizer="adam", adam_beta1=0.8),
    dict(optimizer="adam", adam_beta2=0.9),
    dict(optimizer="adam", adam_epsilon=0.1),
    dict(optimizer="adam", clip=True),
    dict(mse_factor=0.25),
    dict(pixel_range=1),
    dict(style_mixing="sum"),
    dict(guides="all"),
    dict(padding="circular"),
    dict(color="luminance"),
    dict(optimizer="adam"),
    dict(memory_size=7),
    dict(preconditioner="spectral"),
    dict(convolution="direct"),
    dict(min_size=16),
    dict(min_size=16, scale_factor=2.0),
    dict(min_size=8, scale_steps=(3,)),
    dict(averaging=0.9),
    dict(precision="bfloat16"),
    dict(tile=16),
    dict(remat="on"),
]


def changed(config, changes):
    return config.but(**changes)


class TestGroups:
    @pytest.mark.parametrize("changes", NUMBERS)
    def test_numbers_share_a_program(self, changes):
        assert structure(changed(BASE, changes)) == structure(BASE)

    @pytest.mark.parametrize("changes", STRUCTURES)
    def test_structures_do_not(self, changes):
        assert structure(changed(BASE, changes)) != structure(BASE)

    def test_every_setting_is_one_or_the_other(self):
        names = {name for changes in NUMBERS + STRUCTURES for name in changes}
        assert names == set(flat_types())

    @pytest.mark.parametrize(
        "count, batch_size, sizes",
        [
            (1, 8, [1]),
            (8, 8, [8]),
            (9, 8, [5, 4]),
            (10, 4, [4, 4, 2]),
            (7, 3, [3, 3, 1]),
            (12, 5, [4, 4, 4]),
            (3, 1, [1, 1, 1]),
        ],
    )
    def test_sizes(self, count, batch_size, sizes):
        items = combinations(
            [f"style_weight={','.join(map(str, range(count)))}"], config=BASE, seed=0
        )
        found = groups(items, batch_size=batch_size)
        assert [len(group) for group in found] == sizes
        assert sum(found, []) == list(range(count))

    def test_each_structure_for_itself(self):
        items = combinations(["style_weight=1,2,3", "pooling=max,average"], config=BASE, seed=0)
        assert groups(items, batch_size=8) == [[0, 2, 4], [1, 3, 5]]
        assert groups(items, batch_size=2) == [[0, 2], [4], [1, 3], [5]]

    def test_a_line_search_runs_alone(self):
        over = ["style_weight=1,2", "optimizer=lbfgs-linesearch,lbfgs"]
        items = combinations(over, config=BASE, seed=0)
        assert groups(items, batch_size=8) == [[0], [2], [1, 3]]

    def test_seeds_share_a_program(self):
        items = combinations(["seed=1,2,3"], config=NOISE, seed=0)
        assert groups(items, batch_size=8) == [[0, 1, 2]]


ELEMENTS = [
    dict(),
    dict(style_weight=3.0, learning_rate=0.5),
    dict(content_weight=0.0, tv_weight=0.5, init="noise", noise_scale=0.2),
    dict(style_layers={"relu1_1": 0.3, "relu2_1": 2}, init="blend", noise="uniform"),
    dict(content_layers={"relu2_1": 4}, init="blend", noise_scale=0.1, noise_ratio=0.3),
]


def photos():
    return smooth_image(24, 32, seed=1), [smooth_image(32, 26, seed=2)]


def before_it_diverged(result, *, steps):
    """A run's result as it was when its loss was first not finite."""
    history = jax.tree.map(lambda x: x[:steps], result.history)
    assert not np.isfinite(history.loss[-1] + history.grad_norm[-1])
    loss = min(history.loss[np.isfinite(history.loss)], default=np.inf)
    return result._replace(history=history, status="diverged", loss=float(loss))


def compare(variables, configs, *, seeds=None, inits=None, every=None, **controls):
    """Check that a batch gives what each run gives alone; return the batch's results.

    Apart, as on CPUs, to the last bit; together as far as other rounding allows. Of an image that
    diverges a run alone goes on from these very steps.
    """
    content, styles = photos()
    keys = [jax.random.key(seed) for seed in seeds or [0] * len(configs)]
    problem = make_problem(variables, content, styles, config=configs[0], **controls)
    inits = inits or [None] * len(configs)
    elements = [Element(problem, *own) for own in zip(configs, keys, inits, strict=True)]
    apart, together = (
        each_result(run_batch(elements, together=together, every=every))
        for together in (False, True)
    )
    for element, exact, close in zip(elements, apart, together, strict=True):
        given = dict(config=element.config, key=element.key, init=element.init) | controls
        alone = stylize(variables, content, styles, **given)
        assert exact.status == close.status
        if exact.status == "diverged":
            alone = before_it_diverged(alone, steps=len(exact.history.loss))
        assert exact.status == alone.status
        jax.tree.map(np.testing.assert_array_equal, exact.history, alone.history)
        assert exact.loss == alone.loss
        np.testing.assert_array_equal(exact.image, alone.image)
        for one, other in zip(
            jax.tree.leaves(close.history), jax.tree.leaves(alone.history), strict=True
        ):
            assert one.shape == other.shape
        np.testing.assert_allclose(close.history.loss, alone.history.loss, rtol=1e-6)
        assert close.loss == pytest.approx(alone.loss, rel=1e-6)
        np.testing.assert_allclose(close.image, alone.image, atol=2e-4)
        np.testing.assert_array_equal(close.history.evaluations, alone.history.evaluations)
    return apart


class TestLanes:
    @pytest.mark.optimized
    @pytest.mark.parametrize("base", [ADAM, BASE], ids=["adam", "lbfgs"])
    def test_each_is_the_run_alone(self, variables, base):
        configs = [changed(base, changes) for changes in ELEMENTS]
        found = compare(variables, configs, seeds=[0, 1, 2, 3, 3])
        assert len({float(result.history.loss[-1]) for result in found}) == len(ELEMENTS)

    def test_with_regions_and_colours(self, variables):
        masks = np.stack([np.arange(32) < 12, np.arange(32) >= 20])[:, None].repeat(24, 1) * 1.0
        keep = np.zeros((24, 32))
        keep[:, 14:18] = 1
        base = changed(ADAM, {"color": "keep-yiq"})
        found = compare(
            variables,
            [base, changed(base, {"style_weight": 3.0})],
            content_masks=masks,
            region_weights=[1.0, 2.0],
            preserve=keep,
        )
        content, _ = photos()
        for result in found:
            np.testing.assert_allclose(result.image[:, 14:18], content[:, 14:18], atol=1e-6)

    def test_initial_images(self, variables):
        start = smooth_image(24, 32, seed=9)
        found = compare(variables, [ADAM] * 3, inits=[start, None, start * 0.5])
        assert found[1].history.terms.content[0] == 0
        assert len({float(result.history.loss[0]) for result in found}) == 3

    def test_seeds_differ(self, variables):
        config = changed(ADAM, {"init": "noise", "noise_scale": 0.2})
        found = compare(variables, [config] * 3, seeds=[4, 5, 4])
        np.testing.assert_array_equal(found[0].history.loss, found[2].history.loss)
        assert found[0].history.loss[0] != pytest.approx(found[1].history.loss[0], rel=1e-4)

    @pytest.mark.parametrize(
        "base, bad, steps",
        [
            (ADAM, {"learning_rate": 1e30}, 2),  # the second image overflows
            (ADAM, {"style_weight": 3.4e38}, 1),  # the loss does at once
            (BASE, {"learning_rate": 1e38}, 2),
            (BASE, {"tv_weight": 3e38}, 1),
        ],
    )
    def test_a_element_that_diverges_spoils_no_other(self, variables, base, bad, steps):
        configs = [base, changed(base, bad), changed(base, {"style_weight": 3.0})]
        found = compare(variables, configs)
        assert [result.status for result in found] == ["done", "diverged", "done"]
        assert [len(result.history.loss) for result in found] == [4, steps, 4]
        for values in jax.tree.leaves(found[1].history):
            assert len(values) == steps
        finite = np.isfinite(found[1].history.loss)
        assert finite.tolist() == [True] * (steps - 1) + [False]
        np.testing.assert_array_equal(found[1].image, photos()[0])  # only the start had a loss

    def test_all_diverge(self, variables):
        rates = (1e30, 1e31, 1e32)
        found = compare(variables, [changed(ADAM, {"learning_rate": rate}) for rate in rates])
        assert {result.status for result in found} == {"diverged"}

    def test_divergence_between_two_chunks(self, variables):
        """The host goes on with the others after a chunk in which one has diverged."""
        configs = [changed(ADAM, {"style_weight": 3.4e38}), ADAM, ADAM]
        found = compare(variables, configs, every=1)
        assert [len(result.history.loss) for result in found] == [1, 4, 4]

    @pytest.mark.parametrize("together", [False, True])
    def test_one_trace_for_numbers(self, variables, monkeypatch, together):
        traces = count_traces(monkeypatch)
        content, styles = photos()
        elements = [changed(ADAM, changes) for changes in ELEMENTS[:3]]
        again = [changed(config, {"tv_weight": 7.0, "learning_rate": 0.1}) for config in elements]
        for configs in (elements, again):
            problem = make_problem(variables, content, styles, config=configs[0])
            run_batch([Element(problem, config) for config in configs], together=together)
        assert len(traces) == 1

    @pytest.mark.parametrize("together", [False, True])
    def test_the_callback_sees_all_elements_and_may_stop(self, variables, together):
        content, styles = photos()
        problem = make_problem(variables, content, styles, config=ADAM)
        seen = []

        def callback(progress):
            seen.append((progress.step, progress.image.shape, progress.info.loss.shape))
            return False

        found = run_batch(
            [Element(problem, ADAM)] * 3, together=together, callback=callback, with_images=True
        )
        assert seen == [(1, (3, 24, 32, 3), (3,))]
        assert found.status == ("stopped",) * 3 and found.history.loss.shape == (1, 3)


TWO = "style.png two.png"
MASKS = "left.png right.png"


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with images and masks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NST_JAX_WEIGHTS", raising=False)
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))
    content, (style,) = photos()
    save_image("content.png", content)
    save_image("style.png", style)
    save_image("two.png", smooth_image(32, 26, seed=4))
    left = np.broadcast_to(np.arange(32) < 14, (24, 32))
    for name, inside in (("left", left), ("right", ~left)):
        save_image(f"{name}.png", np.repeat(inside[..., None] * 1.0, 3, -1))
    return tmp_path


@pytest.fixture
def run(desk, capsys, tiny_weights_file):
    def run(*over, **options):
        given = {
            "style": "style.png",
            "content_layers": "relu2_1",
            "style_layers": "relu1_1 relu2_1",
            "optimizer": "adam",
            "learning_rate": 2,
            "steps": 4,
            "size": SIZE,
            "output": "out.png",
            "weights": tiny_weights_file,
        }
        words = ["sweep", "content.png"]
        for name, value in (given | options).items():
            if value is not None:
                flag = "--" + name.replace("_", "-")
                words += [flag] + ([] if value is True else str(value).split())
        for text in over:
            words += ["--over", text]
        return Run(main(words), *capsys.readouterr())

    return run


@pytest.fixture
def alone(variables):
    """An image by the library's function, of the files on the desk."""

    def alone(styles="style.png", *, seed=0, controls={}, **changes):
        return stylize(
            variables,
            load_image("content.png"),
            [load_image(name) for name in styles.split()],
            config=changed(ADAM, changes),
            key=jax.random.key(seed),
            **controls,
        )

    return alone


def shows(results, labels, columns):
    """Check that the sheet is that of these results and labels."""
    images = [np.ones((24, 32, 3)) if result is None else result.image for result in results]
    expected = to_uint8(contact_sheet(images, labels=labels, columns=columns))
    found = pixels("out.png")
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@pytest.fixture
def at_step(monkeypatch):
    yield from acting(monkeypatch, sweep)


@pytest.fixture
def press(at_step):
    return partial(at_step, act=ctrl_c)


def losses(name="out.json"):
    return [photo["history"]["total"] for photo in record(name)["images"]]


class TestMemory:
    @pytest.fixture
    def problem(self, variables):
        content, styles = photos()
        return make_problem(variables, content, styles, config=ADAM)

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_more_elements_than_fit(self, problem, batch_size):
        one = image_memory(problem)
        # On CPUs the targets and the scratch memory are there once.
        own = one.own - one.targets - one.scratch
        free = int((one.own + (batch_size - 0.5) * own) / USABLE)
        log_batch_memory(problem, batch_size=batch_size, free=free, process=0)
        said = f"^{batch_size + 1} images of 32x24 px .*: choose --batch-size {batch_size}$"
        with pytest.raises(InputError, match=said):
            log_batch_memory(problem, batch_size=batch_size + 1, free=free, process=0)

    def test_not_even_one_fits(self, problem):
        with pytest.raises(InputError, match="^an image of 32x24 px needs about "):
            log_batch_memory(problem, batch_size=2, free=100, process=0)

    def test_unknown(self, problem, capsys):
        log_batch_memory(problem, batch_size=2, free=None, process=0)
        assert "32x24 px, 2 images at once: about " in capsys.readouterr().err


class TestCommand:
    def test_one_setting(self, run, alone, desk):
        before = set(listing(desk))
        code, out, err = run("style_weight=1,100,1e4")
        assert (code, out) == (0, "out.png\n")
        assert set(listing(desk)) - before == {"out.png", "out.json"}
        told = r"nst-jax: 32x24 px, 3 images at once: about .* of .*GiB; the whole image\n"
        assert re.match(told, err) and "compiled in " in err and "step 4/4" in err
        results = [alone(style_weight=weight) for weight in (1.0, 100.0, 1e4)]
        shows(results, ["style_weight 1", "style_weight 100", "style_weight 1e4"], 3)
        found = record()
        assert [photo["values"] for photo in found["images"]] == [
            {"style_weight": word} for word in ("1", "100", "1e4")
        ]
        for photo, result in zip(found["images"], results, strict=True):
            assert (photo["status"], photo["steps"], photo["seed"]) == ("done", 4, 0)
            assert set(photo["history"]) == {"total", "content", "style", "tv"}
            history = photo["history"]["total"]
            assert history == result.history.loss.tolist()
            assert photo["final_loss"] == min(history) < history[0]
        settings = found["settings"]
        assert settings["over"] == ["style_weight=1,100,1e4"] and settings["batch_size"] == 8
        assert settings["style"] == ["style.png"] and settings["size"] == SIZE
        assert settings["style_layers"] == {"relu1_1": 1, "relu2_1": 1}
        assert found["image"] == {"width": 32, "height": 24}
        assert found["weights"]["name"] == "tiny" and found["timing"]["total_s"] > 0

    def test_limit_of_pixels(self, run, desk):
        over = "style_weight=1,100"
        check_refused(
            desk, "content.png has 0.000768 megapixels", lambda: run(over, max_megapixels=0.0007)
        )
        assert run(over, max_megapixels=0.001).code == 0
        assert "max_megapixels" not in record()["settings"]

    def test_two_settings_are_rows_and_columns(self, run, alone):
        assert run("tv_weight=0,0.5", "style_weight=1,100,1e4").code == 0
        values = [(tv, weight) for tv in ("0", "0.5") for weight in ("1", "100", "1e4")]
        results = [alone(tv_weight=float(tv), style_weight=float(w)) for tv, w in values]
        labels = [f"tv_weight {tv}\nstyle_weight {weight}" for tv, weight in values]
        shows(results, labels, 3)
        found = record()["images"]
        assert [tuple(photo["values"].values()) for photo in found] == values

    def test_many_values_are_wrapped(self, run, alone):
        weights = [str(weight) for weight in range(1, 9)]
        assert run(f"style_weight={','.join(weights)}", batch_size=3, steps=1).code == 0
        labels = [f"style_weight {weight}" for weight in weights]
        shows([alone(style_weight=float(w), steps=1) for w in weights], labels, 6)

    def test_batch_size_does_not_change_losses(self, run):
        found = {}
        for batch_size in (1, 2, 3):
            assert run("style_weight=1,100,1e4", batch_size=batch_size, overwrite=True).code == 0
            found[batch_size] = losses()
        for batch_size in (1, 2):
            assert found[batch_size] == found[3]

    def test_structures(self, run, alone):
        """Other layers and lengths beside each other, each in a program of its own."""
        layers = "style_layers=relu1_1=0.5+relu2_1,relu1_1"
        assert run("steps=2,3", layers).code == 0
        results = [
            alone(steps=steps, style_layers=style_layers)
            for steps in (2, 3)
            for style_layers in ({"relu1_1": 0.5, "relu2_1": 1}, ["relu1_1"])
        ]
        names = [(steps, text) for steps in (2, 3) for text in ("relu1_1=0.5+relu2_1", "relu1_1")]
        shows(results, [f"steps {steps}\nstyle_layers {text}" for steps, text in names], 2)
        for history, result in zip(losses(), results, strict=True):
            assert history == result.history.loss.tolist()

    def test_seeds(self, run, alone):
        assert run("seed=1,2", init="noise", noise_scale=0.2, seed=1).code == 0
        assert [photo["seed"] for photo in record()["images"]] == [1, 2]
        results = [alone(seed=seed, init="noise", noise_scale=0.2) for seed in (1, 2)]
        shows(results, ["seed 1", "seed 2"], 2)
        first, second = losses()
        assert first != pytest.approx(second, rel=1e-4)
        assert first == results[0].history.loss.tolist()

    def test_init_from_a_file(self, run, alone):
        save_image("start.png", smooth_image(24, 32, seed=9))
        assert run("style_weight=1,100", init="start.png").code == 0
        init = load_image("start.png")
        results = [alone(style_weight=w, controls={"init": init}) for w in (1.0, 100.0)]
        shows(results, ["style_weight 1", "style_weight 100"], 2)

    @pytest.mark.parametrize("base", ["noise", "start.png"])
    def test_files_among_the_values_of_init(self, run, alone, base):
        save_image("start.png", smooth_image(24, 32, seed=9))
        save_image("large.png", smooth_image(48, 64, seed=8))
        assert run("init=content,start.png,large.png", init=base).code == 0
        inits = [None, load_image("start.png"), load_image("large.png", size=32)]
        results = [alone(controls={"init": init}) for init in inits]
        shows(results, ["init content", "init start.png", "init large.png"], 3)

    def test_regions(self, run, alone):
        options = dict(style=TWO, content_mask=MASKS, region_styles="2 mix", style_blend="1 3")
        assert run("style_weight=1,100", **options).code == 0
        masks = np.stack([load_mask(name, shape=(24, 32)) for name in MASKS.split()])
        controls = {"content_masks": masks, "blend": [[0.0, 1.0], [1.0, 3.0]]}
        results = [alone(TWO, style_weight=w, controls=controls) for w in (1.0, 100.0)]
        shows(results, ["style_weight 1", "style_weight 100"], 2)

    @pytest.mark.parametrize("base", ["relu1_1", "relu1_1 relu2_1"])
    def test_style_layers_of_regions(self, run, alone, base):
        """Each region has its style in whatever layers are swept."""
        options = dict(style=TWO, content_mask=MASKS, region_styles="2 1", style_layers=base)
        code, _, err = run("style_layers=relu1_1,relu1_1+relu2_1", **options)
        assert code == 0, err
        masks = np.stack([load_mask(name, shape=(24, 32)) for name in MASKS.split()])
        controls = {"content_masks": masks, "blend": [[0.0, 1.0], [1.0, 0.0]]}
        layers = (["relu1_1"], ["relu1_1", "relu2_1"])
        for history, names in zip(losses(), layers, strict=True):
            expected = alone(TWO, style_layers=names, controls=controls).history.loss
            assert history == expected.tolist()

    def test_a_image_that_diverges(self, run, alone):
        code, out, err = run("learning_rate=2,1e30")
        assert (code, out) == (1, "out.png\n")
        assert err.splitlines()[-1].startswith("nst-jax: diverged")
        found = record()["images"]
        assert [photo["status"] for photo in found] == ["done", "diverged"]
        assert [photo["steps"] for photo in found] == [4, 4]
        assert found[1]["history"]["total"][-1] is None
        results = [alone(learning_rate=rate) for rate in (2.0, 1e30)]
        shows(results, ["learning_rate 2", "learning_rate 1e30\ndiverged"], 2)
        assert [photo["recoveries"] for photo in found] == [0, results[1].recoveries]
        words = "learning_rate 1e30: the loss or its gradient was not finite: went on from the best"
        told = [line for line in err.splitlines() if words in line]
        assert len(told) == 1 and told[0].endswith(f"({results[1].recoveries} of 3)")
        assert results[1].recoveries > 0

    def test_a_image_that_diverges_at_its_last_step(self, run, alone):
        assert run("learning_rate=1e37", steps=2).code == 1
        (found,) = record()["images"]
        single = alone(learning_rate=1e37, steps=2)
        assert found["status"] == single.status == "diverged"
        assert (found["steps"], found["recoveries"]) == (2, 0)

    def test_losses_whose_sum_overflows(self, run):
        """Their mean, which is shown on the way, is no fault of the elements."""
        assert (
            run("seed=1", init="noise", steps=1, content_weight=0, tv_weight=0, style_weight=1).code
            == 0
        )
        weight = 2.5e38 / losses()[0][0]
        numbers = dict(content_weight=0, tv_weight=0, style_weight=weight)
        code, _, err = run("seed=1,2", init="noise", steps=1, overwrite=True, **numbers)
        assert code == 0 and "Warning" not in err
        assert losses() == [[pytest.approx(2.5e38, rel=1e-4)]] * 2

    def test_jpeg_and_overwrite(self, run, desk):
        (desk / "out.json").write_text("old")
        assert run("seed=1", init="noise", output="out.jpg", overwrite=True).code == 0
        with Image.open("out.jpg") as image:
            assert image.format == "JPEG"
        assert len(record()["images"]) == 1

    def test_a_sheet_larger_than_its_format(self, run, desk):
        """As it will be, which is known before."""
        seeds = ",".join(map(str, range(100)))
        code, out, err = run(
            "tv_weight=1", f"seed={seeds}", init="noise", size=200, output="o.webp"
        )
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert "px: expected at most 16383 px a side for .webp; write o.webp as .png" in err
        assert not (desk / "o.webp").exists()

    def test_a_sheet_that_cannot_be_written_is_kept(
        self, run, alone, at_step, monkeypatch, tmp_path
    ):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        os.mkdir("sheets")
        at_step(1, lambda: os.rmdir("sheets"))
        code, out, err = run("seed=1", init="noise", steps=1, output="sheets/out.png")
        (kept,) = tmp_path.glob("nst-jax-*/out.png")
        assert (code, out) == (2, "") and err.endswith(
            "error: cannot write sheets/out.png (No such file or directory): the image is kept "
            f"as {kept}, move it to where you want it\n"
        )
        kept.rename("out.png")
        result = alone(seed=1, init="noise", steps=1)
        shows([result], ["seed 1"], columns=1)

    def test_a_record_that_cannot_be_written(self, run, at_step):
        at_step(1, lambda: os.mkdir("out.json"))
        code, _, err = run("seed=1", init="noise", steps=1)
        assert code == 2 and err.endswith(
            "cannot write out.json (Is a directory): the sheet is written as out.png\n"
        )


class TestInterrupt:
    def test_the_sheet_shows_what_there_is(self, run, press, alone):
        press(5)  # the first step of the second image, which is a chunk
        code, out, err = run("style_weight=1,100,1e4", batch_size=1)
        assert (code, out) == (130, "out.png\n")
        assert err.splitlines()[-1].startswith("nst-jax: stopped")
        found = record()["images"]
        assert [photo["status"] for photo in found] == ["done", "stopped", "not run"]
        assert [photo.get("steps") for photo in found] == [4, 1, None]
        assert found[2] == {"values": {"style_weight": "1e4"}, "seed": 0, "status": "not run"}
        results = [alone(style_weight=1.0), alone(style_weight=100.0, steps=1), None]
        labels = ["style_weight 1", "style_weight 100\nstopped", "style_weight 1e4\nnot run"]
        shows(results, labels, 3)

    def test_between_two_groups(self, run, press):
        press(4)
        assert run("style_weight=1,100", batch_size=1).code == 130
        assert [photo["status"] for photo in record()["images"]] == ["done", "not run"]

    def test_at_the_last_step_the_sweep_is_done(self, run, press):
        press(4)
        assert run("style_weight=1,100").code == 0
        assert {photo["status"] for photo in record()["images"]} == {"done"}


class TestRefused:
    @pytest.fixture
    def refused(self, run, desk, traced_work):
        """Check that a sweep ends with one line before any work, and writes nothing."""

        def refused(match, *over, **options):
            check_refused(desk, match, lambda: run(*over, **options))

        return refused

    @pytest.mark.parametrize(
        "over, options, message",
        [
            (["sharpness=1,2"], {}, "--over names 'sharpness': expected seed or one of content_la"),
            (["style_weight=1,,2"], {}, "'style_weight=1,,2': expected NAME=VALUE,VALUE"),
            (["style_weight=1,1"], {}, "has a value twice"),
            (["style_weight=1", "style_weight=2"], {}, "names style_weight twice"),
            (["style_weight=1,many"], {}, "'many' is no number"),
            (["steps=1,1.5"], {}, "'1.5' is no whole number"),
            ([f"seed={','.join(map(str, range(201)))}"], {}, "asks for 201 images"),
            (["noise_ratio=0.5,2"], {}, "noise_ratio is 2.0: expected 0 to 1"),
            (["memory_size=5,10"], {}, "memory_size has no meaning for adam"),
            (["steps=10000000000000000000"], {}, "steps is 10+: .* at most 2147483647"),
            (["seed=1,-1"], {}, "seed is -1"),
            (["style_layers=relu1_1,fc7"], {}, "unknown layer 'fc7'"),
            (["tv_weight=1"], {"batch_size": 0}, "batch_size is 0: expected 1 or more"),
            (["tv_weight=1"], {"size": 0}, "size is 0: expected 1 to 100000"),
            (["tv_weight=1"], {"seed": -1}, "seed is -1"),
            (["tv_weight=1"], {"output": "old.png"}, "old.png exists: .*--overwrite"),
            (["tv_weight=1"], {"output": "oldrecord.png"}, "oldrecord.json exists"),
            (["tv_weight=1"], {"output": "out"}, "out has no suffix of a known image format"),
            (
                ["tv_weight=1"],
                {"output": "content.png", "overwrite": True},
                "content.png is an input",
            ),
            (
                ["tv_weight=1"],
                {"output": "left.png", "overwrite": True, "style": TWO, "content_mask": MASKS},
                "left.png is an input",
            ),
            (["tv_weight=1"], {"style": "none.png"}, "none.png does not exist"),
            (["tv_weight=1"], {"init": "none.png"}, "none.png does not exist"),
            (["tv_weight=1"], {"weights": "nowhere.h5"}, "nowhere.h5 .*do not exist"),
            # Where only one of the combinations does not fit.
            (["style_layers=relu1_1,relu5_1"], {"size": 20}, "layer relu5_1 needs"),
            (["padding=zero,circular"], {"size": 31}, "with circular padding layer relu2_1 needs"),
            (["guides=simple,inside"], {}, "guides inside needs masks"),
            (["style_mixing=average,sum"], {}, "style_mixing sum has no effect with one style"),
            (
                ["style_layers=relu1_1+relu2_1,relu1_1"],
                {"style": TWO, "layer_styles": "relu2_1=1"},
                "layer_styles names 'relu2_1', which is not a style layer",
            ),
            # Masks are checked before any work too.
            (
                ["guides=simple,inside"],
                {"content_mask": "left.png small.png"},
                "mask small.png leaves nothing in layer relu2_1 with guides inside",
            ),
            (
                ["tv_weight=1,2"],
                {"content_mask": MASKS, "region_weights": "-1 1"},
                "region weights are .-1.0, 1.0.",
            ),
            (
                ["tv_weight=1,2"],
                {"content_mask": MASKS, "region_styles": "keep keep"},
                "all of the image is kept",
            ),
            (
                ["tv_weight=1,2"],
                {"content_mask": "left.png", "style": TWO, "feather": -1},
                "feather is",
            ),
            (["init=content,none.png"], {}, "none.png does not exist"),
            (["init=content,two.png"], {}, "initial image two.png is 26x32 px, .* same aspect"),
            (
                ["init=content,left.png"],
                {"output": "left.png", "overwrite": True},
                "left.png is an input",
            ),
        ],
    )
    def test_one_line(self, refused, desk, over, options, message):
        for name in ("old.png", "oldrecord.json"):
            (desk / name).write_text("old")
        small = np.zeros((24, 32, 3))
        small[4:7, 4:7] = 1
        save_image("small.png", small)
        refused(message, *over, **options)

    def test_slim_network(self, refused, slim_file):
        layers = {"content_layers": "relu3_1", "style_layers": "relu1_1"}
        over = "style_layers=relu1_1,relu2_1"
        refused("trained for the layers .*, not relu2_1", over, weights=slim_file, **layers)

    def test_nothing_to_sweep(self, run, desk, traced_work):
        """Without ``--over`` there is nothing to do: told before any work."""
        before = listing(desk)
        try:
            code = run().code
        except SystemExit as end:  # the parser's own way
            code = end.code
        assert code == 2 and listing(desk) == before


def test_configs_of_another_structure_are_refused():
    configs = [BASE, BASE.but(pooling="average")]
    with pytest.raises(InputError, match="config 2 differs from the first in"):
        check_batch(configs)
