"""Deprecated names and modules, kept for one release.

The first use of each issues a ``DeprecationWarning`` that names its new place.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old path -> new path, both relative to nst_jax.
MOVED = {
    "checkpoint_records.load_position": "checkpoint.load_position",
    "checkpoint_records.save_position": "checkpoint.save_position",
    "color_matching.match_color": "color.match_color",
    "content_loss": "losses.content_loss",
    "gram_matrix": "losses.gram_matrix",
    "lanes.each_result": "transfer.each_result",
    "lanes.stylize_lanes": "transfer.run_batch",
    "loss_weights": "losses.loss_weights",
    "normalize.normalize_weights": "weights.normalize_weights",
    "parallel.make_mesh": "transfer.make_mesh",
    "picture_encoding.read_texts": "images.read_texts",
    "style_loss": "losses.style_loss",
    "total_variation": "losses.total_variation",
}
MODULES = {old.partition(".")[0] for old in MOVED if "." in old}


def moved(old: str) -> Any:
    """Import the object that used to be at ``old``, a path relative to nst_jax.

    Raises:
      AttributeError: if nothing was ever moved from there.
    """
    if old not in MOVED:
        raise AttributeError(f"module 'nst_jax' has no attribute {old!r}: see docs/moved.md")
    home, _, name = f"nst_jax.{MOVED[old]}".rpartition(".")
    message = f"nst_jax.{old} is now {home}.{name}"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    return getattr(import_module(home), name)


class OldModules(MetaPathFinder, Loader):
    """Import hook for the old modules, which stay empty until one of their names is used."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        parent, _, module = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if parent == "nst_jax" and module in MODULES else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__.rpartition(".")[2]

        def get(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            value = moved(f"{old}.{name}")
            setattr(module, name, value)  # cached, so that the warning is issued only once
            return value

        module.__getattr__ = get


def install() -> None:
    """Register the hook behind all others, so that it never hides an existing module."""
    sys.meta_path.append(OldModules())
