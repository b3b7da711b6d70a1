"""Parse a command line, the present one or that of a checkpoint, to the dataclasses in ``options``.

Imports the standard library and tyro only.
"""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass, replace
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict, TypeVar

import tyro
from tyro.conf import FlagCreatePairsOff, PositionalMetavarFromFieldName, arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from nst_jax.cli.options import (
    Batch,
    Estimate,
    Presets,
    Reconstruct,
    Resume,
    RunOptions,
    StyleOptions,
    Stylize,
    Sweep,
    Texture,
    Version,
    WeightsOptions,
)
from nst_jax.config import presets
from nst_jax.config.config import INITS, Config, flat_types
from nst_jax.config.factors import Layers, Losses, parse_layers, parse_losses
from nst_jax.config.loss import LossConfig
from nst_jax.config.presets import get_preset
from nst_jax.errors import InputError
from nst_jax.system.streams import STANDARD

# Flags that may be given only once. tyro would silently keep the last one, but the user may mean
# the values of both.
ONCE = (
    "--style",
    "--style-blend",
    "--layer-styles",
    "--content-mask",
    "--style-mask",
    "--labels",
    "--style-labels",
    "--region-styles",
    "--region-weights",
    "--content-layers",
    "--style-layers",
    "--content-losses",
    "--style-losses",
    "--histogram-layers",
    "--layer",
    "--color",
)


def _weighted(parse: Callable[[str], Any]) -> PrimitiveConstructorSpec:
    """How tyro parses layers or losses with weights, such as ``relu1_1=2 relu2_1``."""
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME[=WEIGHT]",
        instance_from_str=lambda items: parse(",".join(items)),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [f"{name}={weight!r}" for name, weight in value],
    )


def _settings(info: StructTypeInfo) -> StructConstructorSpec | None:
    """How tyro parses a ``Config``: from flat flags, of which only the given ones are passed on.

    A flag that is not given must not count as a value: ``--optimizer adam`` alone has to drop the
    learning rate that the preset set for another optimiser, see ``from_flat``.
    """
    if info.type is not Config:
        return None
    base: Config = info.default

    def flag(kind: Any) -> Any:
        parse = {Layers: parse_layers, Losses: parse_losses}.get(kind)
        return kind if parse is None else Annotated[kind, _weighted(parse)]

    make_type: Any = TypedDict  # its keys are not known to type checkers
    types = {name: flag(kind) for name, kind in flat_types().items()}
    flags = make_type("flags", types, total=False)

    def make(flags: dict[str, Any]) -> Config:
        given = {name: value for name, value in flags.items() if name != "clip" or value != clip}
        return base.but(**given)

    # Unlike other flags, a switch needs a default, which decides between --clip and --no-clip.
    clip = base.optimizer.clip
    unnamed: Any = Annotated[flags, arg(name="")]
    field = StructFieldSpec("flags", unnamed, default={"clip": clip})
    return StructConstructorSpec(make, fields=(field,))


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()
    registry.struct_rule(_settings)
    return registry


def is_flag(word: str, flag: str) -> bool:
    """Whether a word is a flag, possibly with a value after ``=``; underscores count as hyphens."""
    return word.startswith("--") and word.partition("=")[0].replace("_", "-") == flag


def check_once(arguments: Sequence[str]) -> None:
    """Refuse lists that are given twice, because tyro would keep only the last one.

    Raises:
      InputError: with the flag.
    """
    for flag in (*ONCE, "--size") if arguments[:1] == ["texture"] else ONCE:
        if sum(is_flag(word, flag) for word in arguments) > 1:
            raise InputError(f"{flag} is given twice: give it once, with all its values")


def preset_name(arguments: Sequence[str]) -> str:
    """The preset that the arguments name last, else the default one."""
    name = presets.DEFAULT_PRESET
    for word, following in zip_longest(arguments, arguments[1:]):
        if is_flag(word, "--preset"):
            name = word.partition("=")[2] if "=" in word else following or name
    return name


def default_options(name: str) -> dict[str, Any]:
    """Options of the commands that compute, with the values of a preset as defaults.

    Raises:
      InputError: for an unknown preset.
    """
    preset = get_preset(name)
    missing = tyro.MISSING

    def run(**flat: Any) -> RunOptions:
        return RunOptions(preset=name, config=preset.config.but(**flat))

    content_losses = LossConfig.content_losses
    texture = run(content_layers=(), content_losses=content_losses, init="noise")
    reconstruct = run(style_layers=(), tv_weight=0.0, init="noise")
    styles = StyleOptions(style=missing)
    return {
        "stylize": Stylize(
            content=missing, output=missing, size=preset.size, styles=styles, run=run()
        ),
        "estimate": Estimate(content=missing, size=preset.size, run=run()),
        "texture": Texture(style=missing, output=missing, run=texture),
        "reconstruct": Reconstruct(
            content=missing, output=missing, layer=missing, size=preset.size, run=reconstruct
        ),
        "batch": Batch(
            contents=missing, output_dir=missing, size=preset.size, styles=styles, run=run()
        ),
        "sweep": Sweep(content=missing, output=missing, over=missing, styles=styles, run=run()),
    }


