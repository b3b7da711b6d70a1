"""The command ``nst-jax sweep``: several values of settings into one labelled sheet."""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nst_jax import report
from nst_jax.compilation_cache import use_compilation_cache
from nst_jax.config import INITS
from nst_jax.contact_sheet import contact_sheet, sheet_shape
from nst_jax.errors import InputError
from nst_jax.images import check_output_sides, load_image, save_image
from nst_jax.inputs import check_pictures
from nst_jax.interrupt import stop_on_signals
from nst_jax.job_inputs import (
    check_outputs,
    check_preset_fits,
    check_size,
    json_path,
    load_init,
    obtain_weights,
    tell_of_network,
    tell_of_slim,
)
from nst_jax.job_outputs import kept_elsewhere, not_written_words
from nst_jax.job_plan import explained
from nst_jax.job_records import EXIT_CODES, recovered_words, settings_record
from nst_jax.lane_memory import picture_memory, pictures_in_words, refusal, times
from nst_jax.lane_plans import Lane
from nst_jax.lanes import check_single, each_result, structure, stylize_lanes
from nst_jax.loop import Progress
from nst_jax.memory import USABLE, free_bytes, in_gib, own_memory
from nst_jax.objective import check_learned
from nst_jax.options import Sweep, WatchOptions
from nst_jax.presets import get_preset
from nst_jax.problem import Problem, check_precision, make_problem
from nst_jax.progress import progress_display
from nst_jax.region_inputs import (
    check_controls,
    check_region_options,
    load_style_inputs,
    with_layers,
)
from nst_jax.standard_streams import STANDARD
from nst_jax.stylize_command import flat_settings, style_files
from nst_jax.sweep_values import Combination, combinations, groups
from nst_jax.transfer import Result

COLUMNS = 6  # of a sweep over one setting


def sweep(options: Sweep) -> int:
    """Run ``nst-jax sweep``; see ``options.Sweep``.

    Returns:
      The exit code: 0 done; 1 where a picture diverged; 130 interrupted, with the sheet written.

    Raises:
      InputError: before anything is written; for outputs that cannot be written, at the end.
    """
    started = time.perf_counter()
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
    inputs = [options.content, *style_files(options.styles, options.regions)]
    inputs += [
        Path(item.config.initial.init) for item in items if item.config.initial.init not in INITS
    ]
    if options.output == STANDARD:
        raise InputError("a sweep writes a sheet and a JSON file, not standard output: name a file")
    check_outputs(options.output, run, WatchOptions(), inputs=inputs)
    content = load_image(options.content, size=options.size)
    whole = sheet_shape(content.shape, labels=make_labels(items), columns=sheet_columns(items))
    check_output_sides(options.output, whole)
    read = load_style_inputs(
        options.regions,
        options.styles,
        config=items[0].config,
        shape=content.shape[:2],
        size=options.size,
    )
    given = {
        item.config.loss.style_names: with_layers(
            read, options.regions, options.styles, config=item.config
        )
        for item in items
    }
    inits = {
        item.config.initial.init: load_init(item.config, shape=content.shape) for item in items
    }
    for item in items:
        styles, init = given[item.config.loss.style_names], inits[item.config.initial.init]
        check_pictures(content, styles.styles, config=item.config, init=init)
        check_controls(content, styles, config=item.config)
    weights = obtain_weights(run.weights, model=run.model)
    for item in items:
        check_learned(weights.variables, item.config.loss)
        check_precision(item.config)
    tell_of_slim(run, weights)
    tell_of_network(run, weights)
    use_compilation_cache()  # only now: bad input leaves nothing behind

    def problem(item: Combination) -> Problem:
        styles = given[item.config.loss.style_names]
        return make_problem(
            weights.variables, content, styles.styles, config=item.config, **styles.controls
        )

    results = run_groups(items, problem, inits=inits, lanes=options.lanes, shape=content.shape)

    record = {
        "settings": flat_settings(options, masks=read.regions) | settings_record(run.config),
        "versions": report.versions(),
        "device": report.device(),
        "weights": {"name": weights.info.name, "sha256": weights.info.sha256},
        "picture": {"width": content.shape[1], "height": content.shape[0]},
        "pictures": [picture_record(item, result) for item, result in zip(items, results)],
        "timing": {"total_s": time.perf_counter() - started},
    }
    sheet = make_sheet(items, results, blank=np.ones_like(content))
    try:
        save_image(options.output, sheet)
    except Exception as error:  # of an encoder it may be any
        words = not_written_words(error, options.output)
        raise InputError(f"{words}{kept_elsewhere(options.output, sheet)}") from None
    try:
        report.write_json(json_path(options.output), record)
    except OSError as error:
        words = not_written_words(error, json_path(options.output))
        raise InputError(f"{words}the sheet is written as {options.output}") from None
    print(options.output)
    statuses = {"stopped" if result is None else result.status for result in results}
    for status in ("stopped", "diverged"):
        if status in statuses:
            print(f"nst-jax: {status}: see the labels of the sheet", file=sys.stderr)
            return EXIT_CODES[status]
    return 0


