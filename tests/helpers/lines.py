"""Random command lines."""

import dataclasses
import typing
from pathlib import Path

from hypothesis import strategies as st

from nst_jax.cli.options import (
    Batch,
    Convert,
    Estimate,
    Normalize,
    Presets,
    Reconstruct,
    Resume,
    Stylize,
    Sweep,
    Texture,
    Verify,
)
from nst_jax.config import Config
from nst_jax.config.config import flat_types

COMMANDS = {
    "stylize": (Stylize, ["content.png"]),
    "estimate": (Estimate, ["content.png"]),
    "texture": (Texture, ["style.png"]),
    "reconstruct": (Reconstruct, ["content.png"]),
    "batch": (Batch, ["content.png"]),
    "sweep": (Sweep, ["content.png"]),
    "resume": (Resume, ["empty"]),
    "presets": (Presets, []),
    "weights convert": (Convert, ["content.png", "weights.safetensors"]),
    "weights normalize": (Normalize, ["small.safetensors", "out.safetensors", "content.png"]),
    "weights verify": (Verify, ["small.safetensors"]),
}
NEEDED = {
    "stylize": "--style style.png -o out.png --content-layers relu2_1 --style-layers relu1_1",
    "estimate": "--content-layers relu2_1 --style-layers relu1_1",
    "texture": "-o out.png --style-layers relu1_1",
    "reconstruct": "-o out.png --layer relu1_1",
    "batch": "--style style.png -o out --content-layers relu2_1 --style-layers relu1_1",
    "sweep": "--style style.png -o out.png --over style_weight=1,2 --style-layers relu1_1 "
    "--content-layers relu2_1",
}
IMAGES = ["content.png", "style.png", "mask.png", "text.png", "empty", "nowhere.png", "in/x.png"]
OUTPUTS = ["o.png", "o.jpg", "o.gif", "o.txt", "content.png", "empty", "no/o.png", "\n.png", ""]
# Valid and invalid values, but no sizes or numbers of steps that take long.
NUMBERS = st.sampled_from(["0", "-1", "1", "2", "7", "16", "1000000000000", "1.5", "x", ""])
REALS = st.sampled_from(
    ["0", "-1", "0.5", "1", "3", "1e-30", "1e30", "1e300", "nan", "inf", "-inf", "x", ""]
)
WORDS = st.sampled_from(
    [*("", "x", "-", "--", "-1", "relu1_1", "relu2_1=2", "relu9_9", "relu1_1=nan", "equal"),
     *("gram", "features=2", "1", "mix", "keep", "wasserstein=1e30", "style_weight=1,x", "\0")]
)  # fmt: skip
# Values of flags whose type does not tell which are valid, or of which some take long.
SPECIAL = {
    "size": st.sampled_from(["16", "24", "0", "-3", "1", "1000000", "x"]),
    "style_size": st.sampled_from(["16", "0", "1000000"]),
    "style_scale": st.sampled_from(["1", "0.1", "0", "-1", "nan", "inf", "1e30"]),
    "steps": st.sampled_from(["1", "2", "0", "-1", "x"]),
    "scale_steps": st.lists(st.sampled_from(["1", "2", "0", "x"]), max_size=3),
    "process_count": st.sampled_from(["0", "-1"]),
    "coordinator": st.just("x"),
    "distributed": st.nothing(),  # waits for other processes
    "over": st.sampled_from(["style_weight=1,2", "x=1", "steps=0", "steps", "=", "seed=1,1"]),
    "preset": st.sampled_from(["neural-style", "course", "gatys-2017", "x"]),
    "init": st.sampled_from(["content", "noise", "blend", "style.png", "nowhere.png", "x"]),
    "checkpoint": st.sampled_from(["ck", "empty", "content.png", "no/ck", ""]),
    "model": st.sampled_from(["vgg19-slim", "x"]),
    "padding": st.sampled_from(["zero", "reflect", "circular", "x"]),
    "memory": st.sampled_from(["1", "0.001", "0", "-1", "nan", "inf"]),
    "weights": st.sampled_from(["content.png", "nowhere.h5", "empty"]),
}


def fields_of(options):
    """The fields of options and of nested options, with their types."""
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        hint = hints[field.name]
        if hint is Config:
            yield from flat_types().items()
        elif dataclasses.is_dataclass(hint):
            yield from fields_of(hint)
        else:
            yield field.name, hint


def texts(name, hint):
    """Values of a flag, as text."""
    if name in SPECIAL:
        return SPECIAL[name]
    if name in ("output", "output_dir", "animation", "plot"):
        return st.sampled_from(OUTPUTS)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return st.sampled_from([*map(str, arguments), "x"])
    if origin is tuple:
        inner = WORDS if typing.get_args(arguments[0]) else texts("", arguments[0])
        return st.lists(inner, max_size=3)
    if arguments:
        return st.one_of([texts("", one) for one in arguments])
    simple = {int: NUMBERS, float: REALS, Path: st.sampled_from(IMAGES), bool: st.nothing()}
    return st.just("None") if hint is type(None) else simple.get(hint, WORDS)


@st.composite
def lines(draw):
    """A command line of any command, with a few of its flags."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    options, positional = COMMANDS[name]
    flags = dict(fields_of(options))
    line = [*name.split(), *positional, *NEEDED.get(name, "").split()]
    if "steps" in flags:
        size = ["16", "16"] if name == "texture" else ["16"]
        line += ["--steps", "2", "--size", *size, "--weights", "small.safetensors"]
    for flag in draw(st.lists(st.sampled_from(sorted(flags)), max_size=4, unique=True)):
        word = "--" + flag.replace("_", "-")
        if flags[flag] is bool:
            if flag != "distributed":
                line.append(draw(st.sampled_from([word, f"--no-{word[2:]}"])))
            continue
        value = draw(texts(flag, flags[flag]))
        line += [word, *([value] if isinstance(value, str) else value)]
    if draw(st.integers(0, 9)) == 0:  # a stray word, or a flag without its value
        line.insert(draw(st.integers(0, len(line))), draw(WORDS))
    return line
