"""Weights of VGG-19: one tree of float32 arrays from any known file format.

Contract: files are untrusted. They are checked before use and never unpickled. The tree is
``{"params": ..., "preprocessing": ...}``, float32.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
