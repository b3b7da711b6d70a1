"""The command line, from its arguments to an exit code.

Imports only the standard library and tyro. Every command imports what it needs when it runs, so
that ``--help`` answers at once.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nst_jax.cli.flags import check_words
from nst_jax.cli.help import help_text, wants_help
from nst_jax.cli.messages import log
from nst_jax.cli.options import (
    Batch,
    Estimate,
    ListWeights,
    Presets,
    Reconstruct,
    Resume,
    RunOptions,
    Stylize,
    Sweep,
    Texture,
    Verify,
    Version,
)
from nst_jax.cli.parsing import make_call, parse
from nst_jax.config.config import to_flat
from nst_jax.config.presets import get_preset
from nst_jax.errors import InputError
from nst_jax.system.signals import end_on_signals
from nst_jax.system.streams import tolerant_streams
from nst_jax.system.threads import jax_has_started, set_threads

# Commands whose result is their standard output; for them a failed write is an error.
PRINTED = (Estimate, ListWeights, Presets, Verify, Version)


def prepare_process(run: RunOptions) -> None:
    """Apply the options that concern the whole process, before a command reads anything.

    Raises:
      InputError: for an invalid number of threads or limit of pixels.
    """
    prepare_threads(run.threads)
    from nst_jax.images.read import limit_pixels
    from nst_jax.system.backend import make_deterministic

    limit_pixels(run.max_megapixels)
    if run.deterministic:
        make_deterministic()


def prepare_threads(threads: int | None = None) -> None:
    """Set the number of threads, before NumPy and JAX are imported.

    If an earlier command of the same process has started JAX, its number stays unless another is
    given.

    Raises:
      InputError: as ``set_threads``.
    """
    if threads is not None or not jax_has_started():
        set_threads(threads=threads)


class _LineHandler(logging.Handler):
    """Prints log records as lines of the command."""

    def emit(self, record: logging.LogRecord) -> None:
        log(record.getMessage())


@contextmanager
def library_messages() -> Iterator[None]:
    """Print what the package logs, and warnings of all libraries, as lines of the command."""
    handler, logger = _LineHandler(), logging.getLogger("nst_jax")
    shown: set[str] = set()

    def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            log(f"warning: {message}")

    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            yield
    finally:
        logger.removeHandler(handler)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
      arguments: the words after the program's name; by default those of the process.

    Returns:
      The exit code: 0 for success; 1 if the run diverged, with the best image written, or a check
      of weights failed; 2 for bad input or an output that cannot be written; 130 if interrupted,
      143 if ended by SIGTERM.
    """
    with library_messages(), tolerant_streams() as errors, end_on_signals():
        return _main(sys.argv[1:] if arguments is None else arguments, errors)


def _main(arguments: list[str], errors: list[OSError]) -> int:
    if arguments == ["--version"]:
        arguments = ["version"]
    try:
        if wants_help(arguments):
            print(help_text(arguments))
            return 0
        check_words(arguments)
        options = parse(arguments)
        code = run_command(options, arguments)
    except InputError as error:
        log(f"error: {error}")
        return 2
    except MemoryError:
        log("error: out of memory: choose a smaller --size")
        return 2
    print(end="", flush=True)  # so that a failed write is among the errors
    printed = isinstance(getattr(options, "action", options), PRINTED)
    return 2 if errors and printed else code


def run_command(options: Any, arguments: list[str]) -> int:
    """Run the command to which the options belong.

    Args:
      options: one of the dataclasses in ``options``.
      arguments: the command line from which they were parsed, for checkpoints.

    Returns:
      The exit code.

    Raises:
      InputError: as raised by the command.
    """
    match options:
        case Stylize() | Texture() | Reconstruct():
            prepare_process(options.run)
            from nst_jax.cli import stylize

            commands = {
                Stylize: stylize.run_stylize,
                Texture: stylize.run_texture,
                Reconstruct: stylize.run_reconstruct,
            }
            return commands[type(options)](options, make_call(arguments))
        case Estimate():
            prepare_process(options.run)
            from nst_jax.cli.estimate import estimate

            return estimate(options)
        case Batch():
            prepare_process(options.run)
            from nst_jax.cli.batch import batch

            return batch(options, make_call(arguments))
        case Sweep():
            prepare_process(options.run)
            from nst_jax.cli.sweep import sweep

            return sweep(options)
        case Resume():
            prepare_threads(options.threads)
            from nst_jax.cli.resume import resume

            return resume(options)
        case Presets():
            return print_presets(options)
        case Version():
            from importlib.metadata import version

            print(version("nst_jax"))
            return 0
        case _:
            prepare_threads()
            from nst_jax.cli.weights import manage_weights

            return manage_weights(options.action)


def print_presets(options: Presets) -> int:
    """Print all presets with formula and source, or one of them with its notes and settings."""
    from textwrap import fill, indent

    from nst_jax.config.presets import PRESETS

    for name in PRESETS if options.name is None else [options.name]:
        preset = get_preset(name)
        print(f"{name}: {preset.summary}\n{indent(preset.formula, '  ')}")
        print(f"  for {preset.weights} weights\n  {preset.source}\n")
    if options.name is None:
        return 0
    preset = get_preset(options.name)
    print(f"{fill(preset.notes, 88, break_on_hyphens=False)}\n\nSettings:")
    settings: dict[str, Any] = {"size": preset.size} | to_flat(preset.config)
    for key, value in settings.items():
        shown = tuple(map(tuple, value)) if key.endswith("_losses") else value
        print(f"  {key} = {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
