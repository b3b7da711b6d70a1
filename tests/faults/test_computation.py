"""Runs whose loss, gradient or optimizer state is not finite: messages, files, exit codes."""

from pathlib import Path

import pytest
from helpers.faulty_runs import COMMANDS, draw_inputs, results

pytestmark = [pytest.mark.campaign, pytest.mark.optimized]
ALWAYS = 99999


@pytest.fixture
def run(workshop, folder):
    """Give a function that runs a command with a fault: ``(fault, first, last, words)``."""
    draw_inputs(folder)

    def run(fault, first, last, words):
        program = (str(Path(__file__).with_name("injected.py")), fault, str(first), str(last))
        return workshop.run(words, folder, program=program)

    return run


@pytest.mark.parametrize(
    "fault, name, at",
    [
        ("loss", "Adam", 6),
        ("loss", "L-BFGS", 6),
        ("loss", "coarse to fine", 4),
        ("gradient", "Adam", 6),
        ("gradient", "L-BFGS", 9),
        ("state", "Adam", 5),
        ("state", "L-BFGS", 5),
        ("state", "L-BFGS with line search", 5),
    ],
)
def test_one_nan_restarts_from_the_best_image(run, folder, fault, name, at):
    words = COMMANDS[name]
    code, log = run(fault, at, at, words)
    assert code == 0 and "was not finite at step" in log and "(1 of 3)" in log
    record = results(folder)["out.json"]
    losses = [loss for loss in record["history"]["total"] if loss is not None]
    assert record["status"] == "done" and record["final_loss"] < losses[0]
    assert record["steps"] >= int(words[words.index("--steps") + 1])
    if "--averaging" not in words:
        assert record["final_loss"] == min(losses)


@pytest.mark.parametrize("fault, name", [("loss", "Adam"), ("gradient", "L-BFGS")])
def test_nan_from_a_step_on_ends_with_the_best_image(run, folder, fault, name):
    code, log = run(fault, 6, ALWAYS, COMMANDS[name])
    assert code == 1 and "nst-jax: diverged at step" in log and "(3 of 3)" in log
    record = results(folder)["out.json"]
    assert record["status"] == "diverged"
    # Losses whose gradient is not finite do not count.
    assert record["final_loss"] == min(record["history"]["total"][:5])
