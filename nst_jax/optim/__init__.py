"""Optimisers as optax transformations, and the compiled loop around them.

Contract: a `Solver` is two pure functions, ``init`` and ``step``, over one image ``[H, W, 3]``;
`run` takes many steps in one program.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
