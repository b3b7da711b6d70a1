"""The command ``nst-jax sweep``: images for several values of settings, on one labelled sheet.

Combinations with the same ``transfer.batch.structure`` share a compiled program.
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
from nst_jax.cli.fallback import (
    memory_errors_to_input_errors,
    rerun_alone,
    run_with_fallback,
    should_rerun,
)
from nst_jax.cli.messages import log
from nst_jax.cli.options import Sweep, WatchOptions
from nst_jax.cli.outputs import EXIT_CODES, save_elsewhere, write_error_message
from nst_jax.cli.parsing import input_files
from nst_jax.cli.planning import batch_memory, batch_too_large_error, image_memory, images_in_words
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
from nst_jax.system.memory import free_bytes, in_gib, process_memory
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

MEMORY_ADVICE = "a smaller --batch-size, "  # in errors of too little memory

COLUMNS = 6  # of a sheet for a single setting


class Combination(NamedTuple):
    """One image of a sweep.

    Attributes:
      values: from the name of each swept setting to its value, as given on the command line.
      config: all settings.
      seed: seed of the noise.
    """

    values: dict[str, str]
    config: Config
    seed: int


def combinations(
    over: Sequence[str], *, config: Config, seed: int, preset: Config = Config()
) -> list[Combination]:
    """All combinations of the values of the swept settings; the last setting changes fastest.

    Args:
      over: ``NAME=VALUE,VALUE`` each. Several layers in one value are joined by ``+``, and so are
        the steps of several scales.
      config: the other settings.
      seed: seed of the noise, unless it is swept.
      preset: the preset from which ``config`` was made. A combination with another optimiser does
        not take the preset's learning rate and memory size, only those that ``config`` changes.

    Raises:
      InputError: if a setting or value is unknown, or ``Config`` rejects a combination.
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
            raise InputError(f"--over names {name} twice: give all its values in one --over")
        swept[name] = [value.strip() for value in values.split(",")]
        if len(set(swept[name])) < len(swept[name]):
            raise InputError(f"--over {text!r} has a value twice: expected different values")
    parsed = {name: [_parse(name, value) for value in values] for name, values in swept.items()}
    count = math.prod(map(len, parsed.values()))
    if count > MAX_COMBINATIONS:
        raise InputError(
            f"--over makes {count} combinations: expected at most {MAX_COMBINATIONS}; leave out "
            "some values"
        )
    if "scale_factor" in swept and config.pyramid.min_size is None and "min_size" not in swept:
        raise InputError("--over scale_factor has no effect without min_size: leave it out")
    result = [
        _combine(
            dict(zip(swept, texts, strict=True)),
            dict(zip(swept, values, strict=True)),
            config=config,
            seed=seed,
            preset=preset,
        )
        for texts, values in zip(
            itertools.product(*swept.values()), itertools.product(*parsed.values()), strict=True
        )
    ]
    inits = {item.config.initial.init for item in result}
    for name in swept:
        # ``noise_ratio`` is the weight of the noise in a blend with the content.
        needed = {"blend"} if name == "noise_ratio" else {"noise", "blend"}
        if name in ("seed", "noise", "noise_scale", "noise_ratio") and not inits & needed:
            raise InputError(
                f"--over {name} has no effect with init {' and '.join(sorted(inits))}: expected "
                f"--init {' or '.join(sorted(needed))}"
            )
    return result


def _combine(
    texts: dict[str, str], values: dict[str, Any], *, config: Config, seed: int, preset: Config
) -> Combination:
    seed = values.pop("seed", seed)
    if "optimizer" in values:
        # Changing the optimiser resets its learning rate and memory size. So start from the preset,
        # and apply the optimiser together with the user's settings: those that differ from it.
        before = to_flat(preset)
        changes = {name: value for name, value in to_flat(config).items() if value != before[name]}
        return Combination(texts, preset.but(**changes | values), seed)
    return Combination(texts, config.but(**values), seed)


def _parse(name: str, text: str) -> Any:
    """Parse the value of a setting; ``Config`` checks its range."""
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
    if hint == Tile:  # a number, or a word that ``Config`` checks
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
        raise InputError(f"--over {name}: {text!r} is not a truth value: expected true or false")
    return text.lower() == "true"


