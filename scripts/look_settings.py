"""Settings that are compared, from words, and the steps that each may take in the same time."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nst_jax.cli.sweep import combinations
from nst_jax.config import Config, get_preset
from nst_jax.errors import InputError
from nst_jax.transfer import Progress, Result, stylize

PILOT_STEPS = 8  # of each scale, for its time
Timing = tuple[float, ...]  # seconds a step of each scale, the coarsest first


class Setting(NamedTuple):
    """One of the settings compared.

    Attributes:
      label: how it is called on sheets and in tables.
      words: how it was written.
      config: what it is.
      seed: of its noise.
    """

    label: str
    words: str
    config: Config
    seed: int


def parse_setting(text: str) -> Setting:
    """A setting from ``[LABEL=]PRESET[:NAME=VALUE,...]``; values as ``nst-jax sweep --over`` has
    them, layers and the like joined by ``+``.

    >>> found = parse_setting("soft=gatys:optimizer=adam,steps=300,style_layers=relu1_1=2+relu3_1")
    >>> found.label, found.config.optimizer.name, found.config.loss.style_layers
    ('soft', 'adam', (('relu1_1', 2.0), ('relu3_1', 1.0)))

    Raises:
      InputError: for an unknown preset, setting or value.
    """
    head, _, rest = text.partition(":")
    label, equals, name = head.partition("=")
    preset = get_preset(name if equals else head).config
    label = label if equals else text
    if not rest:
        return Setting(label, text, preset, 0)
    over = rest.split(",")
    try:
        (found,) = combinations(over, config=preset, seed=0, preset=preset)
    except InputError as error:
        raise InputError(f"{label}: {str(error).replace('--over ', '')}") from None
    return Setting(label, text, found.config, found.seed)


def run_setting(
    variables: Any, content: np.ndarray, style: np.ndarray, setting: Setting, *, config: Config
) -> tuple[Result, Timing]:
    """Stylize with the seed of a setting, and time the steps of each scale."""
    totals: dict[int, list[float]] = {}
    before = 0

    def callback(progress: Progress) -> None:
        nonlocal before
        found = totals.setdefault(progress.scale, [0.0, 0])
        found[0] += progress.seconds_per_step * (progress.step - before)
        found[1] += progress.step - before
        before = progress.step

    key = jax.random.key(setting.seed)
    result = stylize(variables, content, style, config=config, key=key, callback=callback)
    return result, tuple(totals[scale][0] / totals[scale][1] for scale in sorted(totals))


def pilot(config: Config) -> Config:
    """The same with a few steps of each scale."""
    return config.but(
        steps=PILOT_STEPS, scale_steps=(PILOT_STEPS,) if config.pyramid.min_size else ()
    )


def measure_settings(
    networks: dict[str, Any],
    settings: Sequence[Setting],
    content: np.ndarray,
    style: np.ndarray,
    *,
    rounds: int,
) -> dict[tuple[str, str], Timing]:
    """Seconds a step of each setting by each network: of rounds in turn, the least.

    Returns:
      (network, label) -> ``Timing``.
    """
    found: dict[tuple[str, str], Timing] = {}
    for number in range(rounds):
        for network, variables in networks.items():
            for setting in settings:
                started, key = time.perf_counter(), (network, setting.label)
                config = pilot(setting.config)
                _, timing = run_setting(variables, content, style, setting, config=config)
                old = found.get(key, timing)
                found[key] = tuple(map(min, old, timing))
                if number == 0:
                    seconds = time.perf_counter() - started
                    print(f"{network} {setting.label}: compiled in {seconds:.0f} s", flush=True)
    return found


def planned(config: Config, timing: Timing, *, seconds: float) -> Config:
    """The setting with as many steps as fit into a time, its scales in the proportion it has.

    >>> planned(Config(steps=100), (0.5,), seconds=20).steps
    40
    >>> found = planned(Config.of(min_size=128, steps=50), (0.1, 0.4), seconds=20)
    >>> found.pyramid.scale_steps, found.steps
    ((40,), 40)
    """
    coarse = len(timing) - 1
    given = config.pyramid.scale_steps or (config.steps,)
    own = [given[min(scale, len(given) - 1)] for scale in range(coarse)] + [config.steps]
    factor = seconds / sum(n * second for n, second in zip(own, timing, strict=True))
    steps = [max(1, round(factor * n)) for n in own]
    return config.but(steps=steps[-1], scale_steps=tuple(steps[:-1]))
