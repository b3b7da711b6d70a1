"""The command ``nst-jax batch``: check everything, find what is missing, make it, sum up."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nst_jax.checkpoint.store import Saved, held
from nst_jax.cli.batch_files import Item, expand, plan, share_of
from nst_jax.cli.batch_records import (
    NAME,
    BatchJob,
    append_record,
    job_fingerprint,
    join_parts,
    leave_out,
    merge_manifests,
    part_name,
    read_record,
    read_records,
    writing,
)
from nst_jax.cli.batch_run import KEPT_STYLES, run_job
from nst_jax.cli.checkpoints import check_checkpoints, save_call
from nst_jax.cli.checks import check_preset_fits, check_seed, check_size, find_network
from nst_jax.cli.distributed import Membership, join
from nst_jax.cli.messages import log
from nst_jax.cli.options import Batch, ProcessOptions, RegionOptions, StyleOptions
from nst_jax.cli.parsing import Call
from nst_jax.cli.progress import job_display
from nst_jax.cli.regions import check_region_options, load_style, plan_styles, style_size
from nst_jax.config.config import INITS, Config
from nst_jax.errors import InputError
from nst_jax.images.read import image_shape
from nst_jax.system.backend import use_compilation_cache, use_cpu_devices
from nst_jax.system.files import check_folder, file_digest, remove_leftovers, removed_if_empty
from nst_jax.system.signals import stop_on_signals
from nst_jax.transfer.batch import check_single
from nst_jax.transfer.problem import check_shape, check_style

Failure = tuple[Item, InputError]


def check_options(options: Batch, *, resumed: bool) -> None:
    """Check options against each other before anything is read; ``resumed`` jobs have checkpoints.

    Raises:
      InputError: for options that contradict each other or have no effect.
    """
    check_size(options.size)
    check_seed(options.run.seed)
    check_preset_fits(options.run.config, preset=options.run.preset, command="batch")
    check_single(options.run.config)
    if options.pair and options.grid:
        raise InputError("--pair and --grid contradict each other: leave one of them out")
    if options.batch_size != "auto" and options.batch_size < 1:
        raise InputError(f"batch_size is {options.batch_size}: expected 1 or more, or auto")
    init = options.run.config.initial.init
    if init not in INITS:
        raise InputError(f"init {init} has no meaning for many images: expected {', '.join(INITS)}")
    if not options.processes.distributed and options.processes != ProcessOptions():
        raise InputError(
            "--coordinator, --process-count and --process-index need --distributed: give it, or "
            "leave them out"
        )
    if options.processes.distributed and options.checkpoint is not None:
        raise InputError(
            "--checkpoint is for one process; started again, several make what is missing by "
            "themselves: leave it out"
        )
    overwrite = options.run.overwrite or resumed
    check_checkpoints(options.checkpoint, None, overwrite=overwrite)


def check_blending(
    given: StyleOptions, files: Sequence[Path], *, config: Config, mixed: bool
) -> Any:
    """Check how styles are mixed.

    Returns:
      ``blend`` of ``Guidance``.

    Raises:
      InputError: for options that contradict each other or have no effect.
    """
    if not mixed and (given.style_blend or given.layer_styles):
        raise InputError(
            "--style-blend and --layer-styles are for styles that are mixed, which they are not by "
            "--pair and --grid: leave them out"
        )
    styles = replace(given, style=tuple(files if mixed else files[:1]))
    check_region_options(RegionOptions(), styles, config=config)
    return plan_styles(
        styles=len(styles.style),
        regions=0,
        style_masks=0,
        region_styles=(),
        style_blend=styles.style_blend,
        layer_styles=styles.layer_styles,
        layers=config.loss.style_names,
    ).blend


def check_output_folder(folder: Path) -> None:
    """Check that results can be written to a folder, which is made later where it is missing.

    Raises:
      InputError: where they cannot.
    """
    above = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not os.path.isdir(above):
        raise InputError(f"{above} is no folder: choose another --output-dir")
    try:
        folder.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from None
    check_folder(above)


def find_sizes(
    items: Sequence[Item], *, config: Config, size: int
) -> tuple[dict[Item, tuple[int, int]], list[Failure]]:
    """Heights and widths of the results, from the headers of the contents' files.

    Returns:
      The sizes of those that can be made, and why the others cannot.

    Raises:
      InputError: where none can.
    """
    sizes: dict[Item, tuple[int, int]] = {}
    failures: list[Failure] = []
    shape_of = lru_cache(None)(lambda path: image_shape(path, size=size))
    for item in items:
        try:
            shape = shape_of(item.content)
            check_shape(*shape, config=config)
            sizes[item] = shape
        except InputError as error:
            failures.append((item, error))
    if not sizes:
        raise failures[0][1]
    return sizes, failures


def find_missing(
    job: BatchJob, items: Sequence[Item], *, overwrite: bool
) -> tuple[list[Item], list[dict[str, Any]]]:
    """The outputs that are to be made, and the records of those that are there.

    Raises:
      InputError: for an output that is there and is another one, unless it may be overwritten.
    """
    missing, there = [], []
    for item in items:
        if not os.path.lexists(item.output):
            missing.append(item)
            continue
        record = read_record(item.output)
        if record is not None and record.get("job") == job_fingerprint(job, item):
            there.append(record | {"output": item.output.name})  # it may have had another name
        elif overwrite:
            missing.append(item)
        else:
            what = "is damaged, or no image of this command"
            if record is not None:
                what = "is of other images or settings"
            raise InputError(
                f"{item.output} exists and {what}: choose another --output-dir, or give --overwrite"
            )
    return missing, there


def batch(options: Batch, call: Call, *, resumed: Saved | None = None) -> int:
    """Run ``nst-jax batch``; see ``options.Batch``.

    Args:
      options: the command's.
      call: the command line that they are from.
      resumed: the checkpoint from which it goes on, if any, in a folder that is held.

    Returns:
      The exit code: 0 all images are there; 1 some failed or diverged; 130 interrupted, 143 by
      SIGTERM.

    Raises:
      InputError: before anything is written; where results cannot be written, with those before
        kept.
    """
    folder = options.output_dir
    check_options(options, resumed=resumed is not None)
    contents = expand(options.contents, what="content")
    styles = expand(options.styles.style, what="style")
    pairing = "pairs" if options.pair else "grid" if options.grid else "all"
    items = plan(contents, styles, pairing=pairing, folder=folder)
    style_files = [source.path for source in styles]
    mixed, config = pairing == "all", options.run.config
    blend = check_blending(options.styles, style_files, config=config, mixed=mixed)
    check_output_folder(folder)
    me = find_place(options.processes)
    use_cpu_devices()
    style = read_styles(options, style_files)
    sizes, failures = find_sizes(items, config=config, size=options.size)
    job = BatchJob(
        config=config,
        seed=options.run.seed,
        size=options.size,
        style_size=style_size(options.size, options.styles),
        weights=find_network(options.run, [config], resumed=resumed),
        blend=blend,
        style_files=style_files,
        style=style,
        digest=lru_cache(file_digest),
        same_styles=mixed,
        batch_size=options.batch_size,
        manifest=folder / part_name(*me),
        bit_depth=options.bit_depth,
    )
    # The largest first: a job that does not fit into the memory ends before it begins.
    ordered = sorted(sizes, key=lambda item: (-sizes[item][0] * sizes[item][1], sizes[item]))
    areas = [sizes[item][0] * sizes[item][1] for item in ordered]
    mine = share_of(ordered, areas, index=me.index, count=me.count)
    failures = failures if me.index == 0 else []
    todo, there = find_missing(job, mine, overwrite=options.run.overwrite)
    missing = {item: sizes[item] for item in todo}

    use_compilation_cache()  # only now: bad input leaves nothing behind
    was_there = os.path.isdir(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # ``resume`` holds the checkpoints' folder.
    with (
        nullcontext() if was_there else removed_if_empty(folder),  # such as with too little memory
        held(None if resumed else options.checkpoint),
    ):
        if options.checkpoint is not None and resumed is None:
            save_call(options.checkpoint, call=call, weights=job.weights)
        return make_missing(job, missing, there, failures, alone=me.count == 1)


def read_styles(options: Batch, files: Sequence[Path]) -> Callable[[int], np.ndarray]:
    """A function from a style's place to its image; all are read and checked once before.

    Raises:
      InputError: for files that cannot be read, and styles that do not fit the settings.
    """
    scaled = style_size(options.size, options.styles)
    style = lru_cache(KEPT_STYLES)(lambda place: load_style(files[place], size=scaled))
    for place in range(len(files)):
        check_style(style(place), config=options.run.config)
    return style


def make_missing(
    job: BatchJob,
    missing: Mapping[Item, tuple[int, int]],
    there: Sequence[dict[str, Any]],
    failures: Sequence[Failure],
    *,
    alone: bool,
) -> int:
    """Make what is missing, keep the manifest, and say how it ended.

    Raises:
      InputError: where the memory does not suffice, and where results cannot be written.
    """
    folder = job.manifest.parent
    if alone:
        with writing(folder):
            join_parts(folder)
            remove_leftovers([item.output for item in missing])
    listed = [*read_records(folder / NAME), *read_records(job.manifest)]
    known = {record["output"]: record.get("job") for record in listed}
    for record in there:  # killed between an image and its record
        if known.get(record["output"]) != record["job"]:
            with writing(job.manifest):
                append_record(job.manifest, record)
    tally, signal = Counter(failed=len(failures)), None
    for item, error in failures:
        leave_out(job, item, error)
    if missing:
        with job_display(len(missing)) as show, stop_on_signals() as asked:
            tally += run_job(job, missing, show=show, asked=asked)
            signal = asked()
    with writing(folder / NAME):
        merge_manifests(folder)

    earlier = Counter(record["status"] for record in there)
    counts = {
        "made": tally["done"],
        "made but diverged": tally["diverged"],
        "there before": len(there) - earlier["diverged"],
        "there before but diverged": earlier["diverged"],
        "left out": tally["failed"],
    }
    done = tally["done"] + tally["diverged"] + tally["failed"]
    counts["still missing"] = len(missing) + len(failures) - done
    words = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    log(words or "nothing to do")
    print(folder / NAME)
    if tally["stopped"]:
        return 128 + signal if signal else 130
    return 1 if tally["diverged"] or earlier["diverged"] or tally["failed"] else 0


def find_place(processes: ProcessOptions) -> Membership:
    """Which process of how many this is.

    Raises:
      InputError: where the others cannot be met.
    """
    if not processes.distributed:
        return Membership(0, 1)
    return join(
        coordinator=processes.coordinator,
        process_count=processes.process_count,
        process_index=processes.process_index,
    )
