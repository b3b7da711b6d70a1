"""The command ``nst-jax``: one file a command, and what commands share.

Contract: the only code that prints, and that names options of the command line.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
