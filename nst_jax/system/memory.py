"""Measure free and used memory, and control how the process keeps freed memory.

The numbers come from Linux (for the machine, the process and the control groups that limit it), and
from JAX for its devices. JAX is imported only inside functions.
"""

import ctypes
import mmap
import sys
from pathlib import Path
from typing import Any

MEMINFO = Path("/proc/meminfo")

STATUS = Path("/proc/self/status")

CGROUP_FILE = Path("/proc/self/cgroup")

CGROUP_MOUNT = Path("/sys/fs/cgroup")

# For each version of control groups, the file with the limit, the file with the usage, and the
# counter in memory.stat of file pages that the kernel reclaims first. See the kernel's documents
# admin-guide/cgroup-v1/memory.rst and admin-guide/cgroup-v2.rst.
GROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}

LATER_PROGRAMS = 100_000_000  # bytes, measured: programs compiled after the run is planned

# Options of mallopt in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8

_LARGEST_THRESHOLD = 2**25  # bytes: glibc's maximum for M_MMAP_THRESHOLD on 64-bit systems

PAGE, PROBES = mmap.PAGESIZE, 256

ALIGNMENT = 64  # bytes: XLA's alignment of buffers

_SLACK = 2**26  # bytes for small allocations beside the large ones of a run


def in_gib(count: float, *, digits: int = 2) -> str:
    """Format a number of bytes as GiB, or as MiB if it is small.

    Args:
      count: the number of bytes.
      digits: significant digits.

    >>> in_gib(3.14 * 2**30), in_gib(2**28), in_gib(0), in_gib(1.234 * 2**30, digits=3)
    ('3.1 GiB', '0.25 GiB', '0 GiB', '1.23 GiB')
    """
    gib = count / 2**30
    if 0 < gib < 0.095:
        return f"{1024 * gib:.{digits}g} MiB"
    return f"{gib:.{digits - 1}f} GiB" if gib >= 1 else f"{gib:.{digits}g} GiB"


def free_bytes(device: Any, **paths: Path) -> int | None:
    """Return the memory that this process can still take on a device.

    All CPU devices of a process share the host's memory. For a GPU it is the rest of the pool that
    JAX allocates when it starts (by default three quarters of the GPU's memory).

    Args:
      device: a device of JAX.
      paths: as for ``host_bytes``.

    Returns:
      Bytes, or None if unknown.
    """
    if device.platform == "cpu":
        return host_bytes(**paths)
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats or "bytes_in_use" not in stats:
        return None
    return max(0, stats["bytes_limit"] - stats["bytes_in_use"])


def host_bytes(
    *, meminfo: Path = MEMINFO, cgroup_file: Path = CGROUP_FILE, mount: Path = CGROUP_MOUNT
) -> int | None:
    """Return the host memory that this process can still take, or None if unknown.

    Args:
      meminfo: Linux's ``/proc/meminfo``.
      cgroup_file, mount: as for ``process_cgroups``.
    """
    limits = [available_bytes(meminfo), cgroup_bytes(cgroup_file=cgroup_file, mount=mount)]
    return min((free for free in limits if free is not None), default=None)


def process_memory(*, device: Any = None, status: Path = STATUS) -> int:
    """Return the host memory of this process once all programs are compiled, in bytes.

    It is the resident memory now plus an allowance for programs that are compiled later. It is 0 if
    the process computes in a GPU's memory, and on systems other than Linux.

    Args:
      device: a device of JAX, by default the first one of the process.
      status: Linux's ``/proc/self/status``.
    """
    resident = _table(status).get("VmRSS")
    if (device or _first_device()).platform != "cpu" or resident is None:
        return 0
    return 1024 * resident + LATER_PROGRAMS


def peak_memory(*, device: Any = None, status: Path = STATUS) -> int | None:
    """Return the peak use so far of the memory that this process computes in, or None if unknown.

    Args:
      device, status: as for ``process_memory``.
    """
    device = device or _first_device()
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("peak_bytes_in_use")
    peak = _table(status).get("VmHWM")
    return None if peak is None else 1024 * peak


def available_bytes(meminfo: Path = MEMINFO) -> int | None:
    """Return the memory that Linux reports as available, or None on other systems."""
    kibibytes = _table(meminfo).get("MemAvailable")
    return None if kibibytes is None else 1024 * kibibytes


def cgroup_bytes(*, cgroup_file: Path = CGROUP_FILE, mount: Path = CGROUP_MOUNT) -> int | None:
    """Return the memory that the control groups of this process still allow.

    Containers and job queues limit memory by control groups. A group's limit includes the use of
    all groups below it, so the tightest on the path from the root to the process's group applies.
    Missing files count as no limit.

    Args:
      cgroup_file, mount: as for ``process_cgroups``.

    Returns:
      Bytes, or None if there is no limit.
    """
    groups = process_cgroups("memory", cgroup_file=cgroup_file, mount=mount)
    free = [_group_bytes(folder, *GROUP_FILES[version]) for version, folder in groups]
    return min((count for count in free if count is not None), default=None)


