"""One optimisation of the command line, from what was read to what is written."""

import sys
import time
from dataclasses import asdict

import jax

from nst_jax.checkpoint_folder import held
from nst_jax.compilation_cache import use_compilation_cache
from nst_jax.images import check_output, check_output_sides
from nst_jax.inputs import check_pictures
from nst_jax.interrupt import stop_on_signals
from nst_jax.job_checkpoint import Standing, job_saver
from nst_jax.job_inputs import obtain_weights, tell_of_network, tell_of_slim
from nst_jax.job_outputs import write_outputs
from nst_jax.job_plan import explained, make_plan, make_room, tell_of_room
from nst_jax.job_records import EXIT_CODES, Job, closing_words, make_record
from nst_jax.job_run import optimise
from nst_jax.memory import own_memory, peak_memory
from nst_jax.objective import check_learned
from nst_jax.options import RunOptions, WatchOptions
from nst_jax.plan_words import Plan, in_words
from nst_jax.problem import check_precision
from nst_jax.progress import planning_display
from nst_jax.rows import check_rows, divides_rows
from nst_jax.scales import Scale, make_scales
from nst_jax.standard_streams import STANDARD
from nst_jax.weights import Weights


def execute(
    job: Job,
    *,
    run: RunOptions,
    watch: WatchOptions,
    started: float,
    weights: Weights | None = None,
    standing: Standing | None = None,
) -> int:
    """Find the weights, run, write.

    Args:
      job: what to do.
      run, watch: options; the outputs' names have been checked.
      started: ``time.perf_counter()`` of the command's start.
      weights: the network where it has been read; else it is found.
      standing: where an earlier run of the same job stood.

    Returns:
      The exit code.

    Raises:
      InputError: before anything is written; for outputs that cannot be written, at the end.
    """
    check_output(job.output, alpha=job.alpha is not None, **asdict(job.picture))
    check_output_sides(job.output, job.content.shape)
    if watch.animation is not None:
        check_output_sides(watch.animation, job.content.shape)
    check_pictures(job.content, job.styles, config=job.config, init=job.init)
    if weights is None:
        weights = obtain_weights(run.weights, model=run.model)
    check_learned(weights.variables, job.config.loss)
    check_precision(job.config)
    if standing is None:
        tell_of_slim(run, weights)
    if job.styles:  # a reconstruction has nothing to balance
        tell_of_network(run, weights)
    if job.mesh is not None and divides_rows(job.mesh):
        check_rows(job.content.shape[0], job.content.shape[1], mesh=job.mesh, config=job.config)
    scales = make_scales(job.content.shape, config=job.config, mesh=job.mesh)
    use_compilation_cache()  # only now: bad input leaves nothing behind
    load_s, planned = time.perf_counter() - started, time.perf_counter()
    plan, process = _plan(job, weights, standing=standing), own_memory()
    plan_s = 0.0 if job.mesh is not None else time.perf_counter() - planned
    _tell_of_plan(job, plan, process=process, scales=scales)
    # Of a run that goes on ``resume`` holds the folder.
    with held(None if standing else watch.checkpoint), stop_on_signals() as asked:
        save = None
        if watch.checkpoint is not None:
            resumed = standing is not None
            save = job_saver(job, run=run, watch=watch, weights=weights, resumed=resumed)
        ended = optimise(
            job,
            weights,
            run=run,
            watch=watch,
            standing=standing or Standing(plan, None, []),
            scales=scales,
            save=save,
            asked=asked,
        )
        record = make_record(job, weights, ended.result, run=run)
        needs = ended.plan and ended.plan.needs._asdict()
        estimated = needs and {"program": process} | needs
        record["memory"] = {"estimated_bytes": estimated, "peak_bytes": peak_memory()}
        record["timing"] = {"load_s": load_s, "plan_s": plan_s} | ended.result.timing
        write_outputs(
            record,
            ended.result.image,
            job=job,
            watch=watch,
            frames=ended.frames,
            started=started,
            kept=ended.kept,
        )
        signal = asked()
    status = ended.result.status
    if status != "done":
        told = closing_words(ended.result, averaging=job.config.averaging)
        print(f"nst-jax: {told}", file=sys.stderr)
    if job.output != STANDARD:
        print(job.output)
    return 128 + signal if status == "stopped" and signal else EXIT_CODES[status]


def _plan(job: Job, weights: Weights, *, standing: Standing | None) -> Plan | None:
    """How the job is computed: as it was where it goes on, else as the memory has room."""
    if job.mesh is not None:
        return None
    if standing is not None:
        if standing.plan is not None:
            tell_of_room(standing.plan)
            make_room(standing.plan)
        return standing.plan
    try:
        with planning_display():
            return make_plan(job, weights)
    except jax.errors.JaxRuntimeError as error:
        raise explained(error, width=job.content.shape[1], height=job.content.shape[0]) from None


def _tell_of_plan(job: Job, plan: Plan | None, *, process: int, scales: list[Scale]) -> None:
    """The first lines of a run."""
    words = f"{job.content.shape[1]}x{job.content.shape[0]} px: what it needs of the memory is not "
    words += "planned on several devices" if job.mesh is not None else "told here"
    if plan is not None:
        words = in_words(plan, shape=job.content.shape, process=process)
    print(f"nst-jax: {words}", file=sys.stderr)
    if job.config.pyramid.min_size is not None and len(scales) == 1:
        height, width = scales[0].shape
        print(
            f"nst-jax: min_size {job.config.pyramid.min_size} leaves no scale before the last of "
            f"{width}x{height} px",
            file=sys.stderr,
        )
