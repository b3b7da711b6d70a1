"""Settings and the values to try, from the command line; combinations that share a program."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from nst_jax.config import Config, Tile, flat_types, to_flat
from nst_jax.errors import InputError
from nst_jax.job_inputs import check_seed
from nst_jax.lanes import structure
from nst_jax.layer_factors import Layers, parse_layers
from nst_jax.loss_factors import Losses, parse_losses

MAX_COMBINATIONS = 200


class Combination(NamedTuple):
    """One picture of a sweep.

    Attributes:
      words: setting -> value as it was written.
      config: the settings.
      seed: the seed of its noise.
    """

    words: dict[str, str]
    config: Config
    seed: int


def combinations(
    over: Sequence[str], *, config: Config, seed: int, preset: Config = Config()
) -> list[Combination]:
    """Every combination of the swept settings' values; the last setting changes fastest.

    Args:
      over: ``NAME=VALUE,VALUE`` each; layers of one value are joined by ``+``, and so are the
        steps of several scales.
      config: all other settings.
      seed: likewise.
      preset: the settings of which ``config`` is a variation; another optimiser does not take over
        its learning rate and memory size.

    Raises:
      InputError: for unknown settings and values, and combinations that ``Config`` refuses.
    """
    if not over:
        raise InputError("nothing to sweep: expected --over NAME=VALUE,VALUE")
    swept: dict[str, list[str]] = {}
    for text in over:
        name, equals, values = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not equals or not all(value.strip() for value in values.split(",")):
            raise InputError(f"--over {text!r}: expected NAME=VALUE,VALUE")
        if name in swept:
            raise InputError(f"--over names {name} twice: give all its values at once")
        swept[name] = [value.strip() for value in values.split(",")]
        if len(set(swept[name])) < len(swept[name]):
            raise InputError(f"--over {text!r} has a value twice: expected different ones")
    parsed = {name: [_parse(name, value) for value in values] for name, values in swept.items()}
    count = math.prod(map(len, parsed.values()))
    if count > MAX_COMBINATIONS:
        raise InputError(
            f"--over asks for {count} pictures: expected at most {MAX_COMBINATIONS}; leave out "
            "some values"
        )
    if "scale_factor" in swept and config.pyramid.min_size is None and "min_size" not in swept:
        raise InputError("--over scale_factor has no effect without min_size: leave it out")
    words = itertools.product(*swept.values())
    values = itertools.product(*parsed.values())
    result = [
        _combine(
            dict(zip(swept, texts, strict=True)),
            dict(zip(swept, numbers, strict=True)),
            config=config,
            seed=seed,
            preset=preset,
        )
        for texts, numbers in zip(words, values, strict=True)
    ]
    inits = {item.config.initial.init for item in result}
    for name in swept:
        needed = {"blend"} if name == "noise_ratio" else {"noise", "blend"}
        if name in ("seed", "noise", "noise_scale", "noise_ratio") and not inits & needed:
            raise InputError(
                f"--over {name} has no effect with init {' and '.join(sorted(inits))}: expected "
                f"--init {' or '.join(sorted(needed))}"
            )
    return result


def _combine(
    words: dict[str, str], values: dict[str, Any], *, config: Config, seed: int, preset: Config
) -> Combination:
    seed = values.pop("seed", seed)
    if "optimizer" in values:
        own = to_flat(preset)
        asked = {name: value for name, value in to_flat(config).items() if value != own[name]}
        return Combination(words, preset.but(**asked | values), seed)
    return Combination(words, config.but(**values), seed)


def _parse(name: str, text: str) -> Any:
    """The value of a setting from its text; ``Config`` checks it further."""
    types = {"seed": int} | flat_types()
    if name not in types:
        expected = ", ".join(flat_types())
        raise InputError(f"--over names {name!r}: expected seed or one of {expected}")
    hint = types[name]
    if hint == Layers:
        return parse_layers(text.replace("+", ","))
    if hint == Losses:
        return parse_losses(text.replace("+", ","))
    if hint == tuple[str, ...]:
        return tuple(text.split("+"))
    if hint is bool:
        return _boolean(name, text)
    if hint == tuple[int, ...]:
        return tuple(_number(name, item, kind=int) for item in text.split("+"))
    if hint == Tile:
        return int(text) if text.removeprefix("-").isdecimal() else text
    if hint in (float, float | None):
        return _number(name, text, kind=float)
    if hint not in (int, int | None):
        return text
    value = _number(name, text, kind=int)
    if name == "seed":
        check_seed(value)
    return value


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise InputError(f"--over {name}: {text!r} is neither true nor false")
    return text.lower() == "true"


def _number(name: str, text: str, *, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        whole = "whole " if kind is int else ""
        raise InputError(f"--over {name}: {text!r} is no {whole}number") from None


def groups(items: Sequence[Combination], *, lanes: int) -> list[list[int]]:
    """Indices of the combinations that run together: of one structure, and at most ``lanes``.

    The groups of a structure are as equal in size as may be, for each size is compiled anew.
    """
    by_structure: dict[Config, list[int]] = {}
    for index, item in enumerate(items):
        by_structure.setdefault(structure(item.config), []).append(index)
    result: list[list[int]] = []
    for config, indices in by_structure.items():
        # A line search's go in turn anyway: alone, each is written when it is done.
        most = 1 if config.optimizer.name == "lbfgs-linesearch" else lanes
        size = -(-len(indices) // -(-len(indices) // most))
        result += [indices[start : start + size] for start in range(0, len(indices), size)]
    return result
