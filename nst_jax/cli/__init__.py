"""The command ``nst-jax``: what each command does in a file of its name, and what commands share.

The flags of all commands are the fields of the dataclasses in ``options``, those of the settings
the fields of ``config``; ``app`` chooses the command.

Contract: the only code that prints, and that names options of the command line.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
