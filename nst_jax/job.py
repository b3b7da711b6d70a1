"""One optimisation of the command line, from what was read to what is written."""

import time
from dataclasses import asdict

from nst_jax import checkpoint
from nst_jax.allocator import own_memory, peak_memory
from nst_jax.checkpoint import Saved, held
from nst_jax.devices import use_compilation_cache
from nst_jax.files import remove_leftovers
from nst_jax.images import check_output, check_output_sides
from nst_jax.interrupt import stop_on_signals
from nst_jax.job_checkpoint import Standing, picture_saver, restore_settings, restore_standing
from nst_jax.job_inputs import find_network, output_paths
from nst_jax.job_outputs import write_outputs
from nst_jax.job_plan import make_plan, make_room, tell_of_room
from nst_jax.job_records import EXIT_CODES, Job, closing_words, make_record
from nst_jax.job_run import optimise
from nst_jax.messages import tell
from nst_jax.plan_words import MemoryPlan, plan_in_words
from nst_jax.progress import planning_display
from nst_jax.scales import Scale, make_scales
from nst_jax.smaller_ways import explaining
from nst_jax.standard_streams import STANDARD
from nst_jax.weights import Weights


def execute(job: Job, *, started: float, resumed: Saved | None = None) -> int:
    """Find the weights, run, write.

    Args:
      job: what to do; the outputs' names have been checked.
      started: ``time.perf_counter()`` of the command's start.
      resumed: the checkpoint from which the job goes on, if any, in a folder that is held.

    Returns:
      The exit code.

    Raises:
      InputError: before anything is written; for outputs that cannot be written, at the end.
    """
    check_formats(job)
    standing = None
    if resumed is not None:
        standing = restore_standing(resumed, shape=job.shape)
        job = job._replace(settings=restore_settings(resumed))
    weights = find_network(
        job.run,
        [job.config],
        balanced=bool(job.inputs.styles),  # a reconstruction has nothing to balance
        mesh=job.mesh,
        resumed=resumed,
    )
    scales = make_scales(job.inputs.content.shape, config=job.config, mesh=job.mesh)
    use_compilation_cache()  # only now: bad input leaves nothing behind
    if resumed is not None and standing is not None:
        tell_of_standing(job, resumed, standing, steps=sum(scale.steps for scale in scales))
    load_s, planned = time.perf_counter() - started, time.perf_counter()
    plan, process = find_plan(job, weights, standing=standing), own_memory()
    plan_s = 0.0 if job.mesh is not None else time.perf_counter() - planned
    tell_of_plan(job, plan, process=process, scales=scales)
    # Of a run that goes on ``resume`` holds the folder.
    with held(None if resumed else job.watch.checkpoint), stop_on_signals() as asked:
        save = None
        if job.watch.checkpoint is not None:
            save = picture_saver(
                job.watch.checkpoint,
                call=job.call,
                inputs=job.files,
                settings=job.settings,
                weights=weights,
                resumed=resumed,
            )
        ended = optimise(
            job,
            weights,
            standing or Standing(plan, None, []),
            scales=scales,
            save=save,
            asked=asked,
        )
        record = make_record(job, weights, ended.result)
        needs = ended.plan and ended.plan.needs._asdict()
        estimated = needs and {"program": process} | needs
        record["memory"] = {"estimated_bytes": estimated, "peak_bytes": peak_memory()}
        record["timing"] = {"load_s": load_s, "plan_s": plan_s} | ended.result.timing
        write_outputs(record, ended, job=job, started=started)
        signal = asked()
    status = ended.result.status
    if status != "done":
        tell(closing_words(ended.result, averaging=job.config.averaging))
    if job.output != STANDARD:
        print(job.output)
    return 128 + signal if status == "stopped" and signal else EXIT_CODES[status]


def check_formats(job: Job) -> None:
    """Check that the files to write can hold the result.

    Raises:
      InputError: where their formats cannot.
    """
    if job.alpha is not None:
        check_output(job.output, alpha=True, **asdict(job.picture))
    check_output_sides(job.output, job.shape)
    if job.watch.animation is not None:
        check_output_sides(job.watch.animation, job.shape)


def tell_of_standing(job: Job, resumed: Saved, standing: Standing, *, steps: int) -> None:
    """Say where a run goes on, and remove what the one before has left half-written."""
    remove_leftovers(output_paths(job.output, job.watch, steps=steps))
    checkpoint.remove_damaged(resumed)
    step = 0 if standing.position is None else standing.position.step
    tell(f"going on from step {step}, to write {job.output}")


def find_plan(job: Job, weights: Weights, *, standing: Standing | None) -> MemoryPlan | None:
    """How the job is computed: as it was where it goes on, else as the memory has room."""
    if job.mesh is not None:
        return None
    if standing is not None:
        if standing.plan is not None:
            tell_of_room(standing.plan)
            make_room(standing.plan)
        return standing.plan
    with explaining(job.shape), planning_display():
        return make_plan(job, weights)


def tell_of_plan(job: Job, plan: MemoryPlan | None, *, process: int, scales: list[Scale]) -> None:
    """The first lines of a run."""
    words = f"{job.shape[1]}x{job.shape[0]} px: what it needs of the memory is not "
    words += "planned on several devices" if job.mesh is not None else "told here"
    if plan is not None:
        words = plan_in_words(plan, shape=job.shape, process=process)
    tell(words)
    if job.config.pyramid.min_size is not None and len(scales) == 1:
        height, width = scales[0].shape
        tell(
            f"min_size {job.config.pyramid.min_size} leaves no scale before the last of "
            f"{width}x{height} px"
        )