def command_type(preset: str) -> Any:
    """The union of all commands from which tyro makes the parser.

    Raises:
      InputError: for an unknown preset.
    """
    defaults = {
        name: tyro.conf.subcommand(name, default=default)
        for name, default in default_options(preset).items()
    }
    return (
        Annotated[Stylize, defaults["stylize"]]
        | Annotated[Estimate, defaults["estimate"]]
        | Annotated[Texture, defaults["texture"]]
        | Annotated[Reconstruct, defaults["reconstruct"]]
        | Annotated[Batch, defaults["batch"]]
        | Annotated[Sweep, defaults["sweep"]]
        | Annotated[Resume, tyro.conf.subcommand("resume")]
        | Annotated[Presets, tyro.conf.subcommand("presets")]
        | Annotated[WeightsOptions, tyro.conf.subcommand("weights")]
        | Annotated[Version, tyro.conf.subcommand("version")]
    )


def parse(arguments: list[str]) -> Any:
    """The options of the command that the arguments name.

    Raises:
      InputError: for an unknown preset, a list that is given twice, and what tyro refuses.
    """
    check_once(arguments)
    errors = StringIO()
    try:
        with redirect_stderr(errors):
            return tyro.cli(
                command_type(preset_name(arguments)),
                prog="nst-jax",
                args=arguments,
                registry=_registry(),
                config=(FlagCreatePairsOff, PositionalMetavarFromFieldName),
                add_help=False,
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise InputError(_message(errors.getvalue())) from None


# tyro's messages in the words of this program: pattern -> replacement.
_REWORDED = {
    r"Missing from (nst-jax .*): (.*)": r"missing \2: see '\1 --help'",
    r"invalid choice (.*) for argument '(.*)'\. Expected one of \((.*?),?\)\.": (
        r"\2: expected one of \3, got \1"
    ),
    r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)": (
        r"\1: expected a whole number, got \2"
    ),
    r"Error parsing (\S+): could not convert string to float: (.*)": (
        r"\1: expected a number, got \2"
    ),
    r"Error parsing (\S+): no type matching .* could be instantiated from \[(.*?)\]\..*": (
        r"\1 does not accept \2: see its values in the help"
    ),
    r"Missing value for argument '(.*?)'.*": r"\1: expected a value, got none",
    r"Unrecognized(?: or misplaced)? options: (.*)": r"unexpected arguments: \1",
    r" \(applied to [^)]*\)": "",
    r" Arguments are applied to the directly preceding subcommand.*": "",
}


def _message(box: str) -> str:
    """The first section of tyro's error box, on one line and in the words of this program.

    The box has a title, sections between rules, and a frame of line-drawing characters or of
    spaces. Missing arguments are listed with an indent of six columns, and their help below them
    with a deeper one.
    """
    lines: list[str] = []
    for line in box.splitlines()[1:]:
        line = line.replace("\u2502", " ").rstrip()
        if re.fullmatch(r"\W*[\u2500-]{3,}\W*", line):  # a rule, or the frame's lower edge
            if lines:
                break
        else:
            lines.append(line)
    text = " ".join(" ".join(lines).split())
    if text.startswith("Missing from "):
        names = [line.split()[0].rstrip(",") for line in lines if re.match(r" {6}\S", line)]
        text = f"{lines[0].strip()} {', '.join(names)}"
    for pattern, replacement in _REWORDED.items():
        text = re.sub(pattern, replacement, text)
    return text


INPUTS = ("content", "style", "content_mask", "style_mask", "labels", "style_labels", "init")

_T = TypeVar("_T")


class Call(NamedTuple):
    """A command line and the folder in which it was given.

    Attributes:
      arguments: the words after the program's name.
      directory: the folder that relative paths in the arguments refer to.
    """

    arguments: list[str]
    directory: str


def make_call(arguments: list[str]) -> Call:
    """The call of these arguments in the current folder."""
    return Call(list(arguments), os.getcwd())


def parse_call(call: Call) -> Any:
    """The options of an earlier call, with absolute paths.

    Raises:
      InputError, TypeError, ValueError: for arguments that this program does not accept.
    """
    arguments, directory = call
    if not isinstance(arguments, list) or not isinstance(directory, str):
        raise TypeError("its command line is not a list of words")
    if any(type(word) is not str or "\0" in word for word in [*arguments, directory]):
        raise ValueError("its command line has words that are not text")
    return with_paths(parse(arguments), lambda _, path: absolute(path, call))


def absolute(path: Path, call: Call) -> Path:
    """A path of a call as an absolute path; ``-`` stays."""
    return path if path == STANDARD else Path(call.directory) / path


def with_paths(options: _T, place: Callable[[str, Path], Path]) -> _T:
    """Options with each of their paths replaced.

    Args:
      options: a dataclass; a ``Config`` in it may name an initial image.
      place: maps a field's name and a path to the new path.
    """

    def moved(name: str, value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            names = [field.name for field in fields(value)]
            return replace(value, **{name: moved(name, getattr(value, name)) for name in names})
        if isinstance(value, tuple):
            return tuple(moved(name, one) for one in value)
        if name == "init" and isinstance(value, str) and value not in INITS:
            return str(place(name, Path(value)))
        return place(name, value) if isinstance(value, Path) else value

    return moved("", options)


def input_files(options: Any) -> list[Path]:
    """The images and masks that options name, repeated if named repeatedly; ``-`` included."""
    found: list[Path] = []

    def note(name: str, path: Path) -> Path:
        if name in INPUTS:
            found.append(path)
        return path

    with_paths(options, note)
    return found


def with_inputs(options: _T, places: dict[Path, Path]) -> _T:
    """Options with their input files replaced, by a mapping from old to new paths."""
    return with_paths(options, lambda name, path: places[path] if name in INPUTS else path)
