"""What is done after too little memory, and after a divergence among others."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from nst_jax.cli.fallback import may_gain_alone, once_more_alone, with_fallback
from nst_jax.errors import InputError

OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")


def halves(way):
    return way // 2 or None


def fits(most, error=OUT_OF_MEMORY):
    """An attempt for which ways up to a number fit, and the ways that it was asked for."""
    asked = []

    def attempt(way):
        asked.append(way)
        if way > most:
            raise error
        return f"made by {way}"

    return attempt, asked


@pytest.mark.parametrize("most, asked", [(9, [8]), (4, [8, 4]), (1, [8, 4, 2, 1])])
def test_the_next_smaller_way(most, asked):
    attempt, ways = fits(most)
    assert with_fallback(attempt, 8, smaller=halves, shape=(3, 4)) == f"made by {asked[-1]}"
    assert ways == asked


def test_no_way_is_left():
    attempt, ways = fits(0)
    with pytest.raises(
        InputError, match="out of memory at 4x3 px: choose .*, fewer --batch-size, or"
    ):
        with_fallback(attempt, 4, smaller=halves, shape=(3, 4), advice="fewer --batch-size, ")
    assert ways == [4, 2, 1]


def test_other_errors_are_faults():
    attempt, ways = fits(0, jax.errors.JaxRuntimeError("INTERNAL: something else"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        with_fallback(attempt, 4, smaller=halves, shape=(3, 4))
    assert ways == [4]


def result(status="diverged", *, steps=3, loss=1.0):
    return SimpleNamespace(status=status, loss=loss, history=SimpleNamespace(loss=[0.0] * steps))


@pytest.mark.parametrize(
    "found, gains",
    [
        (result(), True),
        (result("done"), False),
        (result("stopped"), False),
        (result(steps=4), False),
        (result(loss=np.nan), False),
        (result(loss=np.inf), False),
    ],
)
def test_who_can_go_on(found, gains):
    assert may_gain_alone(found, steps=4) == gains


@pytest.mark.parametrize("signal", [None, 2])
def test_once_more_alone(signal, capsys):
    class Result(SimpleNamespace):
        def _replace(self, **changes):
            return Result(**self.__dict__ | changes)

    def work(*, callback):
        assert callback(None) == (signal is None)
        return Result(recoveries=2, state="large", status="done")

    again = once_more_alone(work, name="a.png", asked=lambda: signal)
    assert again.state is None and again.status == "done"
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("nst-jax: a.png: ") and first.endswith("making it once more alone")
    assert second.endswith("went on from the best image with a smaller step (2 of 3)")
