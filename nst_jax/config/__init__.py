"""Settings of a run: layer names, weights of layers and losses, `Config`, presets.

Contract: frozen, keyword-only dataclasses and pure functions of them. Invalid settings raise
`InputError` when they are constructed. Standard library only.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
