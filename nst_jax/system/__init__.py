"""The operating system: files, streams, signals, threads, memory and JAX's devices.

Contract: nothing here knows of images or networks. JAX is imported within functions only, so that
asking the command line for help does not wait for it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
