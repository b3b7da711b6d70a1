"""What is asked of glibc's malloc, told by a stand-in: what it does with it is its own affair."""

import ctypes
import sys

import pytest

from nst_jax.system import keep_freed_memory
from nst_jax.system.memory import PAGE, bytes_in_use, keep_to_place, reserve


class Libc:
    """Remembers the calls; blocks have addresses that are never used."""

    def __init__(self, *, resident=False, takes=True):
        self.resident, self.takes, self.calls = resident, takes, []

    def mallopt(self, option, value):
        self.calls.append((option, value))
        return int(self.takes)

    def malloc(self, size):
        self.calls.append(("malloc", size))
        return 2**20 * len(self.calls) if self.takes else None

    def aligned_alloc(self, alignment, size):
        assert size % alignment == 0
        self.calls.append(("aligned_alloc", size))
        return 2**20 + alignment if self.takes else None

    def mincore(self, place, size, state):
        assert place % PAGE == 0 and size == PAGE
        state._obj.value = 254 + self.resident  # the other bits are undefined

    def free(self, block):
        self.calls.append(("free", block))

    def malloc_trim(self, padding):
        self.calls.append(("malloc_trim", padding))


# M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX and M_ARENA_MAX of malloc.h.
@pytest.mark.parametrize("large, blocks", [(True, 0), (False, 2**16)])
def test_freed_memory_is_kept_by_one_arena(large, blocks):
    libc = Libc()
    assert keep_freed_memory(large=large, libc=libc)
    assert dict(libc.calls) == {-1: 2**31 - 1, -3: 2**25, -4: blocks, -8: 1}
    assert not keep_freed_memory(large=large, libc=Libc(takes=False))


def test_room_is_freed_behind_something_that_stays():
    libc = Libc()
    assert reserve(10**9, libc=libc)
    (_, room), (_, wall), freed = libc.calls
    assert room >= 10**9 and wall < 2**21 and freed == ("free", 2**20)
    assert not reserve(10**9, libc=Libc(takes=False))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("size", [10**9, 4097, 1])
def test_a_place_that_is_lost_is_given_back(resident, size):
    libc = Libc(resident=resident)
    assert keep_to_place(size, libc=libc) == resident
    taken, freed, *trimmed = libc.calls
    assert taken[1] - size in range(64) and freed[0] == "free"
    assert trimmed == ([] if resident else [("malloc_trim", 0)])


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory() and not reserve(1) and bytes_in_use() is None
    assert keep_to_place(1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_a_block_in_use_is_counted():
    before = bytes_in_use()
    if before is None:
        pytest.skip("another C library, or an old one")
    block = ctypes.create_string_buffer(200_000_000)
    assert bytes_in_use() - before > 190_000_000
    del block
