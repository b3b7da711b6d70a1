"""Memory plans, with made-up memory figures and with the compiler's."""

import math
import re
from functools import cache

import jax
import numpy as np
import optax
import pytest
from helpers.records import stylize

from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.losses.tiling import make_grid
from nst_jax.models import init_variables
from nst_jax.transfer import ExecutionPlan, planner
from nst_jax.transfer.plan import USABLE, Task, execution_in_words, plan_in_words
from nst_jax.transfer.planner import (
    Meter,
    choose,
    evaluation,
    fits_surely,
    given_plan,
    kernel_options,
    measure,
)
from nst_jax.transfer.types import LoopMemory, MemoryPlan
from nst_jax.types import Guidance

pytestmark = pytest.mark.sampled

LBFGS = Config.of(  # shallow layers, which compile quickly
    content_layers={"relu2_1": 1}, style_layers={"relu1_1": 1, "relu2_1": 1}, steps=40
)
LAYERS = LBFGS.loss.content_names + LBFGS.loss.style_names
ADAM = LBFGS.but(optimizer="adam")
BFLOAT16 = "bfloat16"
SIZE = (900, 1200)
WHOLE = ExecutionPlan()


def make_task(variables, size=SIZE, config=LBFGS, *, regions=0):
    height, width = size
    image = jax.ShapeDtypeStruct((height, width, 3), "float32")
    masks = jax.ShapeDtypeStruct((regions, height, width), "float32")
    guidance = Guidance(content_masks=masks if regions else None)
    return Task(variables, image, [image], config, guidance)


def just_enough(needed):
    """The least free bytes of which ``needed`` bytes are usable."""
    free = math.ceil(needed / USABLE)
    while int(USABLE * free) < needed:
        free += 1
    return free


class Figures:
    """A made-up ``Meter``: scratch memory in proportion to the pixels of a window.

    ``tile`` and ``remat`` are factors by which the estimates are wrong.
    """

    known: dict = {}  # cache of the bytes of states

    def __init__(self, *, tile=1.0, remat=0.8):
        self.tile, self.remat, self.calls = tile, remat, []

    def __call__(self, task, plan):
        self.calls.append(plan)
        height, width, _ = task.content.shape
        scratch = 2000 * height * width * (self.remat if plan.remat else 1)
        if plan.tile:
            window = make_grid((height, width), layers=LAYERS, tile=plan.tile).size
            images = 6 if task.config.optimizer.name.startswith("lbfgs") else 2
            scratch = self.tile * (2000 * math.prod(window) + images * 12 * height * width)
        return LoopMemory(50_000, self.state(task, plan), self.targets(task, plan), int(scratch))

    def state(self, task, plan):
        key = task.content.shape, task.config, plan
        if key not in self.known:
            self.known[key] = Meter().state(task, plan)
        return self.known[key]

    def targets(self, task, plan):
        """The features of a content are larger than the content."""
        height, width, _ = task.content.shape
        return 4 * height * width * (3 if plan.recompute_content else 30)

    def needs(self, task, plan=WHOLE):
        return sum(self(task, plan))

    def choose(self, task, free):
        plan = choose(task, free=free, meter=Meter(self, self.state, self.targets))
        assert plan is not None and plan.free == free
        assert free is None or sum(plan.needs) <= USABLE * free
        return plan

    def sweep(self, task, *, least=0.02):
        """Plans for amounts of free memory up to what the settings' plan needs, or the error."""
        needed = self.needs(task, given_plan(task))
        for fraction in np.geomspace(least, 1.1, 80):
            free = int(fraction * needed / USABLE)
            try:
                yield free, self.choose(task, free)
            except InputError as error:
                yield free, error


SIDES = (1024, 768, 512, 384, 256)
# The plans for 1200x900 px and 40 steps of L-BFGS in the order in which they are tried.
PLANS = [
    WHOLE,
    ExecutionPlan(memory_size=40),
    ExecutionPlan(memory_size=20),
    ExecutionPlan(remat=True, memory_size=40),
    ExecutionPlan(remat=True, memory_size=20),
    *[ExecutionPlan(tile=tile, memory_size=20) for tile in SIDES],
    *[ExecutionPlan(tile=tile, memory_size=10) for tile in SIDES],
    *[ExecutionPlan(tile=t, memory_size=10, memory_dtype=BFLOAT16) for t in SIDES],
    *[ExecutionPlan(tile=t, memory_size=5, memory_dtype=BFLOAT16) for t in SIDES],
]


