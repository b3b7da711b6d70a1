"""The flags of every command as data: their names, value forms, defaults, groups and help.

They are read from the dataclasses in ``options`` and their docstrings, so that the help, the
reference and the parser cannot disagree. Imports the standard library and tyro only.
"""

import difflib
import inspect
import math
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, cast

import tyro

from nst_jax.cli import options
from nst_jax.cli.options import COMMON, REFUSED, RunOptions
from nst_jax.cli.parsing import default_options, is_flag, preset_name
from nst_jax.config.config import Config, ExecutionConfig, Initial, Pyramid, flat_types, to_flat
from nst_jax.config.loss import LossConfig
from nst_jax.config.presets import PRESETS
from nst_jax.errors import InputError

HELP = ("-h", "--help", "--help-all")

COMMANDS: dict[str, type] = {
    "stylize": options.Stylize,
    "texture": options.Texture,
    "reconstruct": options.Reconstruct,
    "sweep": options.Sweep,
    "batch": options.Batch,
    "resume": options.Resume,
    "estimate": options.Estimate,
    "presets": options.Presets,
    "weights": options.WeightsOptions,
    "weights fetch": options.Fetch,
    "weights convert": options.Convert,
    "weights normalize": options.Normalize,
    "weights verify": options.Verify,
    "weights list": options.ListWeights,
    "version": options.Version,
}

# Headings and the flags under each, both in the order of the help.
GROUPS: dict[str, tuple[str, ...]] = {
    "Input and output": (
        *("content", "contents", "output", "output_dir", "overwrite", "bit_depth", "quality"),
        *("folder", "source", "images", "file", "preprocessing", "name", "max_megapixels"),
    ),
    "Style": (
        *("style", "pair", "grid", "style_blend", "style_scale", "style_size", "layer_styles"),
        "style_mixing",
    ),
    "Regions": (
        *("content_mask", "style_mask", "labels", "style_labels", "region_styles"),
        *("region_weights", "feather", "guides", "styled_regions"),
    ),
    "Colour": ("color",),
    "Size and scales": ("size", "tileable", "min_size", "scale_factor", "scale_steps"),
    "Sweep": ("over",),
    "Preset and network": ("preset", "weights", "model", "pooling", "padding"),
    "Loss": (
        *("layer", "content_weight", "style_weight", "tv_weight", "content_layers"),
        *("style_layers", "content_losses", "style_losses", "histogram_layers"),
        *("covariance_eps", "gram_normalization", "mse_factor", "tv_form", "tv_order"),
        *("tv_reduction", "pixel_range"),
    ),
    "Initial image": ("init", "seed", "noise", "noise_scale", "noise_ratio"),
    "Optimiser": (
        *("steps", "optimizer", "learning_rate", "memory_size", "adam_beta1", "adam_beta2"),
        *("adam_epsilon", "clip", "preconditioner", "averaging"),
    ),
    "Memory and speed": (
        *("batch_size", "memory", "precision", "convolution", "tile", "remat", "spread"),
        *("threads", "deterministic"),
    ),
    "Outputs during the run": (
        *("save_every", "animation", "plot", "checkpoint", "checkpoint_every"),
    ),
    "Several processes": ("distributed", "coordinator", "process_count", "process_index"),
}

# Value forms that the type of a flag does not tell.
VALUES = {
    "content": "IMAGE",
    "style": "IMAGE...",
    "content_mask": "IMAGE...",
    "style_mask": "IMAGE...",
    "labels": "IMAGE",
    "style_labels": "IMAGE",
    "layer_styles": "LAYER=N...",
    "region_styles": "N|mix|keep...",
    "layer": "LAYER[=WEIGHT]...",
    "content_layers": "LAYER[=WEIGHT]...",
    "style_layers": "LAYER[=WEIGHT]...",
    "content_losses": "LOSS[=WEIGHT]...",
    "style_losses": "LOSS[=WEIGHT]...",
    "histogram_layers": "LAYER...",
    "over": "NAME=VALUE,...",
    "init": "content|noise|blend|FILE",
    "min_size": "N|None",  # None overrides a preset
    "memory": "GIB",
    "coordinator": "HOST:PORT",
    "output_dir": "FOLDER",
    "checkpoint": "FOLDER",
}

TYPES = {Path: "FILE", int: "N", float: "NUMBER", str: "NAME", type(None): ""}

# Help for the flags that stand for fields of several optimisers.
OPTIMIZER_HELP = """
Attributes:
  optimizer: L-BFGS with a fixed step as in PyTorch, L-BFGS with a line search, or Adam.
  learning_rate: Step size for pixels in [0, pixel_range]. By default 1 for lbfgs and 10/255 of
    the range for adam. Not for lbfgs-linesearch.
  memory_size: Number of past steps that L-BFGS stores. By default 100, with line search 10.
  adam_beta1: Decay rate of Adam's first moment.
  adam_beta2: Decay rate of Adam's second moment.
  adam_epsilon: Constant that Adam adds to the root of the second moment.
  clip: Clip pixels to [0, 1] after each step of Adam.
"""


