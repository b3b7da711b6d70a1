"""The command ``nst-jax batch``: check everything, find what is missing, make it, sum up."""

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nst_jax.batch_checkpoint import Composition, batch_saver, restore_batch
from nst_jax.batch_checks import (
    Failure,
    check_blending,
    check_options,
    check_output_folder,
    find_missing,
    find_sizes,
)
from nst_jax.batch_inputs import Item, expand, plan, share_of
from nst_jax.batch_job import KEPT_STYLES, Keeping, run_job
from nst_jax.batch_options import Batch, ProcessOptions
from nst_jax.batch_records import BatchJob, job_fingerprint, leave_out, writing
from nst_jax.checkpoint import Saved
from nst_jax.checkpoint_folder import held
from nst_jax.checkpoint_records import check_weights, tell_of_threads, with_threads
from nst_jax.compilation_cache import use_compilation_cache
from nst_jax.devices import make_deterministic, use_cpu_devices
from nst_jax.distributed import Membership, join
from nst_jax.files import remove_leftovers
from nst_jax.images import limit_pixels
from nst_jax.inputs import check_style
from nst_jax.interrupt import stop_on_signals
from nst_jax.job_inputs import obtain_weights, tell_of_network, tell_of_slim
from nst_jax.manifest import (
    NAME,
    append_record,
    file_digest,
    join_parts,
    merge_manifests,
    part_name,
    read_records,
)
from nst_jax.objective import check_learned
from nst_jax.problem import check_precision
from nst_jax.progress import job_display
from nst_jax.region_inputs import load_style, style_size


def batch(options: Batch, *, resumed: tuple[Saved, Composition] | None = None) -> int:
    """Run ``nst-jax batch``; see ``batch_options.Batch``.

    Args:
      options: the command's.
      resumed: the checkpoint to go on from, if any.

    Returns:
      The exit code: 0 all pictures are there; 1 some failed or diverged; 130 interrupted, 143 by
      SIGTERM.

    Raises:
      InputError: before anything is written; where results cannot be written, with those before
        kept.
    """
    run, config, folder = options.run, options.run.config, options.output_dir
    check_options(options, resumed=resumed is not None)
    contents = expand(options.contents, what="content")
    styles = expand(options.styles.style, what="style")
    pairing = "pairs" if options.pair else "grid" if options.grid else "all"
    items = plan(contents, styles, pairing=pairing, folder=folder)
    style_files = [source.path for source in styles]
    blend = check_blending(options.styles, style_files, config=config, mixed=pairing == "all")
    check_output_folder(folder)
    me = find_place(options.processes)
    use_cpu_devices()
    if resumed is not None:
        tell_of_threads(resumed[0])

    scaled = style_size(options.size, options.styles)
    style = lru_cache(KEPT_STYLES)(lambda place: load_style(style_files[place], size=scaled))
    for place in range(len(style_files)):
        check_style(style(place), config=config)
    sizes, failures = find_sizes(items, config=config, size=options.size)
    weights = obtain_weights(run.weights, model=run.model)
    if resumed is not None:
        check_weights(resumed[0], weights)
    check_learned(weights.variables, config.loss)
    check_precision(config)
    tell_of_slim(run, weights)
    tell_of_network(run, weights)
    job = BatchJob(
        config=config,
        seed=run.seed,
        size=options.size,
        style_size=scaled,
        weights=weights,
        blend=blend,
        style_files=style_files,
        style=style,
        digest=lru_cache(file_digest),
        same_styles=pairing == "all",
        batch_size=options.batch_size,
        manifest=folder / part_name(*me),
        bit_depth=options.bit_depth,
    )
    # The largest first: a job that does not fit into the memory ends before it begins.
    ordered = sorted(sizes, key=lambda item: (-sizes[item][0] * sizes[item][1], sizes[item]))
    areas = [sizes[item][0] * sizes[item][1] for item in ordered]
    mine = share_of(ordered, areas, index=me.index, count=me.count)
    failures = failures if me.index == 0 else []
    todo, records = find_missing(job, mine, overwrite=run.overwrite)
    first = Composition((), 0, None)
    if resumed is not None:
        first, todo, records = find_begun(job, resumed[1], mine, todo, records)
    missing = {item: sizes[item] for item in todo}

    use_compilation_cache()  # only now: bad input leaves nothing behind
    there = os.path.isdir(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with held(None if resumed else options.checkpoint):  # ``resume`` holds it
            save = None
            if options.checkpoint is not None:
                save = batch_saver(options, weights=weights, resumed=resumed is not None)
            keeping, alone = Keeping(save, options.checkpoint_every, first), me.count == 1
            return make_missing(job, missing, records, failures, alone=alone, keeping=keeping)
    finally:
        with suppress(OSError):
            if not there:
                folder.rmdir()  # where nothing was written, such as with too little memory


def resume_batch(saved: Saved, folder: Path, *, weights: Path | None, threads: int | None) -> int:
    """Go on with a batch from a checkpoint; see ``options.Resume`` and ``batch``."""
    options, composition = restore_batch(saved, folder, weights=weights)
    options = replace(options, run=with_threads(options.run, threads))
    saved.arrays.clear()  # the state is not to be there twice
    limit_pixels(options.run.max_megapixels)
    if options.run.deterministic:
        make_deterministic()
    return batch(options, resumed=(saved, composition))


def find_begun(
    job: BatchJob,
    first: Composition,
    items: Sequence[Item],
    todo: list[Item],
    there: list[dict[str, Any]],
) -> tuple[Composition, list[Item], list[dict[str, Any]]]:
    """What of a batch goes on that was begun before, see ``batch_checks.find_missing``.

    Pictures that were made together go on together: where some are there already, as of a process
    that was killed while it wrote them, they are written again.

    Returns:
      The composition to begin with, empty where all its pictures are there; the outputs to make;
      the records of those that stay.
    """
    if {record["job"] for record in there} >= {*first.jobs}:
        return Composition((), 0, None), todo, there
    again = [
        item for item in items if item not in todo and job_fingerprint(job, item) in first.jobs
    ]
    names = {item.output.name for item in again}
    return first, [*todo, *again], [one for one in there if one["output"] not in names]


def make_missing(
    job: BatchJob,
    missing: Mapping[Item, tuple[int, int]],
    there: Sequence[dict[str, Any]],
    failures: Sequence[Failure],
    *,
    alone: bool,
    keeping: Keeping,
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
            tally += run_job(job, missing, show=show, asked=asked, keeping=keeping)
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
    print(f"nst-jax: {words or 'nothing to do'}", file=sys.stderr)
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