class TestChoose:
    def test_the_first_plan_that_fits(self, variables):
        task, figures = make_task(variables), Figures()
        reached = []
        for expected in PLANS:
            free = just_enough(figures.needs(task, expected))
            plan = figures.choose(task, free)
            fitting = (one for one in PLANS if figures.needs(task, one) <= USABLE * free)
            assert plan.execution_plan == next(fitting)
            assert plan.whole == (figures.needs(task) if plan.execution_plan != WHOLE else None)
            reached.append(plan.execution_plan)
        kinds = {(plan.remat, bool(plan.tile), plan.memory_size) for plan in reached}
        assert {(False, False, None), (False, False, 40), (False, False, 20)} <= kinds
        assert {(True, False, 20), (False, True, 20), (False, True, 10), (False, True, 5)} <= kinds

    def test_pairs_of_few_steps_are_kept_as_long_as_tiles_fit(self, variables):
        task, figures = make_task(variables, config=LBFGS.but(steps=15)), Figures()
        for plan in (ExecutionPlan(memory_size=15), ExecutionPlan(tile=256, memory_size=15)):
            free = just_enough(figures.needs(task, plan))
            assert figures.choose(task, free).execution_plan == plan
            assert figures.choose(task, free - 2).execution_plan != plan

    @pytest.mark.parametrize("remat", [0.3, 0.8])
    def test_adam_has_checkpointing_and_the_largest_tiles_that_fit(self, variables, remat):
        """Also if gradient checkpointing saves more than estimated."""
        task, figures = make_task(variables, config=ADAM), Figures(remat=remat)
        plans = [ExecutionPlan(remat=True)]
        plans += [ExecutionPlan(tile=tile) for tile in SIDES] if remat == 0.8 else []
        for plan in plans:
            free = just_enough(figures.needs(task, plan))
            assert figures.choose(task, free).execution_plan == plan

    def test_the_contents_features_are_recomputed_last(self, variables):
        task, figures = make_task(variables, config=ADAM), Figures()
        free = just_enough(figures.needs(task, ExecutionPlan(tile=256)))
        assert figures.choose(task, free).execution_plan == ExecutionPlan(tile=256)
        plan = figures.choose(task, free - 2).execution_plan
        assert plan.recompute_content and plan.tile
        without = make_task(variables, config=ADAM.but(content_layers=()))
        with pytest.raises(InputError):
            figures.choose(without, free - 2)

    def test_no_limit(self, variables):
        task, figures = make_task(variables), Figures()
        for free in (None, 2**60):
            assert figures.choose(task, free) == MemoryPlan(WHOLE, figures(task, WHOLE), free)

    @pytest.mark.parametrize(
        "changes, fixed, sizes",
        [
            ({"tile": 300}, {"tile": 300, "remat": False}, {None, 40, 20, 10, 5}),
            ({"tile": "off"}, {"tile": 0}, {None, 40, 20, 10, 5}),
            ({"tile": "off", "remat": "off"}, {"tile": 0, "remat": False}, {None, 40, 20, 10, 5}),
            ({"remat": "on", "optimizer": "adam"}, {"tile": 0, "remat": True}, {None}),
            ({"memory_size": 12}, {}, {None, 12, 10, 5}),  # never enlarged
            ({"optimizer": "lbfgs-linesearch"}, {"memory_dtype": None}, {None}),
        ],
    )
    def test_fixed_settings_are_respected(self, variables, changes, fixed, sizes):
        task = make_task(variables, config=LBFGS.but(**changes))
        found = {plan.execution_plan for _, plan in Figures().sweep(task) if hasattr(plan, "needs")}
        for plan in found:
            assert fixed == {name: getattr(plan, name) for name in fixed}
        assert sizes - {5} <= {plan.memory_size for plan in found} <= sizes

    @pytest.mark.parametrize(
        "config, tile", [(LBFGS, 0.6), (ADAM, 2.5), (LBFGS, 2.5)], ids=["less", "adam", "more"]
    )
    def test_a_plan_fits_even_if_estimates_are_wrong(self, variables, config, tile):
        """And a run is refused only if no plan fits."""
        task, figures = make_task(variables, config=config), Figures(tile=tile, remat=1.0)
        refused = []
        for free, plan in figures.sweep(task):
            if isinstance(plan, InputError):
                plans = planner._cheaper_plans(task)
                assert min(figures.needs(task, one) for one in plans) > USABLE * free
                refused.append(free)
            else:
                assert plan.needs == figures(task, plan.execution_plan)
                assert free > max(refused, default=0)
        assert refused

    def test_a_dtype_of_pairs_is_measured(self, variables):
        """A device that converts bfloat16 pairs needs scratch memory for it."""

        class Converting(Figures):
            def __call__(self, task, plan):
                found = super().__call__(task, plan)
                return found._replace(scratch=found.scratch + found.state * bool(plan.memory_dtype))

        task, figures = make_task(variables), Converting(tile=1.3)
        for free, plan in figures.sweep(task):
            if not isinstance(plan, InputError):
                assert figures.needs(task, plan.execution_plan) <= USABLE * free

    def test_few_plans_are_compiled(self, variables):
        task, figures = make_task(variables), Figures()
        for plan, most in ((PLANS[1], 1), (PLANS[2], 1), (PLANS[7], 4)):
            free = just_enough(figures.needs(task, plan))
            figures.calls.clear()
            assert figures.choose(task, free).execution_plan == plan
            assert len(figures.calls) <= most

    def test_no_memory_analysis(self, variables):
        silent = Meter(loop=lambda task, execution_plan: None)
        assert choose(make_task(variables), free=2**30, meter=silent) is None


