"""The losses: Gram matrices and what else is compared, and the objective of all terms.

Contract: a loss is ``head(statistics(image))`` with statistics that add up over pixels. Pure
functions of arrays, unbatched; no files.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
