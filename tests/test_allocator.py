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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_a_second_allocation_maps_no_pages():
    def faults(mode):
        command = [sys.executable, "-c", FAULTS, mode]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    if faults("leave") < 1000:
        pytest.skip("this C library keeps freed memory anyway")
    assert faults("keep") < 100
