"""What a run will need, and what is chosen where it does not fit, with made-up and real figures."""

import math
import re
from functools import cache

import jax
import numpy as np
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

# Layers that are quickly compiled.
SHALLOW = Config.of(
    content_layers={"relu2_1": 1}, style_layers={"relu1_1": 1, "relu2_1": 1}, steps=40
)
LAYERS = SHALLOW.loss.content_names + SHALLOW.loss.style_names
ADAM = SHALLOW.but(optimizer="adam")
BFLOAT16 = "bfloat16"


def make_task(variables, size, config=SHALLOW, *, regions=0):
    height, width = size
    image = jax.ShapeDtypeStruct((height, width, 3), "float32")
    masks = jax.ShapeDtypeStruct((regions, height, width), "float32")
    guidance = Guidance(content_masks=masks if regions else None)
    return Task(variables, image, [image], config, guidance)


def limit_of(free):
    return USABLE * free


def just_enough(needed):
    """Free bytes in which so many fit, and not one more."""
    free = math.ceil(needed / USABLE)
    while int(limit_of(free)) < needed:
        free += 1
    return free


class Figures:
    """Made-up needs: images and pairs as they are, and scratch memory of the windows' pixels."""

    known: dict = {}  # bytes of states, which do not change

    def __init__(self, off=1.0, remat=0.8):
        self.off, self.remat, self.calls = off, remat, []

    def __call__(self, task, execution_plan):
        self.calls.append(execution_plan)
        height, width, _ = task.content.shape
        image = 12 * height * width
        pixels = height * width * (self.remat if execution_plan.remat else 1)
        if execution_plan.tile:
            grid = make_grid((height, width), layers=LAYERS, tile=execution_plan.tile)
            pixels = grid.size[0] * grid.size[1]
        beside = (6 if task.config.optimizer.name.startswith("lbfgs") else 2) * image
        scratch = int(2000 * pixels) + beside * bool(execution_plan.tile)
        if execution_plan.tile or execution_plan.remat:
            scratch = int(self.off * scratch)
        return LoopMemory(
            50_000, self.state(task, execution_plan), self.targets(task, execution_plan), scratch
        )

    def state(self, task, execution_plan):
        key = task.content.shape, task.config, execution_plan
        if key not in self.known:
            self.known[key] = Meter().state(task, execution_plan)
        return self.known[key]

    def targets(self, task, execution_plan):
        """A content's features are larger than the content."""
        height, width, _ = task.content.shape
        return 4 * height * width * (3 if execution_plan.recompute_content else 30)

    def choose(self, task, *, free):
        return choose(task, free=free, meter=Meter(self, self.state, self.targets))

    def chosen(self, task, free):
        return checked(self.choose(task, free=free), free)


def checked(plan, free):
    """A plan that is one, and fits."""
    assert plan is not None and plan.free == free
    if free is not None:
        assert sum(plan.needs) <= limit_of(free)
    return plan


@pytest.fixture
def figures():
    return Figures


SIDES = (1024, 768, 512, 384, 256)
# What is tried for 1200x900 px in 40 steps of L-BFGS, the first that fits is taken.
WAYS = [
    ExecutionPlan(),
    ExecutionPlan(memory_size=40),
    ExecutionPlan(memory_size=20),
    ExecutionPlan(remat=True, memory_size=40),
    ExecutionPlan(remat=True, memory_size=20),
    *[ExecutionPlan(tile=tile, memory_size=20) for tile in SIDES],
    *[ExecutionPlan(tile=tile, memory_size=10) for tile in SIDES],
    *[ExecutionPlan(tile=t, memory_size=10, memory_dtype=BFLOAT16) for t in SIDES],
    *[ExecutionPlan(tile=t, memory_size=5, memory_dtype=BFLOAT16) for t in SIDES],
]
SIZE = (900, 1200)


