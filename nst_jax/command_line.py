"""From the words of the command line to options, by tyro from the settings' dataclasses.

Only the standard library and tyro are imported here.
"""

from dataclasses import replace
from typing import Annotated, Any, get_args

import tyro
from tyro.conf import FlagCreatePairsOff

from nst_jax import presets
from nst_jax.batch_options import Batch
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.layer_factors import Layers, parse_layers
from nst_jax.loss_factors import Losses, parse_losses
from nst_jax.options import (
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
)
from nst_jax.preset_type import Preset
from nst_jax.presets import get_preset, own_numbers, without_scales
from nst_jax.weights_options import WeightsOptions

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


def _registry() -> tyro.constructors.ConstructorRegistry:
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def factors(info: tyro.constructors.PrimitiveTypeInfo):
        # By their items: of a default with two of them tyro makes typing's Tuple of the builtin.
        parsers = {get_args(Layers): parse_layers, get_args(Losses): parse_losses}
        parse = parsers.get(get_args(info.type))
        if parse is None:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar="NAME[=FACTOR]",
            instance_from_str=lambda items: parse(",".join(items)),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [
                name if factor == 1 else f"{name}={factor:g}" for name, factor in value
            ],
        )

    return registry


def _given(arguments: list[str], flag: str) -> str | None:
    """The last value of a flag, read before the parser so that it can choose the defaults."""
    value = None
    for index, item in enumerate(arguments):
        name, equals, attached = item.partition("=")
        if not _is_flag(name, flag):
            continue
        if equals:
            value = attached
        elif index + 1 < len(arguments):
            value = arguments[index + 1]
    return value


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


def preset_config(
    preset: Preset, command: str | None, *, optimizer: str | None, single: bool = False
) -> Config:
    """A preset's settings as the defaults of a command, with one scale only if ``single``."""
    config = without_scales(preset.config) if single else preset.config
    if optimizer is not None:
        config = replace(config, **own_numbers(config, optimizer, preset=config))
    if command == "texture":
        return replace(
            config, content_layers=(), content_losses=Config.content_losses, init="noise"
        )
    if command == "reconstruct":
        return replace(config, style_layers=(), tv_weight=0.0, init="noise")
    return config


def default_options(arguments: list[str]) -> dict[str, Any]:
    """Options of the commands that compute, with the preset's values for defaults."""
    name = _given(arguments, "--preset") or presets.DEFAULT_PRESET
    preset = get_preset(name)
    optimizer = _given(arguments, "--optimizer")
    single = _given(arguments, "--min-size") == "None"
    missing = tyro.MISSING

    def run(command: str | None = None) -> RunOptions:
        config = preset_config(preset, command, optimizer=optimizer, single=single)
        return RunOptions(preset=name, config=config)

    styles = StyleOptions(style=missing)
    return {
        "stylize": Stylize(
            content=missing, output=missing, size=preset.size, styles=styles, run=run()
        ),
        "estimate": Estimate(content=missing, size=preset.size, run=run()),
        "texture": Texture(style=missing, output=missing, run=run("texture")),
        "reconstruct": Reconstruct(
            content=missing, output=missing, layer=missing, size=preset.size, run=run("reconstruct")
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
