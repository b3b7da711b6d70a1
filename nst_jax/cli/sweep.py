"""The command ``nst-jax sweep``: several values of settings into one labelled sheet.

Combinations of one structure share a program.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nst_jax.cli import record as report
from nst_jax.cli.checks import (
    check_outputs,
    check_preset_fits,
    check_seed,
    check_size,
    find_network,
    load_init,
)
from nst_jax.cli.fallback import explaining, may_gain_alone, once_more_alone, with_fallback
from nst_jax.cli.messages import log
from nst_jax.cli.options import Sweep, WatchOptions
from nst_jax.cli.outputs import EXIT_CODES, kept_elsewhere, not_written_words
from nst_jax.cli.parsing import input_files
from nst_jax.cli.planning import image_memory, images_in_words, refusal, times
from nst_jax.cli.progress import progress_display
from nst_jax.cli.record import json_path
from nst_jax.cli.regions import check_region_options, load_style_inputs, region_names, with_layers
from nst_jax.cli.stylize import flat_settings
from nst_jax.config.config import INITS, Config, Tile, flat_types, to_flat
from nst_jax.config.factors import Layers, Losses, parse_layers, parse_losses
from nst_jax.config.presets import get_preset
from nst_jax.errors import InputError
from nst_jax.images.read import load_image
from nst_jax.images.sheets import contact_sheet, sheet_shape
from nst_jax.images.write import check_output_sides, save_image
from nst_jax.system.backend import use_compilation_cache
from nst_jax.system.memory import free_bytes, in_gib, own_memory
from nst_jax.system.signals import stop_on_signals
from nst_jax.system.streams import STANDARD
from nst_jax.transfer.batch import check_single, each_result, run_batch, structure
from nst_jax.transfer.batch_programs import Element
from nst_jax.transfer.plan import USABLE
from nst_jax.transfer.problem import Problem, check_initial, check_inputs, make_problem
from nst_jax.transfer.single import run_inputs
from nst_jax.transfer.types import Inputs, Progress, Result
from nst_jax.weights.canonical import Weights

MAX_COMBINATIONS = 200


class Combination(NamedTuple):
    """One image of a sweep.

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
            f"--over asks for {count} images: expected at most {MAX_COMBINATIONS}; leave out "
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


