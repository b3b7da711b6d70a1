"""The command ``nst-jax sweep``: several values of settings into one labelled sheet."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nst_jax import report
from nst_jax.allocator import free_bytes, in_gib, own_memory
from nst_jax.call import input_files
from nst_jax.config import INITS, Config
from nst_jax.contact_sheet import contact_sheet, sheet_shape
from nst_jax.devices import use_compilation_cache
from nst_jax.errors import InputError
from nst_jax.images import check_output_sides, load_image, save_image
from nst_jax.inputs import Inputs, check_initial, check_inputs
from nst_jax.interrupt import stop_on_signals
from nst_jax.job_inputs import (
    check_outputs,
    check_preset_fits,
    check_size,
    find_network,
    json_path,
    load_init,
)
from nst_jax.job_outputs import kept_elsewhere, not_written_words
from nst_jax.job_records import EXIT_CODES
from nst_jax.lane_memory import picture_memory, pictures_in_words, refusal, times
from nst_jax.lane_plans import Element
from nst_jax.lanes import check_single, each_result, run_batch, structure
from nst_jax.loop import Progress
from nst_jax.memory import USABLE
from nst_jax.messages import tell
from nst_jax.options import Sweep, WatchOptions
from nst_jax.presets import get_preset
from nst_jax.problem import Problem, make_problem
from nst_jax.progress import progress_display
from nst_jax.region_inputs import (
    check_region_options,
    load_style_inputs,
    region_names,
    with_layers,
)
from nst_jax.smaller_ways import explaining, may_gain_alone, once_more_alone, with_fallback
from nst_jax.standard_streams import STANDARD
from nst_jax.stylize_command import flat_settings
from nst_jax.sweep_values import Combination, combinations, groups
from nst_jax.transfer import Result, run_inputs
from nst_jax.weights import Weights

COLUMNS = 6  # of a sweep over one setting


class Read(NamedTuple):
    """What a sweep has read.

    Attributes:
      shape: height and width of the pictures.
      inputs: the pictures and masks for combinations of each structure, see ``lanes.structure``.
      inits: the initial pictures of files, by ``config.init``.
      regions: what the record says of the regions.
    """

    shape: tuple[int, int]
    inputs: dict[Config, Inputs]
    inits: dict[str, np.ndarray | None]
    regions: list[dict[str, Any]]


def sweep(options: Sweep) -> int:
    """Run ``nst-jax sweep``; see ``options.Sweep``.

    Returns:
      The exit code: 0 done; 1 where a picture diverged; 130 interrupted, with the sheet written.

    Raises:
      InputError: before anything is written; for outputs that cannot be written, at the end.
    """
    started = time.perf_counter()
    run = options.run
    items = find_combinations(options)
    read = read_inputs(options, items)
    weights = find_network(run, [item.config for item in items])
    use_compilation_cache()  # only now: bad input leaves nothing behind
    results = run_groups(items, read, weights, lanes=options.lanes)
    facts = report.run_record(
        run.config,
        weights,
        shape=read.shape,
        options=flat_settings(options, masks=read.regions),
    )
    pictures = [picture_record(item, result) for item, result in zip(items, results)]
    timing = {"timing": {"total_s": time.perf_counter() - started}}
    sheet = make_sheet(items, results, blank=np.ones((*read.shape, 3), np.float32))
    write_sheet(options.output, sheet, facts | {"pictures": pictures} | timing)
    print(options.output)
    statuses = {"stopped" if result is None else result.status for result in results}
    for status in ("stopped", "diverged"):
        if status in statuses:
            tell(f"{status}: see the labels of the sheet")
            return EXIT_CODES[status]
    return 0


def find_combinations(options: Sweep) -> list[Combination]:
    """The combinations to make; they and the other options are checked before any picture is read.

    Raises:
      InputError: for options that contradict each other, and outputs that cannot be written.
    """
    run = options.run
    preset = get_preset(run.preset).config
    items = combinations(options.over, config=run.config, seed=run.seed, preset=preset)
    check_size(options.size)
    if options.lanes < 1:
        raise InputError(f"lanes is {options.lanes}: expected 1 or more")
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
    """Read the pictures and check them for each combination.

    Raises:
      InputError: for pictures that cannot be read or do not fit.
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
    items: Sequence[Combination], read: Read, weights: Weights, *, lanes: int
) -> list[Result | None]:
    """Run all combinations, those of one structure together.

    Returns:
      A result for each combination, or None where the run was stopped before.

    Raises:
      InputError: where the memory does not suffice.
    """
    results: list[Result | None] = [None] * len(items)
    problems: dict[Any, Problem] = {}
    work = groups(items, lanes=lanes)
    steps = sum(items[group[0]].config.steps for group in work)
    done = 0
    # Once: what a group frees stays with the process, and serves the next.
    free, process = free_bytes(jax.local_devices()[0]), own_memory()
    with progress_display(steps) as show, stop_on_signals() as asked:

        def callback(progress: Progress) -> bool:
            # One line for all lanes: the mean of their losses.
            info = jax.tree.map(partial(np.mean, dtype=float), progress.info)
            show(progress._replace(info=info, step=done + progress.step, steps=steps))
            return asked() is None

        for group in work:
            first = items[group[0]]
            key = structure(first.config)
            with explaining(read.shape, advice="fewer --lanes, "):
                if key not in problems:
                    problems = {}  # one at a time: each holds features
                    problems = {
                        key: make_problem(weights.variables, read.inputs[key], config=first.config)
                    }
                    tell_of_lanes(problems[key], lanes=len(group), free=free, process=process)
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

    def attempt(lanes: int) -> None:
        while len(results) < len(items):
            batch = [
                Element(
                    problem,
                    item.config,
                    jax.random.key(item.seed),
                    read.inits[item.config.initial.init],
                )
                for item in items[len(results) : len(results) + lanes]
            ]
            found = each_result(jax.device_get(run_batch(batch, callback=callback)))
            results.extend(found)
            if any(result.status == "stopped" for result in found):
                return

    def smaller(lanes: int) -> int | None:
        if lanes == 1:
            return None
        tell(f"out of memory, going on by {lanes // 2}")
        return lanes // 2

    shape, advice = read.shape, "fewer --lanes, "
    with_fallback(attempt, len(items), smaller=smaller, shape=shape, advice=advice)
    return results


