"""Compiled programs kept from one run of the command to the next.

Only the command line turns this on: it is a setting of the whole process. What is kept is machine
code that the next run executes, so the folder belongs to its user alone.
"""

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import jax

from nst_jax.fetch import cache_dir

CPUINFO = Path("/proc/cpuinfo")


def machine_fingerprint() -> str:
    """A short name of processor, its instructions and jaxlib: programs of others must not run here.

    A home folder may be shared by machines of several kinds.
    """
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:  # another system
        lines = [platform.processor()]
    kinds = ("model name", "flags", "Features", "CPU part")
    facts = [line for line in lines if line.startswith(kinds)][: len(kinds)] or lines[:1]
    text = "\n".join(
        [platform.system(), platform.machine(), importlib.metadata.version("jaxlib"), *facts]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def use_compilation_cache() -> Path | None:
    """Let JAX keep what it compiles in the per-user cache.

    Does nothing where the user has set ``JAX_COMPILATION_CACHE_DIR``, or where the folder cannot be
    made or others may write to it. Nothing is ever evicted, about 400 kB for a size of pictures;
    the folder ``compiled`` may be deleted at any time.

    Returns:
      The folder, or None.
    """
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return None
    folder = cache_dir() / "compiled" / machine_fingerprint()
    try:
        for path in (cache_dir(), folder.parent, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = path.stat()
            if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
                return None
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs too: together they take longer to compile than the loop.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder
