"""The state of a run on disk, whole or not at all.

Contract: what is read was checked (checksums, types, versions) before it is used; nothing is
unpickled.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