class TestOrder:
    def first(self, figures, task, ways, free):
        return next((way for way in ways if sum(figures(task, way)) <= limit_of(free)), None)

    def test_the_first_way_that_fits(self, variables, figures):
        task, figures = make_task(variables, SIZE), figures()
        reached = []
        for way in WAYS:
            free = just_enough(sum(figures(task, way)))
            plan = figures.chosen(task, free)
            reached.append(plan.execution_plan)
            assert plan.execution_plan == self.first(figures, task, WAYS, free)
            assert (plan.whole is None) == (plan.execution_plan == ExecutionPlan())
            if plan.whole:
                assert plan.whole == sum(figures(task, ExecutionPlan()))
        kinds = {(way.remat, bool(way.tile), way.memory_size) for way in reached}
        assert {(False, False, None), (False, False, 40), (False, False, 20)} <= kinds
        assert {(True, False, 20), (False, True, 20), (False, True, 10), (False, True, 5)} <= kinds

    @pytest.mark.parametrize("steps", [15, 20])
    def test_few_pairs_are_kept_as_long_as_tiles_fit(self, variables, figures, steps):
        task, figures = make_task(variables, SIZE, SHALLOW.but(steps=steps)), figures()
        for way in (ExecutionPlan(memory_size=steps), ExecutionPlan(tile=256, memory_size=steps)):
            free = just_enough(sum(figures(task, way)))
            assert figures.chosen(task, free).execution_plan == way
            assert figures.chosen(task, free - 2).execution_plan != way

    @pytest.mark.parametrize("tile", [1024, 768, 512, 384, 256])
    def test_tiles_are_the_largest_that_fit(self, variables, figures, tile):
        task, figures = make_task(variables, SIZE, ADAM), figures()
        free = just_enough(sum(figures(task, ExecutionPlan(tile=tile))))
        assert figures.chosen(task, free).execution_plan == ExecutionPlan(tile=tile)

    def test_the_contents_features_are_computed_again_at_the_last(self, variables, figures):
        task, figures = make_task(variables, SIZE, ADAM), figures()
        least = sum(figures(task, ExecutionPlan(tile=256)))
        assert figures.chosen(task, just_enough(least)).execution_plan == ExecutionPlan(tile=256)
        plan = figures.chosen(task, just_enough(least) - 2)
        assert plan.execution_plan.recompute_content and plan.execution_plan.tile
        none = make_task(variables, SIZE, ADAM.but(content_layers=()))
        assert figures.chosen(none, just_enough(least)).execution_plan == ExecutionPlan(tile=256)
        with pytest.raises(InputError):
            figures.choose(none, free=just_enough(least) - 2)

    def test_no_limit(self, variables, figures):
        task, figures = make_task(variables, SIZE), figures()
        for free in (None, 2**60):
            plan = figures.chosen(task, free)
            assert plan == MemoryPlan(ExecutionPlan(), figures(task, ExecutionPlan()), free)

    @pytest.mark.parametrize(
        "changes, given",
        [
            ({"tile": 300}, {"tile": 300, "remat": False}),
            ({"tile": "off"}, {"tile": 0}),
            ({"tile": "off", "remat": "off"}, {"tile": 0, "remat": False}),
            ({"remat": "off"}, {"remat": False}),
            ({"remat": "on"}, {"tile": 0, "remat": True}),
        ],
    )
    @pytest.mark.parametrize("config", [SHALLOW, ADAM], ids=["lbfgs", "adam"])
    def test_what_the_settings_fix_stays(self, variables, figures, changes, given, config):
        config, figures = config.but(**changes), figures()
        task = make_task(variables, SIZE, config)
        needed = sum(figures(task, given_plan(task)))
        found = set()
        for share in np.geomspace(0.02, 1.1, 400):
            try:
                execution_plan = figures.chosen(task, int(share * needed / USABLE)).execution_plan
            except InputError:
                continue
            found.add(execution_plan)
            assert given == {name: getattr(execution_plan, name) for name in given}
        sizes = {None} if config.optimizer.name == "adam" else {None, 40, 20, 10, 5}
        assert {execution_plan.memory_size for execution_plan in found} == sizes

    @pytest.mark.parametrize("optimizer", ["adam", "lbfgs-linesearch"])
    def test_others_have_no_memory_to_shrink(self, variables, figures, optimizer):
        figures = figures()
        task = make_task(variables, SIZE, SHALLOW.but(optimizer=optimizer))
        needed = sum(figures(task, ExecutionPlan()))
        ways = set()
        for share in np.geomspace(0.02, 1.1, 100):
            try:
                ways.add(figures.chosen(task, int(share * needed / USABLE)).execution_plan)
            except InputError:
                pass
        assert {(way.memory_size, way.memory_dtype) for way in ways} == {(None, None)}
        assert len(ways) > 3

    def test_a_memory_of_ones_own_is_never_enlarged(self, variables, figures):
        figures = figures()
        task = make_task(variables, SIZE, SHALLOW.but(memory_size=12))
        needed = sum(figures(task, ExecutionPlan()))
        sizes = set()
        for share in np.geomspace(0.02, 1.1, 100):
            try:
                sizes.add(
                    figures.chosen(task, int(share * needed / USABLE)).execution_plan.memory_size
                )
            except InputError:
                pass
        assert sizes == {None, 12, 10, 5}

    @pytest.mark.parametrize("off", [0.6, 0.9, 1.3, 2.5])
    @pytest.mark.parametrize("config", [SHALLOW, ADAM], ids=["lbfgs", "adam"])
    def test_what_is_chosen_fits_whatever_was_expected(self, variables, figures, off, config):
        """Also where a way takes more or less scratch memory than its share of the image."""
        task, figures = make_task(variables, SIZE, config), figures(off=off, remat=1.0)
        needed = sum(figures(task, ExecutionPlan()))
        refused = []
        for share in np.geomspace(0.02, 1.1, 400):
            free = int(share * needed / USABLE)
            try:
                plan = figures.chosen(task, free)
            except InputError:
                ways = planner._alternatives(task)
                assert min(sum(figures(task, way)) for way in ways) > limit_of(free)
                refused.append(share)
                continue
            assert plan.needs == figures(task, plan.execution_plan)
            assert share > max(refused, default=0)
        assert refused

    @pytest.mark.parametrize("remat", [0.3, 0.8])
    def test_activations_computed_twice_where_that_takes_less_than_expected(
        self, variables, figures, remat
    ):
        task, figures = make_task(variables, SIZE, ADAM), figures(remat=remat)
        free = just_enough(sum(figures(task, ExecutionPlan(remat=True))))
        assert figures.chosen(task, free).execution_plan == ExecutionPlan(remat=True)

    def test_few_are_measured(self, variables, figures):
        """Each is a compilation."""
        task, figures = make_task(variables, SIZE), figures()
        for way in (WAYS[1], WAYS[2], WAYS[7]):
            free = just_enough(sum(figures(task, way)))
            figures.calls.clear()
            assert figures.chosen(task, free).execution_plan == way
            assert len(figures.calls) <= (1 if not way.tile else 4)

    @pytest.mark.slow
    def test_another_type_of_pairs_is_measured(self, variables):
        """Where a device converts what is remembered that takes scratch memory."""
        plain = Figures(off=1.3)  # so that some are measured before without that

        class Converting(Figures):
            def __call__(self, task, execution_plan):
                found = plain(task, execution_plan)
                more = found.state * bool(execution_plan.memory_dtype)
                return found._replace(scratch=found.scratch + more)

        figures = Converting()
        task = make_task(variables, SIZE)
        needed = sum(plain(task, ExecutionPlan()))
        for share in np.geomspace(0.02, 0.5, 300):
            try:
                plan = figures.chosen(task, int(share * needed / USABLE))
            except InputError:
                continue
            assert sum(figures(task, plan.execution_plan)) <= limit_of(plan.free)

    @pytest.mark.parametrize(
        "config, share",
        [(SHALLOW, 0.04), (SHALLOW, 0.02), (ADAM, 0.03), (ADAM, 0.02), (ADAM, 0.01)],
    )
    def test_refusal_names_a_size_that_fits(self, variables, figures, config, share):
        figures = figures()
        task = make_task(variables, (3000, 4000), config)
        free = int(share * sum(figures(task, ExecutionPlan())))
        with pytest.raises(InputError) as caught:
            figures.choose(task, free=free)
        text = str(caught.value)
        assert "4000x3000 px needs about" in text and "precision bfloat16" in text
        size = int(re.search(r"about (\d+) px would fit", text)[1])
        plan = figures.chosen(make_task(variables, (round(size * 0.75), size), config), free)
        assert sum(plan.needs) > 0.5 * limit_of(free)  # and not a much smaller one

    @pytest.mark.parametrize(
        "changes, advised",
        [
            ({}, "adam and precision bfloat16"),
            ({"remat": "on"}, "adam and precision bfloat16 and remat auto"),
            ({"tile": 256}, "adam and precision bfloat16 and tile auto"),
            ({"optimizer": "adam", "tile": "off"}, "precision bfloat16 and tile auto"),
        ],
    )
    def test_refusal_advises_what_the_settings_are_not(self, variables, figures, changes, advised):
        figures = figures()
        task = make_task(variables, (3000, 4000), SHALLOW.but(**changes))
        with pytest.raises(InputError, match=f"; {advised} would need less$") as caught:
            figures.choose(task, free=30_000_000)
        tiles = " even in tiles of 256 px" in str(caught.value)
        assert tiles == ("remat" not in changes and changes.get("tile") != "off")

    def test_a_small_whole_image_is_advised_where_tiles_take_more(self, variables, figures):
        """A tile of 256 px with what it sees around it is more than an image of 150 px."""
        figures = figures()
        task = make_task(variables, SIZE, ADAM)
        with pytest.raises(InputError) as caught:
            figures.choose(task, free=40_000_000)
        size = int(re.search(r"about (\d+) px would fit", str(caught.value))[1])
        plan = figures.chosen(make_task(variables, (round(size * 0.75), size), ADAM), 40_000_000)
        assert not plan.execution_plan.tile and sum(plan.needs) > 0.8 * limit_of(plan.free)

    def test_refusal_where_no_size_would(self, variables, figures):
        figures = figures()
        with pytest.raises(InputError, match="choose a smaller size"):
            figures.choose(make_task(variables, SIZE), free=60_000)

    def test_a_backend_that_does_not_tell(self, variables):
        silent = Meter(loop=lambda task, execution_plan: None)
        assert choose(make_task(variables, SIZE), free=2**30, meter=silent) is None


