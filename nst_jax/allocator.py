"""Memory that is freed stays with the process. Standard library only."""

import ctypes
import sys

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
SLACK = 2**26  # for small things that come and go beside a run's large ones


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory instead of giving it back to the system.

    A chunk of steps takes its scratch memory anew, half a gigabyte at 512 px; once given back, all
    its pages are cleared and mapped again, which takes 0.2 s a chunk. One arena, because only the
    main one can hold such blocks. Has no effect after other threads have allocated, so call it
    first; only the command line does, for it is a setting of the whole process.

    Returns:
      Whether there is a glibc that took the settings.
    """
    libc = _glibc()
    if libc is None:
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_ARENA_MAX: 1}
    return all([libc.mallopt(option, value) for option, value in settings.items()])


def reserve(size: int) -> bool:
    """Make room in one piece for what will be allocated, where freed memory is kept.

    Nothing is used up until it is written to. Without it a small thing may get into a large block
    that was freed, which then is no longer large enough to be used again: the largest blocks of a
    run would be there twice.

    Args:
      size: of all that will be there at the same time, in bytes.

    Returns:
      Whether there is a glibc that made room.
    """
    libc = _glibc()
    if libc is None:
        return False
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    room = libc.malloc(size + SLACK)
    libc.malloc(2**20)  # never freed: it keeps the room apart from what is yet to be taken
    libc.free(room)
    return room is not None


def release_freed_memory() -> bool:
    """Give the pages of all that is free now back to the system, also in the midst of the heap.

    Returns:
      Whether there is a glibc that did.
    """
    libc = _glibc()
    if libc is None:
        return False
    libc.malloc_trim(0)
    return True


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt
    except (AttributeError, OSError):  # another C library
        return None
    return libc
