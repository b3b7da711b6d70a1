"""Memory of batches: how many images fit at once, and the words for it."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers.records import make_problem

from nst_jax.cli.planning import (
    batch_memory,
    batch_that_fits,
    batch_too_large_error,
    image_memory,
    images_in_words,
)
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.optim import run
from nst_jax.transfer import plan
from nst_jax.transfer.loop import iterate
from nst_jax.transfer.plan import USABLE, loop_memory, tree_bytes
from nst_jax.transfer.problem import start
from nst_jax.transfer.types import LoopMemory


class TestFits:
    sizes = LoopMemory(network=1000, state=50, targets=30, scratch=20)

    def test_a_margin_is_left(self):
        for free, at_most, number in ((10_000, 1000, 85), (10_000, 8, 8), (117, 8, 0), (118, 8, 1)):
            assert batch_that_fits(self.sizes, free, at_most=at_most) == number

    def test_an_image_that_does_not_fit_is_refused_with_numbers(self):
        gib = 2**30
        sizes = LoopMemory(int(USABLE * gib), int(USABLE * 3 * gib), 0, 0)
        error = batch_too_large_error(sizes, 2 * gib, width=512, height=384)
        assert isinstance(error, InputError)
        assert "512x384 px needs about 3.0 GiB, 2.0 GiB are free: choose" in str(error)


CONFIG = Config.of(content_layers=["relu2_1"], style_layers=["relu1_1", "relu2_1"])


@pytest.mark.optimized
class TestImageMemory:
    def measure(self, variables, content, style, **settings):
        problem = make_problem(variables, content, [style], config=CONFIG.but(**settings))
        return problem, image_memory(problem)

    def test_the_parts_are_counted(self, variables, content, style):
        problem, found = self.measure(variables, content, style, memory_size=7)
        assert found.network == sum(x.nbytes for x in jax.tree.leaves(problem.variables))
        targets = sum(x.nbytes for x in jax.tree.leaves(problem.targets))
        # The image, the best one, and L-BFGS's pairs and its last image and gradient.
        assert found.per_image > content.nbytes * (2 + 2 * 7 + 2) + targets
        assert found.per_image < 100 * content.nbytes

    def test_a_pair_of_lbfgs_takes_two_images(self, variables, content, style):
        one, more = (
            self.measure(variables, content, style, memory_size=size)[1].per_image
            for size in (5, 25)
        )
        assert more - one == pytest.approx(20 * 2 * content.nbytes, rel=0.05)

    def test_the_program_serves_the_run(self, variables, content, style, caplog):
        config = CONFIG.but(memory_size=11, steps=2)
        problem, _ = self.measure(variables, content, style, memory_size=11)
        arguments = {"variables": problem.variables, "targets": problem.targets}
        image = problem.initial(config, None, None)
        state = start(problem.solver, image, *arguments.values())
        with jax.log_compiles():
            iterate(partial(run, problem.solver, **arguments), state, steps=config.steps)
        assert not [record for record in caplog.messages if "jit(run)" in record]

    def test_scratch_memory_counts_twice_on_cpus(self, variables, content, style):
        problem, found = self.measure(variables, content, style)
        given = content.shape, np.float32, problem.variables, problem.targets
        once = loop_memory(problem.solver, *given)
        copies = 2 if jax.default_backend() == "cpu" else 1
        assert found == once._replace(scratch=copies * once.scratch)

    def test_no_memory_analysis(self, variables, content, style, monkeypatch):
        problem, _ = self.measure(variables, content, style)
        silent = SimpleNamespace(memory_analysis=lambda: None)
        lowered = SimpleNamespace(compile=lambda: silent)
        monkeypatch.setattr(plan, "run", SimpleNamespace(lower=lambda *a, **k: lowered))
        assert image_memory(problem) is None


class TestTogether:
    one = LoopMemory(network=2**30, state=2**28, targets=2**27, scratch=2**29)

    def test_parts(self):
        assert batch_memory(self.one, 1) == self.one
        assert batch_memory(self.one, 3, networks=2) == (2**31, 3 * 2**28, 3 * 2**27, 3 * 2**29)

    def test_words(self, variables, content, style):
        config = CONFIG.but(tile=16)
        problem = make_problem(variables, content, [style], config=config)
        height, width, _ = content.shape
        words = images_in_words(
            problem, batch_memory(self.one, 4), free=2**33, process=2**28, images=4
        )
        assert words == (
            f"{width}x{height} px, 4 images at once: about 4.8 GiB (program 0.25 GiB, network "
            "1.0 GiB, targets 0.5 GiB, image and optimiser 1.0 GiB, activations 2.0 GiB) of "
            "8.2 GiB; tiles of 16 px"
        )


def test_tree_bytes():
    shape = jax.ShapeDtypeStruct((4, 5), "bfloat16")
    tree = {"a": [np.zeros((2, 3), np.float64), None], "b": (shape, np.int32(1)), "c": {}}
    assert tree_bytes(tree) == 6 * 8 + 20 * 2 + 4
    assert tree_bytes(None) == 0
