"""Memory that is freed stays with the process. Standard library only."""

import ctypes
import sys

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory instead of giving it back to the system.

    A chunk of steps takes its scratch memory anew, half a gigabyte at 512 px; once given back, all
    its pages are cleared and mapped again, which takes 0.2 s a chunk. One arena, because only the
    main one can hold such blocks. Has no effect after other threads have allocated, so call it
    first; only the command line does, for it is a setting of the whole process.

    Returns:
      Whether there is a glibc that took the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_ARENA_MAX: 1}
    return all([mallopt(option, value) for option, value in settings.items()])