def run_groups(
    items: Sequence[Combination],
    make: Callable[[Combination], Problem],
    *,
    inits: dict[str, np.ndarray | None],
    lanes: int,
    shape: tuple[int, ...],
) -> list[Result | None]:
    """Run all combinations, those of one structure together.

    Returns:
      A result for each combination, or None where the run was stopped before.
    """
    results: list[Result | None] = [None] * len(items)
    problems: dict[Any, Problem] = {}
    work = groups(items, lanes=lanes)
    steps = sum(items[group[0]].config.steps for group in work)
    done = 0
    # Once: what a group frees stays with the process, and serves the next.
    free, process = free_bytes(jax.local_devices()[0]), own_memory()
    try:
        with progress_display(steps) as show, stop_on_signals() as asked:
            go_on = True

            def callback(progress: Progress) -> bool:
                nonlocal go_on
                # One line for all lanes: the mean of their losses.
                info = jax.tree.map(partial(np.mean, dtype=float), progress.info)
                show(progress._replace(info=info, step=done + progress.step, steps=steps))
                go_on = asked() is None
                return go_on

            for group in work:
                first = items[group[0]]
                key = structure(first.config)
                if key not in problems:
                    problems = {key: make(first)}  # one at a time: each holds features
                    tell(problems[key], lanes=len(group), free=free, process=process)
                batch = [
                    Lane(
                        problems[key],
                        items[index].config,
                        jax.random.key(items[index].seed),
                        inits[items[index].config.initial.init],
                    )
                    for index in group
                ]
                found = jax.device_get(stylize_lanes(batch, callback=callback))
                for index, result in zip(group, each_result(found), strict=True):
                    results[index] = result
                    if result.recoveries:
                        values = ", ".join(map(" ".join, items[index].words.items()))
                        words = f"{values}: {recovered_words(result.recoveries)}"
                        print(f"nst-jax: {words}", file=sys.stderr)
                done += first.config.steps
                if not go_on:
                    break
    except jax.errors.JaxRuntimeError as error:
        advice = "fewer --lanes, "
        raise explained(error, width=shape[1], height=shape[0], advice=advice) from None
    return results


def tell(problem: Problem, *, lanes: int, free: int | None, process: int) -> None:
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
    print(f"nst-jax: {words}", file=sys.stderr)


def picture_record(item: Combination, result: Result | None) -> dict[str, Any]:
    """What the record says of one picture."""
    record: dict[str, Any] = {"values": item.words, "seed": item.seed}
    if result is None:
        return record | {"status": "not run"}
    return record | {
        "status": result.status,
        "steps": len(result.history.loss),
        "recoveries": result.recoveries,
        "final_loss": result.loss,
        "history": report.history_record(result.history),
    }


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
