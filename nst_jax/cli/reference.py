"""The reference of all commands and presets as Markdown, from the same data as the help."""

from itertools import groupby

from nst_jax.cli.flags import COMMANDS, REFUSED, Flag, describe, flags_of, value_text
from nst_jax.cli.help import EXAMPLES, option_text, usage
from nst_jax.config.config import to_flat
from nst_jax.config.presets import DEFAULT_PRESET, PRESETS


def reference_markdown() -> str:
    """Every command and every flag, with value form, default and help.

    The settings that the commands with presets share are listed once, under ``Settings``.
    """
    parts = ["# Command line reference"]
    parts.append(
        "`nst-jax COMMAND --help` shows a command's common options, `nst-jax COMMAND --help-all` "
        "all of them."
    )
    settings = {flag.name: flag for flag in flags_of("stylize") if flag.shared}
    for command in COMMANDS:
        parts += _command(command, settings)
    parts.append("## Settings")
    parts.append(
        "These options are shared by all commands that take a preset. Where the default is "
        '"from the preset", it is the value that the preset sets.'
    )
    parts += _groups(list(settings.values()))
    return "\n\n".join(parts) + "\n"


def presets_markdown() -> str:
    """Every preset with its summary, formula, source and all its settings."""
    parts = ["# Presets"]
    parts.append(
        f"`--preset NAME` chooses a preset; the default is `{DEFAULT_PRESET}`. Every setting can "
        "be overridden by its own flag."
    )
    for name, preset in PRESETS.items():
        values = {"size": preset.size} | to_flat(preset.config)
        rows = [f"| `{key}` | {_cell(value)} |" for key, value in values.items()]
        parts += [
            f"## {name}",
            f"{preset.summary}.",
            f"```text\n{preset.formula}\n```",
            f"Source: {preset.source}",
            f"Weights: {preset.weights}",
            preset.notes,
            "\n".join(["| Setting | Value |", "| --- | --- |", *rows]),
        ]
    return "\n\n".join(parts) + "\n"


def _command(command: str, settings: dict[str, Flag]) -> list[str]:
    parts = [f"## nst-jax {command}", *describe(COMMANDS[command]).split("\n\n")]
    if command == "weights":
        return parts
    parts.append("```text\n" + "\n".join([usage(command), "", *EXAMPLES[command]]) + "\n```")
    flags = flags_of(command)
    parts += _groups([flag for flag in flags if not flag.shared])
    shared = [flag for flag in flags if flag.shared]
    if shared:
        text = "All [settings](#settings) apply"
        if command in REFUSED:
            names = sorted(REFUSED[command], key=list(settings).index)
            text += ", except " + ", ".join(f"`{settings[name].forms[-1]}`" for name in names)
        parts.append(text + ".")
        own = [
            f"`{flag.forms[-1]}`: {flag.default or 'none'}"
            for flag in shared
            if flag.default != settings[flag.name].default
        ]
        if own:
            parts.append("Defaults that differ from those of the other commands: " + ", ".join(own))
    return parts


def _groups(flags: list[Flag]) -> list[str]:
    """Flags as lists under the headings of the help."""
    grouped = len({flag.group for flag in flags}) > 1
    parts = []
    for heading, members in groupby(flags, key=lambda flag: flag.group):
        if grouped:
            parts.append(f"### {heading}")
        parts.append("\n".join(f"- `{flag.usage}`: {option_text(flag)}" for flag in members))
    return parts


def _cell(value: object) -> str:
    """A setting's value for a table."""
    shown = "" if value in (None, ()) else value_text(value)
    return f"`{shown}`" if shown else "none"