class TestRefusal:
    @pytest.mark.parametrize(
        "size, config, fraction", [((3000, 4000), LBFGS, 0.02), (SIZE, ADAM, 0.016)]
    )
    def test_it_names_a_size_that_fits(self, variables, size, config, fraction):
        """The second is so small that a tile with its surroundings would need more than it."""
        figures, task = Figures(), make_task(variables, size, config)
        free = int(fraction * figures.needs(task))
        with pytest.raises(InputError) as caught:
            figures.choose(task, free)
        text = str(caught.value)
        assert f"{size[1]}x{size[0]} px needs about" in text and "precision bfloat16" in text
        side = int(re.search(r"about (\d+) px would fit", text)[1])
        plan = figures.choose(make_task(variables, (round(side * 0.75), side), config), free)
        assert sum(plan.needs) > 0.5 * USABLE * free  # and not a much smaller one
        assert bool(plan.execution_plan.tile) == (config is LBFGS)

    @pytest.mark.parametrize(
        "changes, advised",
        [
            ({}, "adam and precision bfloat16"),
            ({"remat": "on"}, "adam and precision bfloat16 and remat auto"),
            ({"optimizer": "adam", "tile": "off"}, "precision bfloat16 and tile auto"),
        ],
    )
    def test_it_advises_other_settings(self, variables, changes, advised):
        task = make_task(variables, (3000, 4000), LBFGS.but(**changes))
        with pytest.raises(InputError, match=f"; {advised} would need less$") as caught:
            Figures().choose(task, 30_000_000)
        assert (" even in tiles of 256 px" in str(caught.value)) == (not changes)

    def test_if_no_size_fits(self, variables):
        with pytest.raises(InputError, match="choose a smaller size"):
            Figures().choose(make_task(variables), 60_000)


@pytest.mark.optimized
class TestCompiled:
    """With the compiler's figures, of small tiles."""

    @pytest.mark.parametrize(
        "config, expected",
        [(LBFGS, ExecutionPlan(memory_size=20)), (ADAM, ExecutionPlan(tile=128))],
        ids=["lbfgs", "adam"],
    )
    def test_the_needs_of_a_plan_are_those_of_its_program(self, variables, config, expected):
        measured = cache(lambda plan: measure(task, plan))
        task = make_task(variables, (150, 200), config)
        needed = sum(measured(expected))
        if expected.tile:  # more, as its estimate is higher
            needed = (needed + sum(measured(WHOLE))) // 2
        free = int(1.001 * just_enough(needed))
        meter = Meter(loop=lambda task, plan: measured(plan))
        plan = choose(task, free=free, meter=meter, tiles=(128, 64))
        assert plan.execution_plan == expected
        np.testing.assert_allclose(measured(expected), plan.needs, rtol=1e-3)
        assert sum(measured(expected)) <= 1.001 * USABLE * free


def least_free(task):
    """The least free bytes for which ``fits_surely`` holds."""
    low, high = 0, 2**45
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits_surely(task, free=middle) else (middle, high)
    return high


