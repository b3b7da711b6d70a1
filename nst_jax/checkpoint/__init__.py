"""Save the state of a run to disk atomically, and restore it.

Contract: everything read is validated (checksums, types, versions) before it is used; nothing is
unpickled.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
