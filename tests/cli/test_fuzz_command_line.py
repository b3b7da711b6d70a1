"""Random command lines and settings: each is accepted, or refused in one line."""

import dataclasses
import math
import shutil
import typing
from pathlib import Path

import numpy as np
import pytest
from helpers.fuzzing import check_ended, command, listing, time_limit
from helpers.images import smooth_image
from helpers.lines import lines
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nst_jax.config import TAPS, Config
from nst_jax.config.config import flat_types
from nst_jax.errors import InputError
from nst_jax.images import save_image


@pytest.fixture
def desk(tmp_path, monkeypatch, tiny_weights_file):
    """A folder with images, a file that is not one, and weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NST_JAX_WEIGHTS", raising=False)
    monkeypatch.setenv("NST_JAX_CACHE", str(tmp_path / "cache"))
    desk = tmp_path / "desk"
    (desk / "empty").mkdir(parents=True)
    monkeypatch.chdir(desk)
    save_image("content.png", smooth_image(12, 16, seed=1))
    save_image("style.png", smooth_image(16, 14, seed=2))
    save_image("mask.png", np.ones((12, 16, 3), np.float32) / 2)
    Path("text.png").write_text("no image")
    shutil.copy(tiny_weights_file, "small.safetensors")
    return desk


def check_line(line, desk, capsys):
    """Check that a command line is accepted, or refused with nothing written."""
    before = listing(desk)
    ended = command(line, capsys)
    check_ended(ended, parser=True)
    after = listing(desk)
    assert not [path for path in after if Path(path).name.startswith(".")]
    if ended.code == 2 and "--overwrite" not in line:
        kept = {path: data for path, data in after.items() if not path.startswith("ck/")}
        assert kept == before
    for path in set(after) - set(before):
        Path(path).unlink()
    for path, data in before.items():
        Path(path).write_bytes(data)
    for folder in ("out", "ck"):
        shutil.rmtree(folder, ignore_errors=True)


FUZZ = dict(
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),  # shrinking takes as long as many examples
)


@settings(max_examples=20, derandomize=True, **FUZZ)
@given(line=lines())
def test_command_lines(line, desk, capsys):
    check_line(line, desk, capsys)


@pytest.mark.campaign
@settings(max_examples=150, **FUZZ)
@given(line=lines())
def test_many_command_lines(line, desk, capsys):
    check_line(line, desk, capsys)


ANY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([*TAPS, "auto", "off", "none", "gram", "lbfgs", "adam", "zero"]),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3)), max_size=3),
    st.just(b"x"),
    st.just(Path("x")),
)


def values(hint):
    """Mostly values of a setting's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        right = st.sampled_from(arguments)
    elif origin is tuple and arguments[-1] is ...:
        right = st.lists(values(arguments[0]), max_size=3).map(tuple)
    elif origin is tuple or hasattr(hint, "_fields"):
        parts = arguments or typing.get_type_hints(hint).values()
        right = st.tuples(*map(values, parts))
    elif arguments:
        right = st.one_of([values(one) for one in arguments])
    elif hint is str:
        right = st.sampled_from([*TAPS, "gram", "features", "wasserstein", "noise", "x.png"])
    else:
        right = {int: st.integers(-1, 20), float: st.floats(0, 2), type(None): st.none()}.get(
            hint, ANY
        )
    return st.one_of(right, right, right, right, ANY)


SETTINGS = flat_types()


@settings(max_examples=200, derandomize=True, **FUZZ)
@given(
    given=st.lists(st.sampled_from(sorted(SETTINGS)), max_size=5, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: values(SETTINGS[name]) for name in names})
    )
)
def test_settings(given):
    """``Config`` accepts settings or refuses them; settings that it accepts can be replaced."""
    with time_limit(5):
        try:
            config = Config.of(**given)
        except (InputError, TypeError, ValueError):  # the last two for wrong types
            return
    assert dataclasses.replace(config) == config or any(
        isinstance(value, float) and math.isnan(value) for value in given.values()
    )
    hash(config)
    _ = config.loss
