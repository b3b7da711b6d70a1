"""Freed memory stays: seen by the page faults of taking the same amount again."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from nst_jax.allocator import give_back_large_blocks, keep_freed_memory

if sys.argv[1] != "leave":
    assert keep_freed_memory()
if sys.argv[1] == "give back":
    assert give_back_large_blocks()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = b"x" * 200_000_000
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

# A large block is freed, something small comes that stays, and as much is wanted again.
ROOM = """
import resource, sys
from nst_jax.allocator import keep_freed_memory, reserve

assert keep_freed_memory()
if sys.argv[1] == "reserve":
    assert reserve(350_000_000)
one = b"x" * 150_000_000
small = [b"z" * 3_000_000]
two = b"y" * 200_000_000
faults = 0
for _ in range(3):
    del one
    small += [b"z" * 3_000_000]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    one = b"x" * 150_000_000
    faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""

# The block's old place is broken by what stays in it.
MOVED = """
import ctypes, re
from nst_jax.allocator import bytes_in_use, keep_freed_memory, keep_to_place

def resident():
    return 1024 * int(re.search("VmRSS:[^0-9]*([0-9]+)", open("/proc/self/status").read())[1])

SIZE = 200_000_000
assert keep_freed_memory()
wall, in_use = [], bytes_in_use()
block = bytearray(b"x") * SIZE
assert bytes_in_use() - in_use >= SIZE
wall.append(b"z" * 1_000_000)  # behind it, so that it is alone when it is freed
del block
assert SIZE > bytes_in_use() - in_use
assert keep_to_place(SIZE - 1000)
before = resident()
wall.append(b"z" * 1_000_000)  # in its place
assert not keep_to_place(SIZE)
assert before - resident() > 0.9 * SIZE
print(0)
"""

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")


def faults(program, mode):
    command = [sys.executable, "-c", program, mode]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@LINUX
def test_a_second_allocation_maps_no_pages():
    if faults(FAULTS, "leave") < 1000:
        pytest.skip("this C library keeps freed memory anyway")
    assert faults(FAULTS, "keep") < 100
    assert faults(FAULTS, "give back") > 10_000


@LINUX
def test_small_things_leave_room_for_large_ones():
    if faults(ROOM, "plain") < 10_000:
        pytest.skip("this C library leaves room anyway")
    assert faults(ROOM, "reserve") < 100


@LINUX
def test_a_place_that_is_lost_is_given_back():
    assert faults(MOVED, "") == 0
