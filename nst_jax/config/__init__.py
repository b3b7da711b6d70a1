"""Settings of a run: names of layers, factors of losses, `Config`, presets.

Contract: frozen, keyword-only dataclasses and pure functions of them, which refuse what cannot be
meant. Standard library only.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