class Compiled:
    """``measure``, which compiles a way once only; for small tiles."""

    def __init__(self):
        self.known = {}

    def __call__(self, task, execution_plan):
        key = task.content.shape, task.config, execution_plan, len(task.variables["params"])
        if key not in self.known:
            self.known[key] = measure(task, execution_plan)
        return self.known[key]

    def choose(self, task, *, free):
        return choose(task, free=free, meter=Meter(loop=self), tiles=(128, 64))

    def chosen(self, task, free):
        return checked(self.choose(task, free=free), free)


@pytest.fixture(scope="module")
def compiled():
    return Compiled()


@pytest.mark.optimized
class TestCompiled:
    """With what the compiler says."""

    size = (150, 200)

    @pytest.mark.parametrize(
        "way",
        [
            ExecutionPlan(),
            ExecutionPlan(memory_size=40),
            ExecutionPlan(memory_size=20),
            ExecutionPlan(tile=128),
        ],
        ids=str,
    )
    def test_measuring_again_tells_the_same(self, variables, compiled, way):
        config = ADAM if way.tile else SHALLOW
        task = make_task(variables, self.size, config)
        needed = sum(compiled(task, way))
        if way.tile:  # what is expected of it, before it is compiled, is more
            needed = (needed + sum(compiled(task, ExecutionPlan()))) // 2
        free = int(1.001 * just_enough(needed))
        plan = compiled.chosen(task, free)
        assert plan.execution_plan == way
        again = measure(task, plan.execution_plan)
        np.testing.assert_allclose(again, plan.needs, rtol=1e-3)
        assert sum(again) <= limit_of(free) * 1.001

    @pytest.mark.slow
    def test_pairs_in_bfloat16(self, variables, compiled):
        task = make_task(variables, self.size, SHALLOW.but(tile="off", remat="off"))
        plain = sum(compiled(task, ExecutionPlan(memory_size=10)))
        small = sum(compiled(task, ExecutionPlan(memory_size=10, memory_dtype=BFLOAT16)))
        free = just_enough(min(plain, small) - 1)
        try:
            plan = compiled.chosen(task, free)
        except InputError:
            return
        assert sum(measure(task, plan.execution_plan)) <= 1.02 * limit_of(free)

    @pytest.mark.slow
    def test_refusal_names_a_size_that_fits(self, variables, compiled):
        task = make_task(variables, (300, 400), ADAM)
        free = int(0.55 * sum(compiled(task, ExecutionPlan(tile=64))))
        with pytest.raises(InputError) as caught:
            compiled.choose(task, free=free)
        size = int(re.search(r"about (\d+) px would fit", str(caught.value))[1])
        assert 100 < size < 400
        # A few percent less, for the last windows' sizes do not shrink with the image.
        size = int(0.95 * size)
        compiled.chosen(make_task(variables, (round(size * 0.75), size), ADAM), free)


