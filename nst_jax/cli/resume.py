"""The command ``resume``: go on with a run from its newest checkpoint that is whole."""

from dataclasses import replace

from nst_jax.checkpoint import store
from nst_jax.checkpoint.records import check_versions, other_devices, saved_weights
from nst_jax.cli.batch import batch
from nst_jax.cli.checkpoints import saved_options
from nst_jax.cli.messages import log
from nst_jax.cli.options import Batch, Reconstruct, Resume, RunOptions, Stylize, Texture
from nst_jax.cli.parsing import Call
from nst_jax.cli.stylize import run_reconstruct, run_stylize, run_texture
from nst_jax.errors import InputError
from nst_jax.images.read import limit_pixels
from nst_jax.system.backend import make_deterministic, use_cpu_devices
from nst_jax.system.threads import can_set_threads, set_threads

COMMANDS = {Stylize: run_stylize, Texture: run_texture, Reconstruct: run_reconstruct}


def resume(options: Resume) -> int:
    """Run ``nst-jax resume``; see ``options.Resume``.

    Returns:
      The exit code, as of the command that began the run.

    Raises:
      InputError: where nothing was saved, for checkpoints of another program or network, and as
        the command that began the run.
    """
    folder = options.folder
    if not store.checkpoints(folder):
        store.load(folder)  # says so; a folder to hold may not be there
    with store.held(folder, resumed=True):  # before anything there is removed
        saved = store.load(folder)
        for words in saved.damaged:
            log(f"{words}, going on from the one before")
        check_versions(saved)
        store.remove_unfinished(folder)
        kind = saved.record.get("kind")
        if kind == "position":
            raise InputError(f"{folder} is of a run in Python: go on there by load_position")
        begun = saved_options(saved, folder)
        commands = COMMANDS if kind == "image" else [Batch] if kind == "batch" else []
        if type(begun) not in commands:
            raise InputError(f"{saved.path} was not written by this program: begin anew")
        run = prepare_resumed(begun.run, options, saved=saved)
        if isinstance(begun, Batch):
            use_cpu_devices()  # before any device is touched
        divided = getattr(begun, "spread", None) is not None
        for words in other_devices(saved, divided=divided):
            log(words)
        call = Call(saved.record["arguments"], saved.record["directory"])
        if isinstance(begun, Batch):
            return batch(replace(begun, run=run, checkpoint=folder), call, resumed=saved)
        run = replace(run, overwrite=True)
        begun = replace(begun, run=run, watch=replace(begun.watch, checkpoint=folder))
        return COMMANDS[type(begun)](begun, call, resumed=saved)


def prepare_resumed(run: RunOptions, options: Resume, *, saved: store.Saved) -> RunOptions:
    """The options of a run that goes on, with what holds for the whole process set.

    Raises:
      InputError: for numbers of threads or pixels that are none.
    """
    threads = options.threads
    if threads is None and can_set_threads():
        threads = run.threads
    if threads is not None:
        set_threads(threads=threads)
    limit_pixels(run.max_megapixels)
    if run.deterministic:
        make_deterministic()
    weights = options.weights or saved_weights(saved)
    return replace(run, threads=threads, weights=weights)
