"""The help of the commands, as text for a terminal.

``--help`` shows the common options, ``--help-all`` all of them. Standard library and tyro only.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from shutil import get_terminal_size
from textwrap import fill, wrap

from nst_jax.cli.flags import COMMANDS, HELP, Flag, command_of, describe, flags_of

SUMMARY = "Neural style transfer in JAX."

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "nst-jax stylize photo.jpg --style painting.jpg -o out.png",
        "nst-jax batch photos/ --style painting.jpg -o results/",
    ),
    "stylize": (
        "nst-jax stylize photo.jpg --style painting.jpg -o out.png",
        "nst-jax stylize photo.jpg --style a.jpg b.jpg --style-blend 2 1 -o out.png",
    ),
    "texture": (
        "nst-jax texture pebbles.jpg -o texture.png",
        "nst-jax texture pebbles.jpg --size 1024 512 --tileable -o texture.png",
    ),
    "reconstruct": (
        "nst-jax reconstruct photo.jpg --layer relu4_2 -o out.png",
        "nst-jax reconstruct photo.jpg --layer relu1_1 relu3_1=0.5 -o out.png",
    ),
    "sweep": (
        "nst-jax sweep photo.jpg --style a.jpg --over style_weight=0.3,1,3 -o sheet.png",
        "nst-jax sweep photo.jpg --style a.jpg --over init=content,noise -o sheet.png",
    ),
    "batch": (
        "nst-jax batch photos/ --style painting.jpg -o results/",
        "nst-jax batch 'scans/*.tif' --style paintings/ --grid -o results/",
    ),
    "resume": (
        "nst-jax resume checkpoints/",
        "nst-jax resume checkpoints/ --weights vgg19.safetensors",
    ),
    "estimate": (
        "nst-jax estimate photo.jpg --size 4096",
        "nst-jax estimate photo.jpg --size 4096 --memory 24 --precision bfloat16",
    ),
    "presets": ("nst-jax presets", "nst-jax presets gatys-2017"),
    "weights": ("nst-jax weights fetch", "nst-jax weights list"),
    "weights fetch": ("nst-jax weights fetch", "nst-jax weights fetch --source torchvision"),
    "weights convert": (
        "nst-jax weights convert vgg19.pth vgg19.safetensors",
        "nst-jax weights convert mine.h5 mine.safetensors --preprocessing caffe",
    ),
    "weights normalize": (
        "nst-jax weights normalize vgg19.h5 new.safetensors photos/",
        "nst-jax weights normalize vgg19.h5 new.safetensors photos/ --pooling average",
    ),
    "weights verify": ("nst-jax weights verify", "nst-jax weights verify vgg19.h5"),
    "weights list": ("nst-jax weights list",),
    "version": ("nst-jax version", "nst-jax --version"),
}

COLUMN = 26  # where the texts of options begin


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for help, at any place."""
    return any(word in HELP for word in arguments)


def help_text(arguments: Sequence[str]) -> str:
    """The help that the arguments ask for.

    Raises:
      InputError: for an unknown preset.
    """
    width = max(60, min(get_terminal_size().columns, 100))
    command = command_of(arguments)
    if command not in COMMANDS:
        return _overview(width)
    if command == "weights":
        return _weights_overview(width)
    return _command_help(command, arguments, width)


def usage(command: str) -> str:
    """The command with what it needs, such as ``nst-jax stylize CONTENT --style IMAGE...``."""
    flags = flags_of(command)
    positional = [flag.forms[0] for flag in flags if flag.positional]
    required = [
        f"{flag.forms[0]} {flag.value}"
        for flag in sorted(flags, key=lambda flag: "-o" in flag.forms)
        if flag.default == "required" and not flag.positional
    ]
    optional = ["[OPTIONS]"] if len(flags) > len(positional) + len(required) else []
    return " ".join(["nst-jax", command, *positional, *required, *optional])


def _overview(width: int) -> str:
    commands = [name for name in COMMANDS if " " not in name]
    return "\n".join(
        [
            SUMMARY,
            "",
            f"{_heading('Usage:')} nst-jax COMMAND ...",
            "",
            *_commands(commands, width),
            *_examples(""),
            "'nst-jax COMMAND --help' shows the common options, '--help-all' all of them.",
        ]
    )


def _weights_overview(width: int) -> str:
    return "\n".join(
        [
            describe(COMMANDS["weights"]),
            "",
            f"{_heading('Usage:')} nst-jax weights COMMAND ...",
            "",
            *_commands([name for name in COMMANDS if name.startswith("weights ")], width),
            *_examples("weights"),
            "'nst-jax weights COMMAND --help' shows the options of a command.",
        ]
    )


def _commands(names: Iterable[str], width: int) -> list[str]:
    summaries = [(name.split()[-1], describe(COMMANDS[name]).partition("\n")[0]) for name in names]
    lines = [line for name, text in summaries for line in _entry(name, text, width, column=15)]
    return [_heading("Commands:"), *lines, ""]


def _command_help(command: str, arguments: Sequence[str], width: int) -> str:
    flags = flags_of(command, arguments)
    shown = flags if "--help-all" in arguments else [flag for flag in flags if flag.common]
    paragraphs = describe(COMMANDS[command]).split("\n\n")
    lines = [line for text in paragraphs for line in (*wrap(" ".join(text.split()), width), "")]
    head = wrap(f"Usage: {usage(command)}", width, subsequent_indent="       ")
    lines += [_heading(head[0][:6]) + head[0][6:], *head[1:], ""] + _examples(command)
    grouped = len(shown) > 9  # few options need no headings
    for heading, members in groupby(shown, key=lambda flag: flag.group if grouped else "Options"):
        lines.append(_heading(f"{heading}:"))
        for flag in members:
            lines += _entry(flag.usage, option_text(flag), width)
        lines.append("")
    hidden = len(flags) - len(shown)
    if hidden:
        text = f"'nst-jax {command} --help-all' shows {hidden} more options. "
        lines.append(fill(text + "'nst-jax presets NAME' shows what a preset sets.", width))
    return "\n".join(lines).rstrip()


def option_text(flag: Flag) -> str:
    """What an option does, with its default unless the text already has it."""
    if flag.default == "required" or "from the preset" in flag.default:
        return f"{flag.help} ({flag.default})"
    if not flag.default or "default" in flag.help.lower():
        return flag.help
    return f"{flag.help} (default: {flag.default})"


def _examples(command: str) -> list[str]:
    return [_heading("Examples:"), *(f"  {line}" for line in EXAMPLES[command]), ""]


def _entry(head: str, text: str, width: int, *, column: int = COLUMN) -> list[str]:
    """An option and its text, beside each other if the option is short."""
    text = text.replace("default: ", "default:\xa0")  # which stays on one line
    body = wrap(text, width - column, break_on_hyphens=False, break_long_words=False)
    body = [line.replace("\xa0", " ") for line in body]
    if len(head) + 4 > column:
        if len(head) + 2 > width:  # a long list of choices, which is broken after a bar
            heads = wrap(head.replace("|", "| "), width - 6, break_on_hyphens=False)
            head = "\n      ".join(line.replace("| ", "|") for line in heads)
        lines = f"  {head}".splitlines()
        return lines + [" " * column + line for line in body]
    first, *rest = body or [""]
    return [f"  {head:<{column - 2}}{first}", *(" " * column + line for line in rest)]


def _heading(text: str) -> str:
    """Text in bold on a terminal, see https://no-color.org."""
    bold = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"\033[1m{text}\033[0m" if bold else text