class Flag(NamedTuple):
    """One flag or positional argument of a command.

    Attributes:
      name: the name of its field.
      forms: as it is written, such as ``("-o", "--output")``; for a positional argument the name
        in capitals.
      value: the form of its values, or "" for a switch.
      default: the default in words, "required", or "" if there is nothing to say.
      help: what it does.
      group: its heading in the help.
      common: whether ``--help`` shows it.
      shared: whether it is one of the settings that all commands with presets share.
    """

    name: str
    forms: tuple[str, ...]
    value: str
    default: str
    help: str
    group: str
    common: bool
    shared: bool

    @property
    def positional(self) -> bool:
        """Whether it is given by its place."""
        return not self.forms[0].startswith("-")

    @property
    def usage(self) -> str:
        """The flag with its value, as a person types it."""
        return f"{', '.join(self.forms)} {self.value}".strip()


class _Field(NamedTuple):
    """A field of a command's options, nested ones included."""

    name: str
    hint: Any
    value: Any
    help: str
    shared: bool


def describe(kind: type) -> str:
    """What a command does: its docstring without the attributes."""
    return (inspect.getdoc(kind) or "").partition("Attributes:\n")[0].strip()


def flags_of(command: str, arguments: Sequence[str] = ()) -> list[Flag]:
    """The flags of a command in the order of its help.

    Args:
      command: a name in ``COMMANDS``.
      arguments: a command line. The values of a preset that it names are shown as defaults.

    Raises:
      InputError: for an unknown preset.
    """
    kind = COMMANDS[command]
    if command == "weights":
        return []  # its options are those of its sub-commands
    preset = preset_name(arguments)
    found = list(_fields(kind, default_options(preset).get(command)))
    varying = _varying(command)
    named = any(is_flag(word, "--preset") for word in arguments)
    common, refused = COMMON.get(command), REFUSED.get(command, ())
    groups = {name: heading for heading, names in GROUPS.items() for name in names}
    flags = [
        Flag(
            name=field.name,
            forms=_forms(field),
            value=_value_form(field),
            default=_default(field, varying=field.name in varying, named=named),
            help=field.help,
            group=groups[field.name],
            common=common is None or field.name in common,
            shared=field.shared,
        )
        for field in found
        if field.name not in refused
    ]
    # Positional arguments stay in the order in which they are given.
    headings, names = list(GROUPS), list(groups)
    return sorted(
        flags,
        key=lambda flag: (
            headings.index(flag.group),
            0 if flag.positional else 1 + names.index(flag.name),
        ),
    )


def check_words(arguments: Sequence[str]) -> None:
    """Refuse an unknown command or option, and suggest a similar one.

    Raises:
      InputError: with the suggestion.
    """
    command = command_of(arguments)
    if command not in COMMANDS or command == "weights":
        group = f"{command} " if command == "weights" else ""
        expected = [name.removeprefix(group) for name in COMMANDS if name.startswith(group)]
        if not group:
            expected = [name for name in expected if " " not in name]
        words = [word for word in arguments if word not in HELP]
        unknown = words[bool(group)] if len(words) > bool(group) else None
        given = "no command" if unknown is None else f"unknown command {unknown!r}"
        hint = f"see 'nst-jax {group}--help'"
        raise InputError(f"{given}: expected {group}{'|'.join(expected)}, {hint}")
    default = default_options(preset_name(arguments)).get(command)
    known = [form for field in _fields(COMMANDS[command], default) for form in _forms(field)]
    for word in arguments:
        flag = word.partition("=")[0].replace("_", "-")
        if word.startswith("--") and flag not in known and not flag.startswith("--tyro-"):
            similar = difflib.get_close_matches(flag, known, n=1)
            advice = f"did you mean {similar[0]}?" if similar else "see"
            raise InputError(
                f"nst-jax {command} has no option {flag}: {advice} "
                f"{'See ' * bool(similar)}'nst-jax {command} --help-all'"
            )


def command_of(arguments: Sequence[str]) -> str:
    """The command that the arguments name, "" for none, or their first word if it is unknown.

    >>> command_of(["weights", "fetch", "--help"]), command_of(["--help"])
    ('weights fetch', '')
    """
    words = [word for word in arguments if word not in HELP]
    pair = " ".join(words[:2])
    return pair if pair in COMMANDS else words[0] if words else ""


