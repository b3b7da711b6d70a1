"""Optimisers as optax transformations, and the compiled optimisation loop.

Contract: a `Solver` is a pair of pure functions, ``init`` and ``step``, for one image
``[H, W, 3]``; `run` takes many steps in one compiled program.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
