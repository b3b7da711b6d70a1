"""What ``nst-jax batch`` checks before any work: options, folder, sizes, and what is there."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nst_jax.batch_inputs import Item
from nst_jax.batch_options import Batch, ProcessOptions
from nst_jax.batch_records import BatchJob, job_fingerprint
from nst_jax.config import INITS, Config
from nst_jax.errors import InputError
from nst_jax.files import check_folder
from nst_jax.images import picture_shape
from nst_jax.inputs import check_shape
from nst_jax.job_checkpoint import check_checkpoints
from nst_jax.job_inputs import check_preset_fits, check_seed, check_size
from nst_jax.lanes import check_single
from nst_jax.manifest import picture_record
from nst_jax.options import RegionOptions, StyleOptions
from nst_jax.region_inputs import check_region_options
from nst_jax.region_plan import plan_styles

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
        raise InputError(
            f"init {init} has no meaning for many pictures: expected {', '.join(INITS)}"
        )
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
      ``blend`` of ``transfer.stylize``.

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
    shape_of = lru_cache(None)(lambda path: picture_shape(path, size=size))
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
        record = picture_record(item.output)
        if record is not None and record.get("job") == job_fingerprint(job, item):
            there.append(record | {"output": item.output.name})  # it may have had another name
        elif overwrite:
            missing.append(item)
        else:
            what = "is damaged, or no picture of this command"
            if record is not None:
                what = "is of other pictures or settings"
            raise InputError(
                f"{item.output} exists and {what}: choose another --output-dir, or give --overwrite"
            )
    return missing, there