class TestFitsSurely:
    def test_it_is_not_sure_of_many_layers(self, variables):
        names = {f"relu{block}_1": 1 for block in (1, 2, 3, 4)}
        for changes in ({"content_layers": names}, {"style_layers": names | {"relu1_2": 1}}):
            task = make_task(variables, (48, 64), ADAM.but(**changes))
            assert fits_surely(task, free=2**45) == ("content_layers" not in changes)

    def test_what_it_counts(self, variables):
        """Pixels, regions, L-BFGS's pairs, and the state of a custom optimiser."""

        def least(size=(300, 400), regions=0, **changes):
            return least_free(make_task(variables, size, ADAM.but(**changes), regions=regions))

        plain = least()
        assert least((600, 400)) > 1.9 * plain
        assert least(regions=3) > 1.5 * plain
        image = 300 * 400 * 12
        assert least(optimizer="lbfgs", learning_rate=None) - plain > 200 * image
        task = make_task(variables, (300, 400), ADAM)
        heavy = task._replace(optimizer=optax.lbfgs(memory_size=50))
        assert least_free(heavy) - plain > 90 * image

    @pytest.mark.optimized
    @pytest.mark.parametrize(
        "channels, size, changes, regions",
        [
            ((4, 6, 8, 10, 12), (64, 64), {"optimizer": "adam"}, 2),
            ((64, 128, 16, 16, 16), (72, 64), {"precision": "bfloat16"}, 1),
            ((64, 128, 256, 512, 512), (64, 96), {"optimizer": "adam"}, 0),
        ],
    )
    def test_it_is_an_upper_bound(self, channels, size, changes, regions):
        variables = init_variables(jax.random.key(0), channels=channels)
        config = LBFGS if channels[-1] < 512 else Config()  # the full network with all its layers
        task = make_task(variables, size, config.but(**changes), regions=regions)
        assert sum(measure(task, WHOLE)) <= USABLE * least_free(task)


class TestRuns:
    """Plans change the result by rounding only, unless they shrink L-BFGS's memory."""

    @pytest.fixture
    @staticmethod
    def run(variables, content, style):
        @cache
        def run(plan):
            config = LBFGS.but(steps=5)
            return stylize(variables, content, style, config=config, execution_plan=plan)

        return run

    @pytest.mark.slow
    @pytest.mark.optimized
    def test_as_many_pairs_as_steps_change_nothing(self, run):
        found, expected = run(ExecutionPlan(memory_size=5)), run(WHOLE)
        np.testing.assert_array_equal(found.history.loss, expected.history.loss)
        np.testing.assert_array_equal(found.image, expected.image)
        np.testing.assert_array_equal(found.state.image, expected.state.image)
        assert found.state.opt_state.inner_state[0].s.shape[0] == 5

    @pytest.mark.parametrize(
        "plan",
        [
            ExecutionPlan(tile=32, recompute_content=True, memory_size=3),
            ExecutionPlan(remat=True),
            ExecutionPlan(memory_size=2, memory_dtype=BFLOAT16),
        ],
        ids=str,
    )
    def test_the_first_loss(self, run, plan):
        found, expected = run(plan), run(WHOLE)
        assert found.history.loss[0] == pytest.approx(expected.history.loss[0], rel=1e-5)
        assert found.scales[-1].execution_plan == plan


def test_execution_plans_in_words():
    words = execution_in_words(ExecutionPlan(256, False, True, 5, BFLOAT16))
    assert words == (
        "tiles of 256 px, content features recomputed, L-BFGS remembers 5 pairs in bfloat16"
    )
    words = execution_in_words(ExecutionPlan(remat=True))
    assert words == "the whole image, activations recomputed"


def test_memory_plans_in_words():
    gib = 2**30
    needs = LoopMemory(network=gib, state=2 * gib, targets=0, scratch=gib // 2)
    plan = MemoryPlan(ExecutionPlan(tile=512), needs, 10 * gib, whole=12 * gib)
    assert plan_in_words(plan, shape=(600, 800, 3), process=gib // 4) == (
        "800x600 px: about 3.8 GiB (program 0.25 GiB, network 1.0 GiB, image and optimiser "
        "2.0 GiB, activations 0.5 GiB) of 10.2 GiB; tiles of 512 px, because the default plan "
        "would need 12.2 GiB"
    )
    plan = MemoryPlan(WHOLE, needs, None)
    assert plan_in_words(plan, shape=(600, 800, 3)) == (
        "800x600 px: about 3.5 GiB (network 1.0 GiB, image and optimiser 2.0 GiB, "
        "activations 0.5 GiB); the whole image"
    )


def test_evaluation():
    config = LBFGS.but(precision=BFLOAT16)
    found = evaluation(config, ExecutionPlan(tile=64, recompute_content=True))
    assert found == (64, False, True, BFLOAT16)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="auto is direct on accelerators")
def test_kernel_options():
    def convolution(config, **options):
        return kernel_options(config, **options)["convolution"]

    assert convolution(LBFGS) == "winograd"
    assert convolution(LBFGS, by_rows=True) == "direct"
    assert convolution(LBFGS.but(convolution="direct")) == "direct"
    narrow = LBFGS.but(precision=BFLOAT16)
    assert convolution(narrow) == "direct" and kernel_options(narrow)["dtype"] == BFLOAT16
    assert kernel_options(LBFGS)["dtype"] is None
