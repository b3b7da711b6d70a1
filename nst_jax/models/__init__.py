"""VGG-19 as a function from an image to a dictionary of features.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``, unbatched; features are ``[h, w, C]``.
Pure functions of variables and an image. The only sub-package that imports `flax.linen`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
