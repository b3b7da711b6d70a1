"""Memory that is freed stays with the process. Standard library only."""

import ctypes
import mmap
import sys

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
LARGE = 2**25  # bytes, the most that glibc takes for its threshold
PAGE, PROBES = mmap.PAGESIZE, 256
ALIGNMENT = 64  # of XLA's blocks
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
    room = libc.malloc(size + SLACK)
    libc.malloc(2**20)  # never freed: it keeps the room apart from what is yet to be taken
    libc.free(room)
    return room is not None


def give_back_large_blocks() -> bool:
    """Undo ``keep_freed_memory`` for large blocks, where memory is scarce.

    Each is mapped for itself and given back when it is freed, so that none is ever there twice, for
    the time that it takes to map and clear its pages anew.

    Returns:
      Whether there is a glibc that took the settings.
    """
    libc = _glibc()
    if libc is None:
        return False
    settings = {M_MMAP_MAX: 2**16, M_MMAP_THRESHOLD: LARGE}
    return all([libc.mallopt(option, value) for option, value in settings.items()])


def keep_to_place(size: int) -> bool:
    """Prepare that a large block will be taken again that has just been freed.

    It may get another place: something small that has come to lie in the old one, or a few bytes
    beside it for its alignment, suffice. Then the old one's pages are given back first, or both
    would count. To see it, as much is taken and freed again. (What other threads take before the
    block itself is taken may still change its place: seldom, on a busy machine.)

    Args:
      size: of the block.

    Returns:
      Whether it will be where its pages are.
    """
    libc = _glibc()
    if libc is None:
        return True
    block = libc.aligned_alloc(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)
    if block is None:
        return True
    step = max(1, size // PAGE // PROBES) * PAGE
    resident, state = 0, ctypes.c_ubyte()
    for place in range(block - block % PAGE, block + size, step):
        libc.mincore(place, PAGE, ctypes.byref(state))
        resident += state.value & 1
    libc.free(block)
    there = resident * step > size // 2
    if not there:
        libc.malloc_trim(0)
    return there


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


def bytes_in_use() -> int | None:
    """What this process has allocated and not freed, or None where there is no glibc that tells."""
    libc = _glibc()
    if libc is None or not hasattr(libc, "mallinfo2"):  # glibc 2.33
        return None
    libc.mallinfo2.restype = _MallocInfo
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd


class _MallocInfo(ctypes.Structure):
    """``struct mallinfo2`` of malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt
    except (AttributeError, OSError):  # another C library
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.aligned_alloc.restype = ctypes.c_void_p
    libc.aligned_alloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    libc.free.argtypes = [ctypes.c_void_p]
    return libc
