"""Old names of public functions, and old modules that the documents taught, for one release.

Each is told once by a DeprecationWarning that says where it is now.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old path within nst_jax -> new path.
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
    """What has an old path within nst_jax, or AttributeError."""
    if old not in MOVED:
        raise AttributeError(f"module 'nst_jax' has no attribute {old!r}: see docs/moved.md")
    home, _, name = f"nst_jax.{MOVED[old]}".rpartition(".")
    message = f"nst_jax.{old} is now {home}.{name}"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    return getattr(import_module(home), name)


class OldModules(MetaPathFinder, Loader):
    """Finds and makes the old modules, which import nothing until a name of theirs is used."""

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
            setattr(module, name, value)  # so that it is told once
            return value

        module.__getattr__ = get


def install() -> None:
    """Let Python find the old modules, where it finds no others."""
    sys.meta_path.append(OldModules())
