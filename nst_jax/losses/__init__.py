"""Content, style and total-variation losses, and the objective that combines them.

Contract: every objective is ``head(statistics(image))``, where the statistics are sums over pixels.
All functions are pure functions of unbatched arrays; none reads or writes files.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
