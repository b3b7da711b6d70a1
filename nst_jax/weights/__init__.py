"""Weights of VGG-19, from files of any known form to one tree.

Contract: files are foreign data: checked before they are used, never unpickled. The tree is
``{"params": ..., "preprocessing": ...}``, float32.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