def run_alone(
    item: Combination, read: Read, weights: Weights, *, asked: Callable[[], int | None]
) -> Result:
    """A picture that diverged among others, made once more as ``nst-jax stylize`` makes it."""
    init = read.inits[item.config.initial.init]
    inputs = read.inputs[structure(item.config)]._replace(init=init)
    work = partial(
        run_inputs,
        weights.variables,
        inputs,
        config=item.config,
        key=jax.random.key(item.seed),
    )
    with explaining(read.shape, advice="fewer --lanes, "):
        return once_more_alone(work, name=name_of(item), asked=asked)


def name_of(item: Combination) -> str:
    """A combination's values in one line."""
    return ", ".join(map(" ".join, item.words.items()))


def tell_of_lanes(problem: Problem, *, lanes: int, free: int | None, process: int) -> None:
    """Say what so many pictures take together.

    Raises:
      InputError: where it does not fit, with the number of lanes that would.
    """
    one = picture_memory(problem, free=free)
    if one is None:
        return
    # The targets are there once. On CPUs the pictures take their chunks of steps in turn.
    active = 1 if jax.default_backend() == "cpu" else lanes
    together = times(one, lanes)._replace(targets=one.targets, scratch=active * one.scratch)
    if free is not None and together.own > USABLE * free:
        height, width, _ = problem.shape
        fixed = one.targets + (one.scratch if active < lanes else 0)
        fitting = int(USABLE * free - fixed) // ((together.own - fixed) // lanes)
        if fitting < 1:
            raise refusal(one, free, width=width, height=height)
        raise InputError(
            f"{lanes} pictures of {width}x{height} px at once need about "
            f"{in_gib(together.own / USABLE)}, {in_gib(free)} are free: choose --lanes {fitting}"
        )
    words = pictures_in_words(problem, together, free=free, process=process, pictures=lanes)
    tell(words)


def picture_record(item: Combination, result: Result | None) -> dict[str, Any]:
    """What the record says of one picture."""
    record: dict[str, Any] = {"values": item.words, "seed": item.seed}
    if result is None:
        return record | {"status": "not run"}
    history = {"history": report.history_record(result.history)}
    return record | report.outcome_record(result) | history


def make_sheet(
    items: Sequence[Combination], results: Sequence[Result | None], *, blank: np.ndarray
) -> np.ndarray:
    """The pictures with their values, the last setting along the rows."""
    statuses = ["not run" if result is None else result.status for result in results]
    labels = [
        label if status == "done" else f"{label}\n{status}"
        for label, status in zip(make_labels(items), statuses, strict=True)
    ]
    pictures = [blank if result is None else np.asarray(result.image) for result in results]
    return contact_sheet(pictures, labels=labels, columns=sheet_columns(items))


def make_labels(items: Sequence[Combination]) -> list[str]:
    """The values of each picture."""
    return ["\n".join(f"{name} {value}" for name, value in item.words.items()) for item in items]


def sheet_columns(items: Sequence[Combination]) -> int:
    """Pictures in a row: as many as the last setting has values, or a few where it is alone."""
    *others, name = items[0].words
    last = len({item.words[name] for item in items})
    return last if others else min(COLUMNS, last)
