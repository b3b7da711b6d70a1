"""The command ``resume``: go on with a run from its newest checkpoint that is whole."""

import sys
import time

from nst_jax import checkpoint
from nst_jax.batch_command import resume_batch
from nst_jax.checkpoint_folder import held
from nst_jax.checkpoint_records import (
    check_devices,
    check_versions,
    check_weights,
    foreign_is_input_error,
    saved_weights,
    tell_of_threads,
    with_threads,
)
from nst_jax.devices import make_deterministic
from nst_jax.errors import InputError
from nst_jax.files import remove_leftovers
from nst_jax.job import execute
from nst_jax.job_checkpoint import restore_job
from nst_jax.job_inputs import check_outputs, obtain_weights, output_paths
from nst_jax.job_plan import make_mesh_of
from nst_jax.options import Resume
from nst_jax.scales import make_scales


def resume(options: Resume) -> int:
    """Run ``nst-jax resume``; see ``options.Resume``.

    Returns:
      The exit code, as of the command that began the run.

    Raises:
      InputError: where nothing was saved, for checkpoints of another program or network, and as
        the command that began the run.
    """
    started = time.perf_counter()
    if not checkpoint.checkpoints(options.folder):
        checkpoint.load(options.folder)  # says so; a folder to hold may not be there
    with held(options.folder, resumed=True):  # before anything there is removed
        return _resume(options, started=started)


def _resume(options: Resume, *, started: float) -> int:
    saved = checkpoint.load(options.folder)
    for words in saved.damaged:
        print(f"nst-jax: {words}, going on from the one before", file=sys.stderr)
    check_versions(saved)
    with foreign_is_input_error(saved):
        kind = saved.record["kind"]
    checkpoint.remove_leftovers(options.folder)
    if kind == "batch":
        return resume_batch(saved, options.folder, weights=options.weights, threads=options.threads)
    if kind != "picture":
        raise InputError(f"{options.folder} is of a run in Python: go on there by load_position")
    job, run, watch, standing = restore_job(saved, options.folder)
    run = with_threads(run, options.threads)
    if run.deterministic:
        make_deterministic()
    spread = job.settings.get("spread")
    check_devices(saved, divided=spread is not None)
    tell_of_threads(saved)
    job = job._replace(mesh=make_mesh_of(spread, config=job.config))
    scales = make_scales(job.content.shape, config=job.config, mesh=job.mesh)
    steps = sum(scale.steps for scale in scales)
    check_outputs(job.output, run, watch, job.picture, inputs=[], steps=steps)
    weights = obtain_weights(saved_weights(saved, options.weights))
    check_weights(saved, weights)
    remove_leftovers(output_paths(job.output, watch, steps=steps))  # of the run that was killed
    step = 0 if standing.position is None else standing.position.step
    saved.arrays.clear()  # the state is not to be there twice
    checkpoint.remove_damaged(saved)
    print(f"nst-jax: going on from step {step}, to write {job.output}", file=sys.stderr)
    return execute(job, run=run, watch=watch, started=started, weights=weights, standing=standing)
