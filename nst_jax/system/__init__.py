"""Interfaces to the operating system: files, streams, signals, threads, memory, JAX's devices.

Contract: nothing here depends on images or networks. JAX is imported only inside functions, so that
the command line's help does not wait for it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
