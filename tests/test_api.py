"""Conventions of the public functions, and a fast --help."""

import inspect
import subprocess
import sys

import pytest

import nst_jax


@pytest.mark.parametrize("name", nst_jax.__all__)
def test_public_names_are_documented_and_options_keyword_only(name):
    value = getattr(nst_jax, name)
    if not callable(value):
        return
    assert inspect.getdoc(value), f"{name} has no docstring"
    if inspect.isclass(value) and issubclass(value, Exception):
        return
    for parameter in inspect.signature(value).parameters.values():
        if parameter.default is not inspect.Parameter.empty:
            # Signatures of classes come from dataclasses and Linen.
            keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert keyword_only or inspect.isclass(value), f"{name}: {parameter}"
        assert parameter.name not in ("rng", "prng"), f"{name}: a random key is called key"


@pytest.mark.parametrize("arguments", [["stylize", "--help"], ["presets"]])
def test_help_does_not_import_jax(arguments):
    code = (
        "import sys\n"
        "from nst_jax.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        "assert not {'jax', 'flax', 'numpy', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