class TestFitsSurely:
    def test_of_many_layers_it_is_not_sure(self, variables):
        names = {f"relu{block}_1": 1 for block in (1, 2, 3, 4)}
        for changes in ({"content_layers": names}, {"style_layers": names | {"relu1_2": 1}}):
            task = make_task(variables, (48, 64), ADAM.but(**changes))
            assert fits_surely(task, free=2**45) == ("content_layers" not in changes)

    def test_of_an_optimiser_of_ones_own(self, variables):
        """Its state counts."""
        import optax

        task = make_task(variables, (300, 400), ADAM)
        heavy = task._replace(optimizer=optax.lbfgs(memory_size=50))
        assert self.least(heavy) - self.least(task) > 90 * 300 * 400 * 12

    def least(self, task):
        """The least free bytes of which it is sure."""
        low, high = 0, 2**45
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits_surely(task, free=middle) else (middle, high)
        return high

    @pytest.mark.optimized
    @pytest.mark.parametrize(
        "channels, size, changes, regions",
        [
            ((4, 6, 8, 10, 12), (90, 130), {}, 0),
            ((4, 6, 8, 10, 12), (64, 64), {"optimizer": "adam"}, 2),
            ((64, 32, 16, 16, 16), (48, 200), {"optimizer": "adam"}, 0),
            ((64, 128, 16, 16, 16), (72, 64), {"precision": "bfloat16"}, 1),
        ],
    )
    def test_where_it_is_sure_the_whole_fits(self, channels, size, changes, regions):
        variables = init_variables(jax.random.key(0), channels=channels)
        config = SHALLOW.but(**changes)
        task = make_task(variables, size, config, regions=regions)
        assert sum(measure(task, ExecutionPlan())) <= limit_of(self.least(task))

    def test_it_knows_what_costs(self, variables):
        def least(size=(300, 400), regions=0, **changes):
            return self.least(make_task(variables, size, ADAM.but(**changes), regions=regions))

        plain = least()
        assert least((600, 400)) > 1.9 * plain
        assert least(regions=3) > 1.5 * plain
        pairs = least(optimizer="lbfgs", learning_rate=None)
        assert pairs - plain > 200 * 300 * 400 * 12

    @pytest.mark.slow
    @pytest.mark.optimized
    @pytest.mark.parametrize("size", [(64, 96), (150, 130)])
    def test_of_the_full_network(self, size):
        variables = init_variables(jax.random.key(0))
        task = make_task(variables, size, Config.of(optimizer="adam"))
        assert sum(measure(task, ExecutionPlan())) <= limit_of(self.least(task))


