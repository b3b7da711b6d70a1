"""The command ``nst-jax batch``: check the input, compute the missing images, log a summary."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nst_jax.checkpoint.store import Saved, locked
from nst_jax.cli.batch_files import Item, expand, plan_items, process_share
from nst_jax.cli.batch_records import (
    MANIFEST_NAME,
    BatchJob,
    append_record,
    job_fingerprint,
    join_parts,
    merge_manifests,
    part_name,
    read_record,
    read_records,
    skip_item,
    write_errors_to_input_errors,
)
from nst_jax.cli.batch_run import STYLE_CACHE_SIZE, run_job
from nst_jax.cli.checkpoints import check_checkpoints, save_command
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
    """Check the options before any file is read.

    Args:
      options: the options.
      resumed: whether the job resumes from a checkpoint, which may then exist.

    Raises:
      InputError: if options contradict each other or have no effect.
    """
    check_size(options.size)
    check_seed(options.run.seed)
    check_preset_fits(options.run.config, preset=options.run.preset, command="batch")
    check_single(options.run.config)
    if options.pair and options.grid:
        raise InputError("--pair and --grid contradict each other: leave out one of them")
    if options.batch_size != "auto" and options.batch_size < 1:
        raise InputError(f"batch_size is {options.batch_size}: expected 1 or more, or auto")
    init = options.run.config.initial.init
    if init not in INITS:
        raise InputError(f"init {init} is for a single image: expected {', '.join(INITS)}")
    if not options.processes.distributed and options.processes != ProcessOptions():
        raise InputError(
            "--coordinator, --process-count and --process-index require --distributed: add it, or "
            "leave them out"
        )
    if options.processes.distributed and options.checkpoint is not None:
        raise InputError(
            "--checkpoint has no effect with --distributed: leave it out; the same command run "
            "again computes only the missing images"
        )
    overwrite = options.run.overwrite or resumed
    check_checkpoints(options.checkpoint, None, overwrite=overwrite)


def check_blending(
    options: StyleOptions, files: Sequence[Path], *, config: Config, mixed: bool
) -> Any:
    """Check the options that mix styles.

    Args:
      options: the options.
      files: the style images' files.
      config: the settings.
      mixed: whether each content gets a mix of all styles.

    Returns:
      ``blend`` of ``Guidance``.

    Raises:
      InputError: if options contradict each other or have no effect.
    """
    if not mixed and (options.style_blend or options.layer_styles):
        raise InputError(
            "--style-blend and --layer-styles mix styles, and with --pair or --grid each image has "
            "one style: leave them out"
        )
    styles = replace(options, style=tuple(files if mixed else files[:1]))
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
    """Check that results can be written to a folder, or that the folder can be created.

    Raises:
      InputError: if not.
    """
    # lexists also finds a dangling link, in whose place no folder can be created.
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not os.path.isdir(existing):
        raise InputError(f"{existing} is not a folder: choose another --output-dir")
    try:
        folder.lstat()  # fails for a name that is too long, for example
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from None
    check_folder(existing)


def find_sizes(
    items: Sequence[Item], *, config: Config, size: int
) -> tuple[dict[Item, tuple[int, int]], list[Failure]]:
    """Find the sizes of the outputs from the headers of the content files.

    Returns:
      Height and width of each output that can be computed, and the errors of the others.

    Raises:
      InputError: if none can be computed.
    """
    sizes: dict[Item, tuple[int, int]] = {}
    failures: list[Failure] = []
    shape_of = lru_cache(None)(lambda path: image_shape(path, size=size))
    for item in items:
        try:
            shape = shape_of(item.content)  # reads only the header, once for each content
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
    """Find the outputs to compute.

    Returns:
      The missing items, and the records of the outputs that exist.

    Raises:
      InputError: if an output exists that was computed from other inputs, unless ``overwrite``.
    """
    missing, existing = [], []
    for item in items:
        if not os.path.lexists(item.output):
            missing.append(item)
            continue
        record = read_record(item.output)
        # The fingerprint is read from the image itself, so a lost manifest loses no work.
        if record is not None and record.get("job") == job_fingerprint(job, item):
            existing.append(record | {"output": item.output.name})  # the file may be renamed
        elif overwrite:
            missing.append(item)
        else:
            reason = "is damaged, or was not written by this command"
            if record is not None:
                reason = "was computed from other images or settings"
            raise InputError(
                f"{item.output} exists and {reason}: choose another --output-dir, or add "
                "--overwrite"
            )
    return missing, existing


def batch(options: Batch, call: Call, *, resumed: Saved | None = None) -> int:
    """Run ``nst-jax batch``; see ``options.Batch``.

    Args:
      options: the command's options.
      call: the command line.
      resumed: the checkpoint to resume from, if any; its folder is locked by the caller.

    Returns:
      The exit code: 0 if all images exist, 1 if some failed or diverged, 130 after Ctrl-C, 143
      after SIGTERM.

    Raises:
      InputError: for bad input, before anything is written; and if results cannot be written, in
        which case the earlier ones are kept.
    """
    folder = options.output_dir
    check_options(options, resumed=resumed is not None)
    contents = expand(options.contents, what="content")
    styles = expand(options.styles.style, what="style")
    pairing = "pairs" if options.pair else "grid" if options.grid else "all"
    items = plan_items(contents, styles, pairing=pairing, folder=folder)
    style_files = [source.path for source in styles]
    mixed, config = pairing == "all", options.run.config
    blend = check_blending(options.styles, style_files, config=config, mixed=mixed)
    check_output_folder(folder)
    process = find_membership(options.processes)
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
        manifest=folder / part_name(*process),
        bit_depth=options.bit_depth,
    )
    # Largest first, so that a job that does not fit into memory fails at the start.
    ordered = sorted(sizes, key=lambda item: (-sizes[item][0] * sizes[item][1], sizes[item]))
    areas = [sizes[item][0] * sizes[item][1] for item in ordered]
    share = process_share(ordered, areas, index=process.index, count=process.count)
    failures = failures if process.index == 0 else []  # reported by one process only
    todo, existing = find_missing(job, share, overwrite=options.run.overwrite)
    missing = {item: sizes[item] for item in todo}

    use_compilation_cache()  # after all checks: bad input must not create the cache folder
    folder_existed = os.path.isdir(folder)
    with write_errors_to_input_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with (
        # For example when not even one image fits into memory.
        nullcontext() if folder_existed else removed_if_empty(folder),
        # ``resume`` has locked the checkpoint folder.
        locked(None if resumed else options.checkpoint),
    ):
        if options.checkpoint is not None and resumed is None:
            save_command(options.checkpoint, call=call, weights=job.weights)
        return run_missing(job, missing, existing, failures, single_process=process.count == 1)


def read_styles(options: Batch, files: Sequence[Path]) -> Callable[[int], np.ndarray]:
    """Read and check all style images.

    Returns:
      A function from the index of a style to its image, with a cache of limited size.

    Raises:
      InputError: if a file cannot be read, or a style does not fit the settings.
    """
    size = style_size(options.size, options.styles)
    style = lru_cache(STYLE_CACHE_SIZE)(lambda index: load_style(files[index], size=size))
    for index in range(len(files)):
        check_style(style(index), config=options.run.config)
    return style


def run_missing(
    job: BatchJob,
    missing: Mapping[Item, tuple[int, int]],
    existing: Sequence[dict[str, Any]],
    failures: Sequence[Failure],
    *,
    single_process: bool,
) -> int:
    """Compute the missing images, update the manifest, and log a summary.

    Args:
      job: what all images share.
      missing: the items to compute and the heights and widths of their outputs.
      existing: records of the outputs that exist.
      failures: items that cannot be computed, and why.
      single_process: whether no other process works on the job.

    Returns:
      The exit code.

    Raises:
      InputError: if not even one image fits into memory, or results cannot be written.
    """
    folder = job.manifest.parent
    if single_process:
        with write_errors_to_input_errors(folder):
            join_parts(folder)
            remove_leftovers([item.output for item in missing])
    listed = [*read_records(folder / MANIFEST_NAME), *read_records(job.manifest)]
    known = {record["output"]: record.get("job") for record in listed}
    # An earlier process may have been killed after writing an image and before its record.
    for record in existing:
        if known.get(record["output"]) != record["job"]:
            with write_errors_to_input_errors(job.manifest):
                append_record(job.manifest, record)
    tally, signal = Counter(failed=len(failures)), None
    for item, error in failures:
        skip_item(job, item, error)
    if missing:
        with job_display(len(missing)) as show, stop_on_signals() as stop_signal:
            tally += run_job(job, missing, show=show, stop_signal=stop_signal)
            signal = stop_signal()
    with write_errors_to_input_errors(folder / MANIFEST_NAME):
        merge_manifests(folder)

    earlier = Counter(record["status"] for record in existing)
    counts = {
        "written": tally["done"],
        "written but diverged": tally["diverged"],
        "already there": len(existing) - earlier["diverged"],
        "already there but diverged": earlier["diverged"],
        "skipped": tally["failed"],
    }
    ended = tally["done"] + tally["diverged"] + tally["failed"]
    counts["still missing"] = len(missing) + len(failures) - ended
    summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    log(summary or "nothing to do")
    print(folder / MANIFEST_NAME)
    if tally["stopped"]:
        return 128 + signal if signal else 130
    return 1 if tally["diverged"] or earlier["diverged"] or tally["failed"] else 0


def find_membership(processes: ProcessOptions) -> Membership:
    """Find the index of this process and the number of processes.

    Raises:
      InputError: if the other processes cannot be reached.
    """
    if not processes.distributed:
        return Membership(0, 1)
    return join(
        coordinator=processes.coordinator,
        process_count=processes.process_count,
        process_index=processes.process_index,
    )
