"""Configuration of the documentation: ``bash scripts/docs.sh`` builds it, without a network."""

import importlib
import importlib.metadata
import re

project = "nst_jax"
author = "the nst_jax authors"
copyright = "the nst_jax authors, MIT licence"
release = importlib.metadata.version("nst_jax")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"nst_jax {release}"
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True

# The public names of these modules are on the page of the Python API, each where it is defined.
API = (
    *("config", "types", "errors", "models", "losses", "color", "optim", "transfer"),
    *("images", "weights", "checkpoint", "system"),
)


def list_api(app, docname, source):
    """Append the public functions and classes of every package to the page ``api``."""
    if docname != "api":
        return
    for name in API:
        module = importlib.import_module(f"nst_jax.{name}")
        names = getattr(module, "__all__", None) or [key for key in vars(module) if key[0] != "_"]
        homes = {key: getattr(getattr(module, key), "__module__", None) or "" for key in names}
        own = [key for key in names if homes[key].startswith(module.__name__)]
        source[0] += f"\n## nst_jax.{name}\n\n```{{eval-rst}}\n.. automodule:: nst_jax.{name}\n"
        source[0] += f"   :members: {', '.join(own)}\n   :imported-members:\n```\n"


def skip_fields(app, what, name, member, skip, options):
    """Leave out the fields of named tuples, which the docstring of their class describes."""
    return skip or (getattr(member, "__doc__", None) or "").startswith("Alias for field number")


def keep_bars(app, what, name, member, options, lines):
    """Keep |x| in formulas, which reStructuredText takes for a substitution."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)
        lines[number] = "".join(
            part if part.startswith("``") else part.replace("|", "\\|") for part in parts
        )


def setup(app):
    app.connect("source-read", list_api)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", keep_bars, priority=900)
