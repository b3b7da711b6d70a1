"""How a command was called: its words and the folder; the same options with other paths.

Standard library and tyro only.
"""

import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nst_jax.cli.parsing import parse
from nst_jax.config.config import INITS
from nst_jax.system.streams import STANDARD

INPUTS = ("content", "style", "content_mask", "style_mask", "labels", "style_labels", "init")

T = TypeVar("T")


class Call(NamedTuple):
    """The words of a command line and the folder in which they were said.

    Attributes:
      arguments: the words after the program's name.
      directory: to which relative paths among them belong.
    """

    arguments: list[str]
    directory: str


def make_call(arguments: list[str]) -> Call:
    """The call of these words here."""
    return Call(list(arguments), os.getcwd())


def parse_call(call: Call) -> Any:
    """The options of an earlier call, with absolute paths.

    Raises:
      InputError, TypeError, ValueError: for words that are no command line of this program.
    """
    arguments, directory = call
    if not isinstance(arguments, list) or not isinstance(directory, str):
        raise TypeError("its command line is none")
    if any(type(word) is not str or "\0" in word for word in [*arguments, directory]):
        raise ValueError("its command line is none")
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            options = parse(arguments)
    except SystemExit:
        raise ValueError("its command line cannot be parsed") from None
    return with_paths(options, lambda _, path: absolute(path, call))


def absolute(path: Path, call: Call) -> Path:
    """A path of a call as it holds in any folder; ``-`` is no file."""
    return path if path == STANDARD else Path(call.directory) / path


def with_paths(options: T, place: Callable[[str, Path], Path]) -> T:
    """Options with each of their paths in another place.

    Args:
      options: a dataclass; a ``Config`` in it may name an initial picture.
      place: from a field's name and a path to the path to have there.
    """

    def moved(name: str, value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            own = {field.name: getattr(value, field.name) for field in fields(value)}
            return replace(value, **{field: moved(field, one) for field, one in own.items()})
        if isinstance(value, tuple):
            return tuple(moved(name, one) for one in value)
        if name == "init" and isinstance(value, str) and value not in INITS:
            return str(place(name, Path(value)))
        return place(name, value) if isinstance(value, Path) else value

    return moved("", options)


def input_files(options: Any) -> list[Path]:
    """The pictures and masks that options name, as often as they do; ``-`` is standard input."""
    found: list[Path] = []

    def note(name: str, path: Path) -> Path:
        if name in INPUTS:
            found.append(path)
        return path

    with_paths(options, note)
    return found


def with_inputs(options: T, places: dict[Path, Path]) -> T:
    """Options that read their input files in other places."""
    return with_paths(options, lambda name, path: places[path] if name in INPUTS else path)
