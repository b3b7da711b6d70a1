"""What is asked of glibc's malloc, told by a stand-in: what it does with it is its own affair."""

import ctypes
import sys

import pytest

from nst_jax import allocator


class Libc:
    """Remembers the calls; blocks have addresses that are never used."""

    def __init__(self, *, resident=False, takes=True):
        self.resident, self.takes, self.calls = resident, takes, []

    def mallopt(self, option, value):
        self.calls.append(("mallopt", option, value))
        return int(self.takes)

    def malloc(self, size):
        self.calls.append(("malloc", size))
        return 2**20 * len(self.calls) if self.takes else None

    def aligned_alloc(self, alignment, size):
        assert size % alignment == 0
        self.calls.append(("aligned_alloc", size))
        return 2**20 + alignment if self.takes else None

    def mincore(self, place, size, state):
        assert place % allocator.PAGE == 0 and size == allocator.PAGE
        state._obj.value = 254 + self.resident  # the other bits are undefined

    def free(self, block):
        self.calls.append(("free", block))

    def malloc_trim(self, padding):
        self.calls.append(("malloc_trim", padding))


@pytest.fixture
def give(monkeypatch):
    """Put another C library in the place of this process's."""

    def give(libc):
        monkeypatch.setattr(allocator, "_glibc", lambda: libc)
        return libc

    return give


def test_freed_memory_is_kept_by_one_arena_and_large_blocks_are_not(give):
    libc = give(Libc())
    assert allocator.keep_freed_memory()
    # M_MMAP_MAX, M_TRIM_THRESHOLD and M_ARENA_MAX of malloc.h.
    assert libc.calls == [("mallopt", -4, 0), ("mallopt", -1, 2**31 - 1), ("mallopt", -8, 1)]
    libc.calls.clear()
    assert allocator.give_back_large_blocks()
    assert libc.calls == [("mallopt", -4, 2**16), ("mallopt", -3, 2**25)]
    give(Libc(takes=False))
    assert not allocator.keep_freed_memory() and not allocator.give_back_large_blocks()


def test_room_is_freed_behind_something_that_stays(give):
    libc = give(Libc())
    assert allocator.reserve(10**9)
    (_, room), (_, wall), freed = libc.calls
    assert room >= 10**9 and wall < 2**21 and freed == ("free", 2**20)
    give(Libc(takes=False))
    assert not allocator.reserve(10**9)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("size", [10**9, 4097, 1])
def test_a_place_that_is_lost_is_given_back(give, resident, size):
    libc = give(Libc(resident=resident))
    assert allocator.keep_to_place(size) == resident
    taken, freed, *trimmed = libc.calls
    assert taken[1] - size in range(64) and freed[0] == "free"
    assert trimmed == ([] if resident else [("malloc_trim", 0)])


def test_another_c_library_is_left_alone(give):
    give(None)
    assert not allocator.keep_freed_memory() and not allocator.give_back_large_blocks()
    assert not allocator.reserve(1) and not allocator.release_freed_memory()
    assert allocator.keep_to_place(1) and allocator.bytes_in_use() is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_this_process_s_own():
    """The functions are there, and a block in use is counted."""
    libc = allocator._glibc()
    if libc is None or not hasattr(libc, "mallinfo2"):
        pytest.skip("another C library, or an old one")
    for name in ("mallopt", "malloc_trim", "mincore", "aligned_alloc", "free"):
        assert hasattr(libc, name)
    before = allocator.bytes_in_use()
    block = ctypes.create_string_buffer(200_000_000)
    assert allocator.bytes_in_use() - before > 190_000_000
    del block