def _number(name: str, text: str, *, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        expected = "an integer" if kind is int else "a number"
        raise InputError(f"--over {name}: {text!r} is not {expected}") from None


def groups(items: Sequence[Combination], *, batch_size: int) -> list[list[int]]:
    """Group combinations into batches of one structure.

    Args:
      items: the combinations.
      batch_size: maximum size of a batch. The batches of a structure have nearly equal sizes,
        because every size is compiled separately.

    Returns:
      The indices of the combinations in each batch.
    """
    by_structure: dict[Config, list[int]] = {}
    for index, item in enumerate(items):
        by_structure.setdefault(structure(item.config), []).append(index)
    result: list[list[int]] = []
    for config, indices in by_structure.items():
        # Runs with a line search are computed one after another in any case.
        largest = 1 if config.optimizer.name == "lbfgs-linesearch" else batch_size
        size = -(-len(indices) // -(-len(indices) // largest))
        result += [indices[start : start + size] for start in range(0, len(indices), size)]
    return result


class SweepInputs(NamedTuple):
    """The checked inputs of a sweep.

    Attributes:
      shape: height and width of the images.
      inputs: images and masks for each ``transfer.batch.structure``.
      inits: initial images by ``config.initial.init``; None unless it names a file.
      regions: the regions, for the record.
    """

    shape: tuple[int, int]
    inputs: dict[Config, Inputs]
    inits: dict[str, np.ndarray | None]
    regions: list[dict[str, Any]]


def sweep(options: Sweep) -> int:
    """Run ``nst-jax sweep``; see ``options.Sweep``.

    Returns:
      The exit code: 0 if all images are done, 1 if one diverged, 130 after an interrupt. The sheet
      is written in each case.

    Raises:
      InputError: for bad input, before anything is written; at the end, if an output cannot be
        written.
    """
    started = time.perf_counter()
    run = options.run
    items = find_combinations(options)
    inputs = read_inputs(options, items)
    weights = find_network(run, [item.config for item in items])
    use_compilation_cache()  # after all checks: bad input must not create the cache folder
    results = run_groups(items, inputs, weights, batch_size=options.batch_size)
    facts = report.run_record(
        run.config,
        weights,
        shape=inputs.shape,
        options=flat_settings(options, masks=inputs.regions),
    )
    images = [combination_record(*pair) for pair in zip(items, results, strict=True)]
    timing = {"timing": {"total_s": time.perf_counter() - started}}
    sheet = make_sheet(items, results, blank=np.ones((*inputs.shape, 3), np.float32))
    write_sheet(options.output, sheet, facts | {"images": images} | timing)
    print(options.output)
    statuses = {"stopped" if result is None else result.status for result in results}
    for status in ("stopped", "diverged"):
        if status in statuses:
            log(f"{status}: the labels on the sheet show which images")
            return EXIT_CODES[status]
    return 0


def find_combinations(options: Sweep) -> list[Combination]:
    """Find the combinations, and check all options before any image is read.

    Raises:
      InputError: if options contradict each other, or an output cannot be written.
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


def read_inputs(options: Sweep, items: Sequence[Combination]) -> SweepInputs:
    """Read the images and check them for each combination.

    Raises:
      InputError: if an image cannot be read, or does not fit the settings.
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
    # Combinations of one structure have the same layers and guides, so one check suffices.
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
    return SweepInputs(content.shape[:2], inputs, inits, read.regions)


def write_sheet(output: Path, sheet: np.ndarray, record: dict[str, Any]) -> None:
    """Write the sheet, then its record.

    Raises:
      InputError: if either cannot be written; the message says where the sheet is.
    """
    try:
        save_image(output, sheet)
    except Exception as error:  # encoders may raise any exception
        message = write_error_message(error, output)
        raise InputError(f"{message}{save_elsewhere(output, sheet)}") from None
    try:
        report.write_json(json_path(output), record)
    except OSError as error:
        message = write_error_message(error, json_path(output))
        raise InputError(f"{message}the sheet is written as {output}") from None


def run_groups(
    items: Sequence[Combination], inputs: SweepInputs, weights: Weights, *, batch_size: int
) -> list[Result | None]:
    """Run all combinations in batches of one structure.

    Returns:
      A result for each combination, or None if the sweep was stopped before it.

    Raises:
      InputError: if a batch does not fit into memory.
    """
    results: list[Result | None] = [None] * len(items)
    problems: dict[Any, Problem] = {}
    work = groups(items, batch_size=batch_size)
    steps = sum(items[group[0]].config.steps for group in work)
    done = 0
    # Measure once: the process keeps the memory that a batch has freed, and the next one uses it.
    free, process = free_bytes(jax.local_devices()[0]), process_memory()
    with progress_display(steps) as show, stop_on_signals() as stop_signal:

        def callback(progress: Progress) -> bool:
            # One line for the whole batch shows the mean loss, in float64 so that it is finite.
            info = jax.tree.map(partial(np.mean, dtype=float), progress.info)
            show(progress._replace(info=info, step=done + progress.step, steps=steps))
            return stop_signal() is None

        for group in work:
            first = items[group[0]]
            key = structure(first.config)
            with memory_errors_to_input_errors(inputs.shape, advice=MEMORY_ADVICE):
                if key not in problems:
                    problems = {}  # free the features of the last structure first
                    given = inputs.inputs[key]
                    problems = {key: make_problem(weights.variables, given, config=first.config)}
                    log_batch_memory(
                        problems[key], batch_size=len(group), free=free, process=process
                    )
            found = run_group([items[index] for index in group], inputs, problems[key], callback)
            for index, result in zip(group, found):
                if should_rerun(result, steps=first.config.steps):
                    result = run_alone(items[index], inputs, weights, stop_signal=stop_signal)
                results[index] = result
            done += first.config.steps
            if len(found) < len(group) or any(result.status == "stopped" for result in found):
                break
            if stop_signal() is not None:
                break
    return results


def run_group(
    items: Sequence[Combination],
    inputs: SweepInputs,
    problem: Problem,
    callback: Callable[[Progress], bool],
) -> list[Result]:
    """Run combinations of one structure together, halving the batch whenever memory runs out.

    Returns:
      Their results; fewer if the sweep was stopped.

    Raises:
      InputError: if not even one image fits into memory.
    """
    results: list[Result] = []

    def attempt(batch_size: int) -> None:
        while len(results) < len(items):
            batch = [
                Element(
                    problem,
                    item.config,
                    jax.random.key(item.seed),
                    inputs.inits[item.config.initial.init],
                )
                for item in items[len(results) : len(results) + batch_size]
            ]
            found = each_result(jax.device_get(run_batch(batch, callback=callback)))
            results.extend(found)
            if any(result.status == "stopped" for result in found):
                return

    def half(batch_size: int) -> int | None:
        if batch_size == 1:
            return None
        log(f"out of memory, continuing with batches of {batch_size // 2}")
        return batch_size // 2

    run_with_fallback(
        attempt, len(items), next_option=half, shape=inputs.shape, advice=MEMORY_ADVICE
    )
    return results


def run_alone(
    item: Combination,
    inputs: SweepInputs,
    weights: Weights,
    *,
    stop_signal: Callable[[], int | None],
) -> Result:
    """Compute an image that diverged in a batch again, as ``nst-jax stylize`` does."""
    init = inputs.inits[item.config.initial.init]
    run = partial(
        run_inputs,
        weights.variables,
        inputs.inputs[structure(item.config)]._replace(init=init),
        config=item.config,
        key=jax.random.key(item.seed),
    )
    name = ", ".join(map(" ".join, item.values.items()))
    with memory_errors_to_input_errors(inputs.shape, advice=MEMORY_ADVICE):
        return rerun_alone(run, name=name, stop_signal=stop_signal)


def log_batch_memory(problem: Problem, *, batch_size: int, free: int | None, process: int) -> None:
    """Log the memory that a batch needs.

    Args:
      problem: of one image.
      batch_size: number of images.
      free: from ``memory.free_bytes``, or None if it is not known.
      process: from ``memory.process_memory``.

    Raises:
      InputError: if the batch does not fit; the message names the batch size that would.
    """
    one = image_memory(problem, free=free)
    if one is None:
        return
    # All images share the targets. On CPUs they take turns with their chunks of steps, and share
    # the scratch memory as well.
    active = 1 if jax.default_backend() == "cpu" else batch_size
    total = batch_memory(one, batch_size)._replace(
        targets=one.targets, scratch=active * one.scratch
    )
    if free is not None and total.per_image > USABLE * free:
        height, width, _ = problem.shape
        # The shared part is fixed, and the rest grows with the number of images.
        fixed = one.targets + (one.scratch if active < batch_size else 0)
        fitting = int(USABLE * free - fixed) // ((total.per_image - fixed) // batch_size)
        if fitting < 1:
            raise batch_too_large_error(one, free, width=width, height=height)
        raise InputError(
            f"{batch_size} images of {width}x{height} px at once need about "
            f"{in_gib(total.per_image / USABLE)}, {in_gib(free)} are free: "
            f"choose --batch-size {fitting}"
        )
    log(images_in_words(problem, total, free=free, process=process, images=batch_size))


def combination_record(item: Combination, result: Result | None) -> dict[str, Any]:
    """The entries of the record for one image."""
    record: dict[str, Any] = {"values": item.values, "seed": item.seed}
    if result is None:
        return record | {"status": "not run"}
    history = {"history": report.history_record(result.history)}
    return record | report.outcome_record(result) | history


def make_sheet(
    items: Sequence[Combination], results: Sequence[Result | None], *, blank: np.ndarray
) -> np.ndarray:
    """Arrange the labelled images on a sheet; the last setting varies along the rows."""
    statuses = ["not run" if result is None else result.status for result in results]
    labels = [
        label if status == "done" else f"{label}\n{status}"
        for label, status in zip(make_labels(items), statuses, strict=True)
    ]
    images = [blank if result is None else np.asarray(result.image) for result in results]
    return contact_sheet(images, labels=labels, columns=sheet_columns(items))


def make_labels(items: Sequence[Combination]) -> list[str]:
    """A label for each image that lists its values."""
    return ["\n".join(f"{name} {value}" for name, value in item.values.items()) for item in items]


def sheet_columns(items: Sequence[Combination]) -> int:
    """Images in a row: one for each value of the last setting; a single setting is wrapped."""
    *others, name = items[0].values
    count = len({item.values[name] for item in items})
    return count if others else min(COLUMNS, count)
