"""From the words of a command line, this one's or an earlier one's, to options.

tyro parses them by the settings' dataclasses. Only the standard library and tyro are imported here.
"""

import inspect
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields, is_dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict, TypeVar

import tyro
from tyro.conf import FlagCreatePairsOff, arg
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
from nst_jax.config.config import (
    INITS,
    Config,
    ExecutionConfig,
    Initial,
    Pyramid,
    flat_types,
    to_flat,
)
from nst_jax.config.factors import Layers, Losses, parse_layers, parse_losses
from nst_jax.config.loss import LossConfig
from nst_jax.config.presets import get_preset
from nst_jax.errors import InputError
from nst_jax.system.streams import STANDARD

# Flags of which a second one would silently replace the first, where both may be meant.
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


# Of the flags that are no settings of the same name, or those of several optimisers.
OPTIMIZER_FLAGS = """
Attributes:
  optimizer: L-BFGS with Torch's fixed step, L-BFGS with line search, or Adam.
  learning_rate: Step size for pixels in [0, pixel_range]. Default 1 for lbfgs and 10/255 of
    the range for adam; not for lbfgs-linesearch.
  memory_size: Pairs that L-BFGS remembers. Default 100, with line search 10; not for adam.
  adam_beta1: Of adam: decay of the first moment.
  adam_beta2: Of adam: decay of the second moment.
  adam_epsilon: Of adam: what is added to the root of the second moment.
  clip: Keep pixels in [0, 1] after each step of adam.
"""


def _words(value: Any) -> str:
    """The value of a setting as its flag takes it."""
    items = value if isinstance(value, tuple) else (value,)
    pairs = [item if isinstance(item, tuple) else (item, 1) for item in items]
    return " ".join(f"{name}" if factor == 1 else f"{name}={factor:g}" for name, factor in pairs)


def _factors(parse: Callable[[str], Any]) -> PrimitiveConstructorSpec:
    """How tyro reads layers or losses with factors."""
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME[=FACTOR]",
        instance_from_str=lambda items: parse(",".join(items)),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: _words(value).split(),
    )


def _settings(info: StructTypeInfo) -> StructConstructorSpec | None:
    """How tyro reads a ``Config``: by flat flags, of which those that are given replace a default.

    So another optimiser does not get the default's numbers, and help shows the default's values.
    """
    if info.type is not Config:
        return None
    base: Config = info.default
    flat = to_flat(base)

    def flag(name: str, kind: Any) -> Any:
        parse = {Layers: parse_layers, Losses: parse_losses}.get(kind)
        if parse is not None:
            kind = Annotated[kind, _factors(parse)]
        return Annotated[kind, arg(help_behavior_hint=f"(default: {_words(flat[name])})")]

    make_type: Any = TypedDict  # of names that no type checker knows
    types = {name: flag(name, kind) for name, kind in flat_types().items()}
    flags = make_type("flags", types, total=False)
    parts = (LossConfig, Pyramid, Initial, ExecutionConfig, Config)
    docs = [*(inspect.getdoc(part) or "" for part in parts), OPTIMIZER_FLAGS]
    words = "\n".join(text.partition("Attributes:\n")[2] for text in docs)
    flags.__doc__ = f"Settings of the optimisation.\n\nAttributes:\n{words}"

    def make(flags: dict[str, Any]) -> Config:
        given = {name: value for name, value in flags.items() if name != "clip" or value != clip}
        return base.but(**given)

    # A switch alone takes its form, --clip or --no-clip, from its default.
    clip = base.optimizer.clip
    unnamed: Any = Annotated[flags, arg(name="")]
    field = StructFieldSpec("flags", unnamed, default={"clip": clip})
    return StructConstructorSpec(make, fields=(field,))


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()
    registry.struct_rule(_settings)
    return registry


def _is_flag(word: str, flag: str) -> bool:
    """Whether a word is a flag, which the parser also takes with underscores."""
    return word.startswith("--") and word.replace("_", "-") == flag


def check_once(arguments: list[str]) -> None:
    """Refuse lists that are named twice, for the parser would drop all but the last.

    Raises:
      InputError: with the flag.
    """
    for flag in (*ONCE, "--size") if arguments[:1] == ["texture"] else ONCE:
        if sum(_is_flag(item.partition("=")[0], flag) for item in arguments) > 1:
            raise InputError(f"{flag} is given twice: give it once, with all its values")


@dataclass(frozen=True)
class PresetOption:
    """What is read first, for it says what the other flags' defaults are."""

    preset: str


def default_options(arguments: list[str]) -> dict[str, Any]:
    """Options of the commands that compute, with the preset's values for defaults."""
    default = PresetOption(presets.DEFAULT_PRESET)
    name = tyro.cli(
        PresetOption, default=default, args=arguments, return_unknown_args=True, add_help=False
    )[0].preset
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


def parse(arguments: list[str]):
    """Options of the command that the arguments name.

    Raises:
      InputError: for an unknown preset, and a list that is named twice.
    """
    check_once(arguments)
    defaults = {
        name: tyro.conf.subcommand(name, default=default)
        for name, default in default_options(arguments).items()
    }
    # tyro's own way to subcommands; type checkers take a union for no type.
    return tyro.cli(
        Annotated[Stylize, defaults["stylize"]]
        | Annotated[Estimate, defaults["estimate"]]
        | Annotated[Texture, defaults["texture"]]
        | Annotated[Reconstruct, defaults["reconstruct"]]
        | Annotated[Batch, defaults["batch"]]
        | Annotated[Sweep, defaults["sweep"]]
        | Annotated[Resume, tyro.conf.subcommand("resume")]
        | Annotated[Presets, tyro.conf.subcommand("presets")]
        | Annotated[WeightsOptions, tyro.conf.subcommand("weights")]
        | Annotated[Version, tyro.conf.subcommand("version")],
        prog="nst-jax",
        description="Neural style transfer in JAX.",
        args=arguments,
        registry=_registry(),
        config=(FlagCreatePairsOff,),
    )


INPUTS = ("content", "style", "content_mask", "style_mask", "labels", "style_labels", "init")


_T = TypeVar("_T")


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


def with_paths(options: _T, place: Callable[[str, Path], Path]) -> _T:
    """Options with each of their paths in another place.

    Args:
      options: a dataclass; a ``Config`` in it may name an initial image.
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
    """The images and masks that options name, as often as they do; ``-`` is standard input."""
    found: list[Path] = []

    def note(name: str, path: Path) -> Path:
        if name in INPUTS:
            found.append(path)
        return path

    with_paths(options, note)
    return found


def with_inputs(options: _T, places: dict[Path, Path]) -> _T:
    """Options that read their input files in other places."""
    return with_paths(options, lambda name, path: places[path] if name in INPUTS else path)