class TestRuns:
    """The result is the same to rounding but for L-BFGS's memory."""

    @pytest.fixture
    @staticmethod
    def run(variables, content, style):
        @cache
        def run(execution_plan):
            config = SHALLOW.but(steps=5)
            return stylize(variables, content, style, config=config, execution_plan=execution_plan)

        return run

    @pytest.mark.optimized
    def test_as_many_pairs_as_steps_change_nothing(self, run):
        found, expected = run(ExecutionPlan(memory_size=5)), run(ExecutionPlan())
        np.testing.assert_array_equal(found.history.loss, expected.history.loss)
        np.testing.assert_array_equal(found.image, expected.image)
        np.testing.assert_array_equal(found.state.image, expected.state.image)
        assert found.state.opt_state.inner_state[0].s.shape[0] == 5

    @pytest.mark.parametrize(
        "execution_plan",
        [
            ExecutionPlan(remat=True),
            ExecutionPlan(tile=16),
            ExecutionPlan(tile=32, recompute_content=True, memory_size=3),
            ExecutionPlan(memory_size=2, memory_dtype=BFLOAT16),
        ],
        ids=str,
    )
    def test_the_first_loss(self, run, execution_plan):
        found, expected = run(execution_plan), run(ExecutionPlan())
        assert found.history.loss[0] == pytest.approx(expected.history.loss[0], rel=1e-5)
        assert found.scales[-1].execution_plan == execution_plan


