"""The command ``nst-jax batch``: check everything, find what is missing, make it, sum up."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nst_jax.batch_checks import (
    Failure,
    check_blending,
    check_options,
    check_output_folder,
    find_missing,
    find_sizes,
)
from nst_jax.batch_inputs import Item, expand, plan, share_of
from nst_jax.batch_job import KEPT_STYLES, run_job
from nst_jax.batch_options import Batch, ProcessOptions
from nst_jax.batch_records import BatchJob, leave_out, writing
from nst_jax.call import Call
from nst_jax.checkpoint import Saved, held
from nst_jax.devices import use_compilation_cache, use_cpu_devices
from nst_jax.distributed import Membership, join
from nst_jax.files import remove_leftovers, removed_if_empty
from nst_jax.inputs import check_style
from nst_jax.interrupt import stop_on_signals
from nst_jax.job_checkpoint import save_call
from nst_jax.job_inputs import find_network
from nst_jax.manifest import (
    NAME,
    append_record,
    file_digest,
    join_parts,
    merge_manifests,
    part_name,
    read_records,
)
from nst_jax.messages import tell
from nst_jax.progress import job_display
from nst_jax.region_inputs import load_style, style_size


def batch(options: Batch, call: Call, *, resumed: Saved | None = None) -> int:
    """Run ``nst-jax batch``; see ``batch_options.Batch``.

    Args:
      options: the command's.
      call: the command line that they are from.
      resumed: the checkpoint from which it goes on, if any, in a folder that is held.

    Returns:
      The exit code: 0 all pictures are there; 1 some failed or diverged; 130 interrupted, 143 by
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
    """A function from a style's place to its picture; all are read and checked once before.

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
    for record in there:  # killed between a picture and its record
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
    tell(words or "nothing to do")
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
