"""Neural style transfer in JAX.

Public names are imported when they are first used, so that ``import nst_jax`` and
``nst-jax --help`` do not wait for JAX. ``__init__.pyi`` lists them.
"""

from typing import Any

import lazy_loader

from nst_jax import _moved

PACKAGES = (
    *("checkpoint", "cli", "color", "config", "images", "losses", "models", "optim", "system"),
    *("transfer", "weights"),
)

_getattr, _dir, __all__ = lazy_loader.attach_stub(__name__, __file__)
_moved.install()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("nst_jax")
    if name in __all__:
        return _getattr(name)
    if name in PACKAGES or name in _moved.MODULES:
        from importlib import import_module

        return import_module(f"nst_jax.{name}")
    value = _moved.moved(name)
    globals()[name] = value  # cached, so that the deprecation is reported only once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_dir(), *PACKAGES, "__version__"})