def process_cgroups(
    controller: str, *, cgroup_file: Path = CGROUP_FILE, mount: Path = CGROUP_MOUNT
) -> list[tuple[int, Path]]:
    """List the control groups that limit this process, from the root to the process's group.

    A listed folder may not exist: in a container the mounted root may be the container's group,
    while the path is relative to the host's root.

    Args:
      controller: the limited resource, ``"memory"`` or ``"cpu"``.
      cgroup_file: Linux's ``/proc/self/cgroup``.
      mount: the folder where control groups are mounted.

    Returns:
      The version of control groups and the folder of each; empty on systems other than Linux.
    """
    try:
        lines = cgroup_file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    groups: list[tuple[int, Path]] = []
    # Each line is "hierarchy:controllers:path"; version 2 lists no controllers (man 7 cgroups).
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            version, root = 2, mount
        elif controller in controllers.split(","):
            version, root = 1, mount / controller
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        groups += [(version, root.joinpath(*parts[:depth])) for depth in range(len(parts) + 1)]
    return groups


def _first_device() -> Any:
    import jax

    return jax.local_devices()[0]


def _group_bytes(folder: Path, limit_file: str, usage_file: str, reclaimable: str) -> int | None:
    """Return the memory that one group still allows, or None if it has no limit."""
    limit, usage = _number(folder / limit_file), _number(folder / usage_file)
    if limit is None or usage is None or limit >= 2**60:  # version 1: a huge number is no limit
        return None
    # The usage includes the page cache. Its inactive file pages are reclaimed before an allocation
    # fails.
    usage -= _table(folder / "memory.stat").get(reclaimable, 0)
    return max(0, limit - max(0, usage))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # missing, or "max"
        return None


def _table(path: Path) -> dict[str, int]:
    """Parse the kernel's tables of a name and a number per line."""
    try:
        words = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}


def keep_freed_memory(*, large: bool = True, libc: Any = None) -> bool:
    """Let glibc keep freed memory instead of returning it to the system.

    Every chunk of steps allocates its scratch memory again, half a gigabyte at 512 px. If freed
    memory is returned, the system has to clear and map all these pages again, which takes 0.2 s per
    chunk. Sets the whole process; only the command line calls it. Call it before other threads
    allocate, or it has no effect.

    Args:
      large: whether to keep large blocks, too. If memory is scarce, call it again with False: a
        large block is then returned when it is freed, so that none occupies memory twice.
      libc: the C library, by default that of the process.

    Returns:
      Whether the settings were applied; False if the C library is not glibc.
    """
    libc = libc or _glibc()
    if libc is None:
        return False
    # Blocks above M_MMAP_THRESHOLD are mapped one by one, and unmapped when freed, unless
    # M_MMAP_MAX is 0. M_TRIM_THRESHOLD stops the heap from shrinking. Only the main arena can grow
    # to blocks of any size, hence a single arena (man 3 mallopt).
    settings = {M_MMAP_MAX: 0 if large else 2**16, M_MMAP_THRESHOLD: _LARGEST_THRESHOLD}
    settings |= {M_TRIM_THRESHOLD: 2**31 - 1, M_ARENA_MAX: 1}
    return all([libc.mallopt(option, value) for option, value in settings.items()])


def reserve(size: int, *, libc: Any = None) -> bool:
    """Reserve one contiguous free area in the heap, for use with ``keep_freed_memory``.

    Otherwise a small allocation may land in a freed large block, which is then too small to be used
    again, and the largest blocks of a run occupy memory twice. Reserved memory is not used until
    it is written to.

    Args:
      size: bytes that will be allocated at the same time.
      libc: the C library, by default that of the process.

    Returns:
      Whether the area was reserved; False if the C library is not glibc.
    """
    libc = libc or _glibc()
    if libc is None:
        return False
    area = libc.malloc(size + _SLACK)
    libc.malloc(2**20)  # never freed: separates the area from the top of the heap
    libc.free(area)
    return area is not None


def release_moved_block(size: int, *, libc: Any = None) -> bool:
    """Return a freed block's pages to the system if its next allocation would not reuse them.

    A large block that is freed and allocated again may move, because a small allocation has landed
    in its old place. Then the pages of both places would count. This allocates the block as a
    trial and looks whether its pages are resident; if not, it trims the heap. Allocations by other
    threads in between may still move the block, which is rare.

    Args:
      size: size of the block in bytes.
      libc: the C library, by default that of the process.

    Returns:
      Whether the block will reuse resident pages.
    """
    libc = libc or _glibc()
    if libc is None:
        return True
    block = libc.aligned_alloc(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)
    if block is None:
        return True
    # Probe about 256 pages spread over the block: bit 0 of mincore's answer says "resident".
    step = max(1, size // PAGE // PROBES) * PAGE
    resident, state = 0, ctypes.c_ubyte()
    for place in range(block - block % PAGE, block + size, step):
        libc.mincore(place, PAGE, ctypes.byref(state))
        resident += state.value & 1
    libc.free(block)
    reuses_pages = resident * step > size // 2
    if not reuses_pages:
        libc.malloc_trim(0)
    return reuses_pages


def bytes_in_use() -> int | None:
    """Return the bytes that this process has allocated and not freed, or None without glibc."""
    libc = _glibc()
    if libc is None or not hasattr(libc, "mallinfo2"):  # new in glibc 2.33
        return None
    libc.mallinfo2.restype = _MallocInfo
    info = libc.mallinfo2()
    # Bytes allocated in the heap, plus bytes in blocks that are mapped one by one.
    return info.uordblks + info.hblkhd


class _MallocInfo(ctypes.Structure):
    """``struct mallinfo2`` from malloc.h."""

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
