"""From images to an image: one at a time, from coarse to fine, or many at once.

Contract: arrays in, `Result` out; no files and no terminal. How a run is computed (whole, in tiles,
over devices) changes its last digits at most.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
