"""Images from and to files.

Contract: arrays are float32 sRGB in [0, 1], ``[H, W, 3]``, of NumPy; masks ``[H, W]``. What cannot
be read as it is meant is refused in one line (`InputError`). No JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
