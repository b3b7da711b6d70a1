"""Types of values that were read from files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest

from nst_jax.annotations import check_type
from nst_jax.batch_options import Batch
from nst_jax.config import Config
from nst_jax.options import RunOptions, StyleOptions, WatchOptions


class Pair(NamedTuple):
    left: int
    right: float | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    pair: Pair
    way: Literal["on", "off"] | int = "on"
    names: dict[str, list[np.ndarray | None]]


NAMES = {"a": [np.ones(2), None]}


@pytest.mark.parametrize(
    "value, hint",
    [
        *((1, int), (1, float), (1.5, float), (None, None), (True, bool), ("x", str)),
        *((float("nan"), float), (2**53, float), (10**30, int), (object(), Any)),
        *((Path("x"), Path), ((), tuple[int, ...]), ((1, "x"), tuple[int, str])),
        *(([], list[int]), ({}, dict[str, int]), ("on", Literal["on", 1]), (1, Literal["on", 1])),
        (Options(pair=Pair(1, 2.5), way=3, names=NAMES), Options),
        (Config(), Config),
        (RunOptions(weights=Path("x"), config=Config.of(scale_factor=1.2, min_size=9)), RunOptions),
        (WatchOptions(), WatchOptions),
        (Batch(contents=(), output_dir=Path(), styles=StyleOptions(style=())), Batch),
    ],
)
def test_right_types(value, hint):
    check_type(value, hint, name="value")


@pytest.mark.parametrize(
    "value, hint",
    [
        *((True, int), (True, float), (1.0, int), ("1", float), (2**53 + 1, float), (0, bool)),
        *((None, int), (0, None), ("x", Path), (Path("a\0"), Path), ([1], tuple[int, ...])),
        *(((1,), tuple[int, str]), ((1, 2), tuple[int, str]), ((), tuple[int, str])),
        *(([1, None], list[int]), ({1: 1}, dict[str, int]), ({"a": "b"}, dict[str, int])),
        *((True, Literal["on", 1]), ("of", Literal["on", 1]), ((1, 2.0), Pair)),
        *((Pair(1, "2"), Pair), (Pair(None), Pair), ("x", np.ndarray)),  # type: ignore[arg-type]
        (Options(pair=Pair(1), way="x", names={}), Options),  # type: ignore[arg-type]
        (Options(pair=Pair(1), names={"a": [1]}), Options),  # type: ignore[list-item]
        (RunOptions(deterministic=1), RunOptions),  # type: ignore[arg-type]
    ],
)
def test_other_types(value, hint):
    with pytest.raises(TypeError, match="^value"):
        check_type(value, hint, name="value")