def groups(items: Sequence[Combination], *, batch_size: int) -> list[list[int]]:
    """Indices of the combinations that run together: of one structure, and at most ``batch_size``.

    The groups of a structure are as equal in size as may be, for each size is compiled anew.
    """
    by_structure: dict[Config, list[int]] = {}
    for index, item in enumerate(items):
        by_structure.setdefault(structure(item.config), []).append(index)
    result: list[list[int]] = []
    for config, indices in by_structure.items():
        # A line search's go in turn anyway: alone, each is written when it is done.
        most = 1 if config.optimizer.name == "lbfgs-linesearch" else batch_size
        size = -(-len(indices) // -(-len(indices) // most))
        result += [indices[start : start + size] for start in range(0, len(indices), size)]
    return result


COLUMNS = 6  # of a sweep over one setting


class Read(NamedTuple):
    """What a sweep has read.

    Attributes:
      shape: height and width of the images.
      inputs: the images and masks for combinations of each structure, see
        ``transfer.batch.structure``.
      inits: the initial images of files, by ``config.initial.init``.
      regions: what the record says of the regions.
    """

    shape: tuple[int, int]
    inputs: dict[Config, Inputs]
    inits: dict[str, np.ndarray | None]
    regions: list[dict[str, Any]]


def sweep(options: Sweep) -> int:
    """Run ``nst-jax sweep``; see ``options.Sweep``.

    Returns:
      The exit code: 0 done; 1 where an image diverged; 130 interrupted, with the sheet written.

    Raises:
      InputError: before anything is written; for outputs that cannot be written, at the end.
    """
    started = time.perf_counter()
    run = options.run
    items = find_combinations(options)
    read = read_inputs(options, items)
    weights = find_network(run, [item.config for item in items])
    use_compilation_cache()  # only now: bad input leaves nothing behind
    results = run_groups(items, read, weights, batch_size=options.batch_size)
    facts = report.run_record(
        run.config,
        weights,
        shape=read.shape,
        options=flat_settings(options, masks=read.regions),
    )
    images = [combination_record(item, result) for item, result in zip(items, results)]
    timing = {"timing": {"total_s": time.perf_counter() - started}}
    sheet = make_sheet(items, results, blank=np.ones((*read.shape, 3), np.float32))
    write_sheet(options.output, sheet, facts | {"images": images} | timing)
    print(options.output)
    statuses = {"stopped" if result is None else result.status for result in results}
    for status in ("stopped", "diverged"):
        if status in statuses:
            log(f"{status}: see the labels of the sheet")
            return EXIT_CODES[status]
    return 0


def find_combinations(options: Sweep) -> list[Combination]:
    """The combinations to make; they and the other options are checked before any image is read.

    Raises:
      InputError: for options that contradict each other, and outputs that cannot be written.
    """
    run = options.run
    preset = get_preset(run.preset).config
    items = combinations(options.over, config=run.config, seed=run.seed, preset=preset)
    check_size(options.size)
    if options.batch_size < 1:
        raise InputError(f"batch_size is {options.batch_size}: expected 1 or more")
    for item in items:
        check_preset_fits(item.config, preset=run.preset, command="sweep")
        check_single(item.config)
        check_region_options(options.regions, options.styles, config=item.config)
    inits = {item.config.initial.init for item in items} - {run.config.initial.init, *INITS}
    if options.output == STANDARD:
        raise InputError("a sweep writes a sheet and a JSON file, not standard output: name a file")
    files = [*input_files(options), *map(Path, sorted(inits))]
    check_outputs(options.output, run, WatchOptions(), inputs=files)
    return items


def read_inputs(options: Sweep, items: Sequence[Combination]) -> Read:
    """Read the images and check them for each combination.

    Raises:
      InputError: for images that cannot be read or do not fit.
    """
    content = load_image(options.content, size=options.size)
    sheet = sheet_shape(content.shape, labels=make_labels(items), columns=sheet_columns(items))
    check_output_sides(options.output, sheet)
    read = load_style_inputs(
        options.regions,
        options.styles,
        config=items[0].config,
        shape=content.shape[:2],
        size=options.size,
    )
    inits = {
        item.config.initial.init: load_init(item.config, shape=content.shape) for item in items
    }
    for init in inits.values():
        if init is not None:
            check_initial(init, shape=content.shape)
    inputs: dict[Config, Inputs] = {}
    for item in items:
        if (key := structure(item.config)) not in inputs:
            styles = with_layers(read, options.regions, options.styles, config=item.config)
            inputs[key] = check_inputs(
                content,
                styles.styles,
                config=item.config,
                guidance=styles.guidance,
                names=region_names(styles.regions),
            )
    return Read(content.shape[:2], inputs, inits, read.regions)


def write_sheet(output: Path, sheet: np.ndarray, record: dict[str, Any]) -> None:
    """Write the sheet, then its record.

    Raises:
      InputError: where something cannot be written; it says where the sheet is kept.
    """
    try:
        save_image(output, sheet)
    except Exception as error:  # of an encoder it may be any
        words = not_written_words(error, output)
        raise InputError(f"{words}{kept_elsewhere(output, sheet)}") from None
    try:
        report.write_json(json_path(output), record)
    except OSError as error:
        words = not_written_words(error, json_path(output))
        raise InputError(f"{words}the sheet is written as {output}") from None


def run_groups(
    items: Sequence[Combination], read: Read, weights: Weights, *, batch_size: int
) -> list[Result | None]:
    """Run all combinations, those of one structure together.

    Returns:
      A result for each combination, or None where the run was stopped before.

    Raises:
      InputError: where the memory does not suffice.
    """
    results: list[Result | None] = [None] * len(items)
    problems: dict[Any, Problem] = {}
    work = groups(items, batch_size=batch_size)
    steps = sum(items[group[0]].config.steps for group in work)
    done = 0
    # Once: what a group frees stays with the process, and serves the next.
    free, process = free_bytes(jax.local_devices()[0]), own_memory()
    with progress_display(steps) as show, stop_on_signals() as asked:

        def callback(progress: Progress) -> bool:
            # One line for the whole batch: the mean of their losses.
            info = jax.tree.map(partial(np.mean, dtype=float), progress.info)
            show(progress._replace(info=info, step=done + progress.step, steps=steps))
            return asked() is None

        for group in work:
            first = items[group[0]]
            key = structure(first.config)
            with explaining(read.shape, advice="fewer --batch-size, "):
                if key not in problems:
                    problems = {}  # one at a time: each holds features
                    problems = {
                        key: make_problem(weights.variables, read.inputs[key], config=first.config)
                    }
                    log_batch_memory(
                        problems[key], batch_size=len(group), free=free, process=process
                    )
            own = run_group([items[index] for index in group], read, problems[key], callback)
            for index, result in zip(group, own):
                if may_gain_alone(result, steps=first.config.steps):
                    result = run_alone(items[index], read, weights, asked=asked)
                results[index] = result
            done += first.config.steps
            if len(own) < len(group) or any(one.status == "stopped" for one in own):
                break
            if asked() is not None:
                break
    return results


def run_group(
    items: Sequence[Combination],
    read: Read,
    problem: Problem,
    callback: Callable[[Progress], bool],
) -> list[Result]:
    """Run combinations of one structure together; half as many at once after too little memory.

    Returns:
      Their results; fewer where the run was stopped.

    Raises:
      InputError: where the memory does not suffice for one.
    """
    results: list[Result] = []

    def attempt(batch_size: int) -> None:
        while len(results) < len(items):
            batch = [
                Element(
                    problem,
                    item.config,
                    jax.random.key(item.seed),
                    read.inits[item.config.initial.init],
                )
                for item in items[len(results) : len(results) + batch_size]
            ]
            found = each_result(jax.device_get(run_batch(batch, callback=callback)))
            results.extend(found)
            if any(result.status == "stopped" for result in found):
                return

    def smaller(batch_size: int) -> int | None:
        if batch_size == 1:
            return None
        log(f"out of memory, going on by {batch_size // 2}")
        return batch_size // 2

    shape, advice = read.shape, "fewer --batch-size, "
    with_fallback(attempt, len(items), smaller=smaller, shape=shape, advice=advice)
    return results


def run_alone(
    item: Combination, read: Read, weights: Weights, *, asked: Callable[[], int | None]
) -> Result:
    """An image that diverged among others, made once more as ``nst-jax stylize`` makes it."""
    init = read.inits[item.config.initial.init]
    inputs = read.inputs[structure(item.config)]._replace(init=init)
    work = partial(
        run_inputs,
        weights.variables,
        inputs,
        config=item.config,
        key=jax.random.key(item.seed),
    )
    with explaining(read.shape, advice="fewer --batch-size, "):
        return once_more_alone(work, name=name_of(item), asked=asked)


def name_of(item: Combination) -> str:
    """A combination's values in one line."""
    return ", ".join(map(" ".join, item.words.items()))


def log_batch_memory(problem: Problem, *, batch_size: int, free: int | None, process: int) -> None:
    """Say what so many images take together.

    Raises:
      InputError: where it does not fit, with the batch size that would.
    """
    one = image_memory(problem, free=free)
    if one is None:
        return
    # The targets are there once. On CPUs the images take their chunks of steps in turn.
    active = 1 if jax.default_backend() == "cpu" else batch_size
    together = times(one, batch_size)._replace(targets=one.targets, scratch=active * one.scratch)
    if free is not None and together.own > USABLE * free:
        height, width, _ = problem.shape
        fixed = one.targets + (one.scratch if active < batch_size else 0)
        fitting = int(USABLE * free - fixed) // ((together.own - fixed) // batch_size)
        if fitting < 1:
            raise refusal(one, free, width=width, height=height)
        raise InputError(
            f"{batch_size} images of {width}x{height} px at once need about "
            f"{in_gib(together.own / USABLE)}, {in_gib(free)} are free: "
            f"choose --batch-size {fitting}"
        )
    words = images_in_words(problem, together, free=free, process=process, images=batch_size)
    log(words)


def combination_record(item: Combination, result: Result | None) -> dict[str, Any]:
    """What the record says of one image."""
    record: dict[str, Any] = {"values": item.words, "seed": item.seed}
    if result is None:
        return record | {"status": "not run"}
    history = {"history": report.history_record(result.history)}
    return record | report.outcome_record(result) | history


def make_sheet(
    items: Sequence[Combination], results: Sequence[Result | None], *, blank: np.ndarray
) -> np.ndarray:
    """The images with their values, the last setting along the rows."""
    statuses = ["not run" if result is None else result.status for result in results]
    labels = [
        label if status == "done" else f"{label}\n{status}"
        for label, status in zip(make_labels(items), statuses, strict=True)
    ]
    images = [blank if result is None else np.asarray(result.image) for result in results]
    return contact_sheet(images, labels=labels, columns=sheet_columns(items))


def make_labels(items: Sequence[Combination]) -> list[str]:
    """The values of each image."""
    return ["\n".join(f"{name} {value}" for name, value in item.words.items()) for item in items]


def sheet_columns(items: Sequence[Combination]) -> int:
    """Images in a row: as many as the last setting has values, or a few where it is alone."""
    *others, name = items[0].words
    last = len({item.words[name] for item in items})
    return last if others else min(COLUMNS, last)
