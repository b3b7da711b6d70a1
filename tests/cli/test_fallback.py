"""Fallback to cheaper options after running out of memory, and reruns after a divergence."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from nst_jax.cli.fallback import rerun_alone, run_with_fallback, should_rerun
from nst_jax.errors import InputError

OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")


def run(most, first, *, error=OUT_OF_MEMORY, advice=""):
    """Run with options that are halved until they fit; returns the result and the attempts."""
    attempts = []

    def attempt(option):
        attempts.append(option)
        if option > most:
            raise error
        return f"done with {option}"

    def half(option):
        return option // 2 or None

    try:
        given = {"next_option": half, "shape": (3, 4), "advice": advice}
        return run_with_fallback(attempt, first, **given), attempts
    except Exception as raised:
        return raised, attempts


@pytest.mark.parametrize("most, expected", [(9, [8]), (4, [8, 4]), (1, [8, 4, 2, 1])])
def test_the_first_option_that_fits(most, expected):
    assert run(most, 8) == (f"done with {expected[-1]}", expected)


def test_no_option_fits():
    error, attempts = run(0, 4, advice="a smaller --batch-size, ")
    assert isinstance(error, InputError) and attempts == [4, 2, 1]
    message = "out of memory at 4x3 px: choose a smaller --size, a smaller --batch-size, or for "
    assert str(error).startswith(message)


def test_other_errors_are_not_caught():
    fault = jax.errors.JaxRuntimeError("INTERNAL: something else")
    assert run(0, 4, error=fault) == (fault, [4])


def result(status="diverged", *, steps=3, loss=1.0):
    return SimpleNamespace(status=status, loss=loss, history=SimpleNamespace(loss=[0.0] * steps))


@pytest.mark.parametrize(
    "found, expected",
    [
        (result(), True),
        (result("done"), False),
        (result("stopped"), False),
        (result(steps=4), False),
        (result(loss=np.inf), False),
    ],
)
def test_only_an_image_that_can_recover_is_run_again(found, expected):
    assert should_rerun(found, steps=4) == expected


@pytest.mark.parametrize("signal", [None, 2])
def test_rerun_alone(signal, capsys):
    class Result(SimpleNamespace):
        def _replace(self, **changes):
            return Result(**self.__dict__ | changes)

    def run(*, callback):
        assert callback(None) == (signal is None)
        return Result(recoveries=2, state="large", status="done")

    again = rerun_alone(run, name="a.png", stop_signal=lambda: signal)
    assert again.state is None and again.status == "done"
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("nst-jax: a.png: ") and first.endswith("running it again alone")
    assert second.endswith("restarted from the best image with a smaller step (2 of 3)")