class TestWords:
    @pytest.mark.parametrize(
        "execution_plan, words",
        [
            (ExecutionPlan(), "the whole image"),
            (ExecutionPlan(memory_size=40), "the whole image, L-BFGS remembers 40 pairs"),
            (ExecutionPlan(remat=True), "the whole image, activations computed twice"),
            (ExecutionPlan(tile=256), "tiles of 256 px"),
            (
                ExecutionPlan(256, False, True, 5, BFLOAT16),
                "tiles of 256 px, content features computed again, L-BFGS remembers 5 pairs in "
                "bfloat16",
            ),
        ],
    )
    def test_choice(self, execution_plan, words):
        assert execution_in_words(execution_plan) == words

    def test_plan(self):
        gib = 2**30
        needs = LoopMemory(network=gib, state=2 * gib, targets=0, scratch=gib // 2)
        plan = MemoryPlan(ExecutionPlan(tile=512), needs, 10 * gib, whole=12 * gib)
        assert plan_in_words(plan, shape=(600, 800, 3), process=gib // 4) == (
            "800x600 px: about 3.8 GiB (program 0.25 GiB, network 1.0 GiB, image and optimiser "
            "2.0 GiB, activations 0.5 GiB) of 10.2 GiB; tiles of 512 px, as the usual way would "
            "need 12.2 GiB"
        )
        plan = MemoryPlan(ExecutionPlan(), needs, None)
        assert plan_in_words(plan, shape=(600, 800, 3)) == (
            "800x600 px: about 3.5 GiB (network 1.0 GiB, image and optimiser 2.0 GiB, "
            "activations 0.5 GiB); the whole image"
        )


class TestSettings:
    def test_evaluation(self):
        config = SHALLOW.but(precision="bfloat16")
        found = evaluation(config, ExecutionPlan(tile=64, recompute_content=True))
        assert found == (64, False, True, "bfloat16")

    @pytest.mark.skipif(jax.default_backend() != "cpu", reason="others choose for themselves")
    def test_kernels(self):
        def convolution(config, **options):
            return kernel_options(config, **options)["convolution"]

        assert convolution(SHALLOW) == "winograd"
        assert convolution(SHALLOW, by_rows=True) == "direct"
        assert convolution(SHALLOW.but(convolution="direct")) == "direct"
        narrow = SHALLOW.but(precision="bfloat16")
        assert convolution(narrow) == "direct" and kernel_options(narrow)["dtype"] == BFLOAT16
        assert kernel_options(SHALLOW)["dtype"] is None