@cache
def _varying(command: str) -> set[str]:
    """The options of a command whose defaults differ between presets."""
    seen: dict[str, list[Any]] = {}
    for preset in PRESETS:
        for field in _fields(COMMANDS[command], default_options(preset).get(command)):
            seen.setdefault(field.name, []).append(field.value)
    return {name for name, values in seen.items() if any(v != values[0] for v in values)}


def _fields(kind: type, default: Any, *, shared: bool = False) -> Iterator[_Field]:
    """The fields of options, those of nested ones too; ``default`` is an instance or None."""
    hints, texts = typing.get_type_hints(kind, include_extras=True), _attributes(kind)
    for field in fields(kind):
        hint = hints[field.name]
        plain: Any = _plain(hint)
        value: Any = field.default if default is None else getattr(default, field.name)
        if plain is Config:
            yield from _settings(cast(Config, value))
        elif is_dataclass(plain):
            yield from _fields(cast(type, plain), value, shared=plain is RunOptions)
        else:
            yield _Field(field.name, hint, value, texts[field.name], shared)


def _settings(config: Config) -> Iterator[_Field]:
    """The settings by their flat names."""
    texts: dict[str, str] = {}
    for part in (LossConfig, Pyramid, Initial, ExecutionConfig, Config):
        texts |= _attributes(part)
    texts |= _parse_attributes(OPTIMIZER_HELP)
    flat = to_flat(config)
    for name, hint in flat_types().items():
        yield _Field(name, hint, flat[name], texts[name], shared=True)


def _attributes(kind: type) -> dict[str, str]:
    return _parse_attributes(inspect.getdoc(kind) or "")


def _parse_attributes(doc: str) -> dict[str, str]:
    """The texts of the section ``Attributes`` of a docstring, by name."""
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in doc.partition("Attributes:\n")[2].splitlines():
        if start := re.match(r"  (\w+(?:, \w+)*): *(.*)", line):  # "beta1, beta2: ..."
            names = start[1].split(", ")
            texts |= dict.fromkeys(names, start[2])
        elif line.strip():
            texts |= {name: f"{texts[name]} {line.strip()}".strip() for name in names}
    return texts


def _plain(hint: Any) -> Any:
    """A type without its annotations."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _forms(field: _Field) -> tuple[str, ...]:
    extras = typing.get_args(field.hint)[1:] if typing.get_origin(field.hint) is Annotated else ()
    if tyro.conf.Positional in extras:
        several = typing.get_origin(_plain(field.hint)) is tuple
        optional = field.value is None
        form = field.name.upper() + "..." * several
        return (f"[{form}]" if optional else form,)
    aliases = [alias for item in extras for alias in getattr(item, "aliases", None) or ()]
    no = "no-" if field.value is True else ""
    return (*aliases, f"--{no}{field.name.replace('_', '-')}")


def _value_form(field: _Field) -> str:
    if not _forms(field)[0].startswith("-"):
        return ""  # a positional argument is its own value
    return VALUES.get(field.name) or _type_form(field.hint)


def _type_form(hint: Any) -> str:
    hint = _plain(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return ""
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is tuple:
        return _type_form(arguments[0]) + "..."
    if origin in (Union, UnionType):
        return "|".join(filter(None, map(_type_form, arguments)))
    return TYPES[hint]


def _default(field: _Field, *, varying: bool, named: bool) -> str:
    """The default in words, see ``Flag``."""
    value = field.value
    if field.name == "preset":
        return value
    if value is tyro.MISSING or type(value).__name__ == "_MISSING_TYPE":
        return "required"
    shown = "" if value in (None, (), "") or isinstance(value, bool) else value_text(value)
    if varying:
        return f"{shown}, from the preset" if named and shown else "from the preset"
    return shown


def value_text(value: Any) -> str:
    """A value as its flag takes it, with numbers as a person writes them.

    >>> value_text((("relu1_1", 0.5), ("relu2_1", 1.0))), value_text(0.001 / 255), value_text(1e-8)
    ('relu1_1=0.5 relu2_1', '0.001 of 255', '1e-8')
    """
    if isinstance(value, tuple):
        pairs = [item if isinstance(item, tuple) else (item, 1) for item in value]
        return " ".join(f"{name}" if w == 1 else f"{name}={_number_text(w)}" for name, w in pairs)
    if isinstance(value, float):
        return _number_text(value)
    return str(value)


def _number_text(number: float) -> str:
    short = f"{number:.4g}"
    of_255 = f"{number * 255:.4g}"
    is_short = math.isclose(float(short), number)
    if not is_short and number < 1 / 255 and math.isclose(float(of_255), number * 255):
        return f"{of_255} of 255"
    return re.sub(r"e([+-])0*", lambda sign: "e" + sign[1].replace("+", ""), short)
