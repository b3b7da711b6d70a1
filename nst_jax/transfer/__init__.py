"""Style transfer of one image, coarse to fine, or of a batch of images.

Contract: arrays in, `Result` out; no files and no terminal. The execution plan (whole image, tiles,
several devices) changes a result by rounding only, unless it shrinks the memory of L-BFGS.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
