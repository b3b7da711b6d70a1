"""The command ``resume``: continue a run from its newest undamaged checkpoint."""

from dataclasses import replace

from nst_jax.checkpoint import store
from nst_jax.checkpoint.records import check_versions, device_changes, saved_weights
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
      The exit code of the command that started the run.

    Raises:
      InputError: if there is no checkpoint, for checkpoints of another program or network, and as
        raised by the command that started the run.
    """
    folder = options.folder
    if not store.checkpoints(folder):
        store.load(folder)  # raises the error; the folder may not exist, so it cannot be locked
    with store.locked(folder, resumed=True):  # locked before anything in it is removed
        saved = store.load(folder)
        for words in saved.damaged:
            log(f"{words}, continuing from the one before")
        check_versions(saved)
        store.remove_unfinished(folder)
        kind = saved.record.get("kind")
        if kind == "position":
            raise InputError(
                f"{folder} holds a run started in Python: continue it there, with load_position"
            )
        options_then = saved_options(saved, folder)
        commands = COMMANDS if kind == "image" else [Batch] if kind == "batch" else []
        if type(options_then) not in commands:
            raise InputError(f"{saved.path} was not written by this program: start the run again")
        run = prepare_resumed(options_then.run, options, saved=saved)
        if isinstance(options_then, Batch):
            use_cpu_devices()  # before JAX looks for devices
        divided = getattr(options_then, "spread", None) is not None
        for words in device_changes(saved, divided=divided):
            log(words)
        call = Call(saved.record["arguments"], saved.record["directory"])
        if isinstance(options_then, Batch):
            return batch(replace(options_then, run=run, checkpoint=folder), call, resumed=saved)
        watch = replace(options_then.watch, checkpoint=folder)
        options_now = replace(options_then, run=replace(run, overwrite=True), watch=watch)
        return COMMANDS[type(options_now)](options_now, call, resumed=saved)


def prepare_resumed(run: RunOptions, options: Resume, *, saved: store.Saved) -> RunOptions:
    """The options of a resumed run; applies those that concern the whole process.

    Args:
      run: the options of the interrupted run.
      options: the options of ``resume``, which override them.
      saved: the checkpoint, which names the weights that the run used.

    Raises:
      InputError: for an invalid number of threads or limit of pixels.
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
