"""The help of the commands and the reference: complete, short, and from the same data."""

import re
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest

from nst_jax.cli import main
from nst_jax.cli.flags import COMMANDS, GROUPS, check_words, flags_of
from nst_jax.cli.options import COMMON, REFUSED
from nst_jax.cli.reference import presets_markdown, reference_markdown
from nst_jax.config import PRESETS, Config, to_flat
from nst_jax.errors import InputError

ALL = [command for command in COMMANDS if command != "weights"]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def names_of(kind):
    """The options of a command, read from its dataclass."""
    for field in fields(kind):
        hint = get_type_hints(kind)[field.name]
        if hint is Config:
            yield from to_flat(Config())
        elif is_dataclass(hint):
            yield from names_of(hint)
        else:
            yield field.name


def shown(capsys, *arguments):
    assert main(list(arguments)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("command", ALL)
def test_help_all_has_every_option_once_and_help_the_common_ones(capsys, command):
    names = set(names_of(COMMANDS[command])) - {*REFUSED.get(command, ())}
    flags = flags_of(command)
    assert sorted(flag.name for flag in flags if flag.help) == sorted(names)
    assert {*COMMON.get(command, ())} <= names

    everything = shown(capsys, *command.split(), "--help-all")
    common = shown(capsys, *command.split(), "--help")
    for flag in flags:
        pattern = rf"(?m)^  (\S+, )?{re.escape(flag.forms[-1])}( |$)"
        assert len(re.findall(pattern, everything)) == 1, flag.forms
        assert len(re.findall(pattern, common)) == flag.common, flag.forms
    assert ("--help-all" in common) == any(not flag.common for flag in flags)
    assert shown(capsys, "--help-all", *command.split()) == everything


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_two_screens_and_shows_examples(capsys, command):
    text = shown(capsys, *command.split(), "-h")
    lines = text.splitlines()
    assert len(lines) <= (100 if command == "stylize" else 80)
    assert max(map(len, lines)) <= 80
    examples = [line for line in lines if line.startswith(f"  nst-jax {command}".rstrip())]
    assert len(examples) == (1 if command in ("weights list", "version") else 2)
    for leak in ("None)", "default: )", "{None}", "[PATH", "run.config"):
        assert leak not in text


@pytest.mark.parametrize("command", [c for c in ALL if c not in ("version", "weights list")])
def test_the_examples_parse(command):
    from nst_jax.cli.help import EXAMPLES
    from nst_jax.cli.parsing import parse

    for line in EXAMPLES[command]:
        assert type(parse(line.replace("'", "").split()[1:])) in (
            COMMANDS[command],
            COMMANDS["weights"],
        )


def test_each_option_has_one_heading():
    names = [name for members in GROUPS.values() for name in members]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "line", ["--preset tf-tutorial --help-all", "--help-all --preset=tf-tutorial"]
)
def test_a_named_presets_values_are_the_defaults(capsys, line):
    text = " ".join(shown(capsys, "stylize", *line.split()).split())
    for expected in ("adam, from the preset)", "0.02, from the preset)", "--no-clip"):
        assert expected in text


def test_the_reference_has_every_option_and_preset_once():
    text = reference_markdown()
    sections = dict(re.findall(r"(?ms)^## (.*?)$(.*?)(?=^## |\Z)", text))
    assert [*sections] == [*(f"nst-jax {command}" for command in COMMANDS), "Settings"]

    def listed(section):
        return re.findall(r"(?m)^- `(?:-\w, )?([^ `]+)", sections[section])

    for command in ALL:
        own = listed(f"nst-jax {command}")
        settings = listed("Settings") if "[settings]" in sections[f"nst-jax {command}"] else []
        refused = {f"--{name.replace('_', '-')}" for name in REFUSED.get(command, ())}
        forms = [flag.forms[-1] for flag in flags_of(command)]
        assert sorted([*own, *({*settings} - refused)]) == sorted(forms)
        assert all(f"`{flag}`" in sections[f"nst-jax {command}"] for flag in refused)

    text = presets_markdown()
    assert re.findall(r"(?m)^## (.*)$", text) == [*PRESETS]
    for preset in PRESETS.values():
        assert preset.formula in text and f"Source: {preset.source}" in text
    for name in to_flat(Config()):
        assert text.count(f"| `{name}` |") == len(PRESETS)


@pytest.mark.parametrize(
    "line, message",
    [
        ("", "no command: expected stylize|texture|"),
        ("weights", "no command: expected weights fetch|convert"),
        ("paint a.png", "unknown command 'paint': expected stylize|"),
        ("weights get", "unknown command 'get': expected weights fetch|"),
        ("stylize a.png --plott x", "nst-jax stylize has no option --plott: did you mean --plot?"),
        ("presets --size=3", "nst-jax presets has no option --size: see 'nst-jax presets --help"),
    ],
)
def test_unknown_commands_and_options(line, message):
    with pytest.raises(InputError) as caught:
        check_words(line.split())
    assert str(caught.value).startswith(message)
