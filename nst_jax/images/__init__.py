"""Read and write image files.

Contract: images are NumPy arrays ``[H, W, 3]``, float32 sRGB in [0, 1]; masks are ``[H, W]``. A
file that cannot be read correctly is refused with a one-line `InputError`. Nothing imports JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
