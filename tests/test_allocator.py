"""Freed memory stays: seen by the page faults of taking the same amount again."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from nst_jax.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
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

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")


def faults(program, mode):
    command = [sys.executable, "-c", program, mode]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@LINUX
def test_a_second_allocation_maps_no_pages():
    if faults(FAULTS, "leave") < 1000:
        pytest.skip("this C library keeps freed memory anyway")
    assert faults(FAULTS, "keep") < 100


@LINUX
def test_small_things_leave_room_for_large_ones():
    if faults(ROOM, "plain") < 10_000:
        pytest.skip("this C library leaves room anyway")
    assert faults(ROOM, "reserve") < 100
