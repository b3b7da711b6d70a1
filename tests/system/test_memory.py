"""Free and used memory, on made-up files and devices, and how glibc keeps freed memory."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest
from helpers.control_groups import lay_out  # noqa: F401

from nst_jax.system import free_bytes, keep_freed_memory, peak_memory
from nst_jax.system.memory import (
    LATER_PROGRAMS,
    STATUS,
    bytes_in_use,
    cgroup_bytes,
    process_memory,
    release_moved_block,
    reserve,
)

UNLIMITED = 9223372036854771712  # version 1 without a limit


def version_2(limit, usage, *, inactive=0, folder="."):
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": usage,
        f"{folder}/memory.stat": f"anon 5\nfile 7\ninactive_file {inactive}\nactive_file 3",
    }


def version_1(limit, usage, *, inactive=0, folder="."):
    return {
        f"memory/{folder}/memory.limit_in_bytes": limit,
        f"memory/{folder}/memory.usage_in_bytes": usage,
        f"memory/{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {inactive}",
    }


class TestControlGroups:
    def test_tightest_limit_on_the_path_from_the_root_applies(self, lay_out):
        files = version_2("max", 600, folder="a/b") | version_2(1000, 900, folder="a")
        files |= version_2(5000, 1000) | version_2(10, 10, folder="elsewhere")
        assert cgroup_bytes(**lay_out("0::/a/b\n", files)) == 100
        files |= version_2(1000, 900, inactive=150, folder="a")  # these pages count as free
        assert cgroup_bytes(**lay_out("0::/a/b\n", files)) == 250
        files |= version_2(1000, 1400, folder="a")
        assert cgroup_bytes(**lay_out("0::/a/b\n", files)) == 0

    @pytest.mark.parametrize("path", ["/", "/system/docker-1", "/../../other"])
    def test_container_sees_its_own_group_as_the_root(self, lay_out, path):
        assert cgroup_bytes(**lay_out(f"0::{path}\n", version_2(1000, 400))) == 600

    def test_version_1(self, lay_out):
        cgroup_file = "5:cpu,cpuacct:/x\n4:memory:/slurm/job\n0::/\n"
        files = version_1(2000, 700, inactive=100, folder="slurm/job")
        assert cgroup_bytes(**lay_out(cgroup_file, files | version_1(UNLIMITED, 9000))) == 1400

    @pytest.mark.parametrize(
        "cgroup_file, files",
        [
            ("0::/a\n", {}),
            ("0::/a\n", version_2("max", 600, folder="a")),
            ("4:memory:/\n", version_1(UNLIMITED, 600)),
            ("5:cpu:/\n", version_1(1000, 600)),
        ],
    )
    def test_no_limit(self, lay_out, cgroup_file, files):
        assert cgroup_bytes(**lay_out(cgroup_file, files)) is None


class TestFreeMemory:
    def test_cpu_has_the_smaller_of_machine_and_control_group(self, tmp_path, lay_out):
        device, meminfo = SimpleNamespace(platform="cpu"), tmp_path / "meminfo"
        paths = dict(meminfo=meminfo, cgroup_file=tmp_path / "cgroup", mount=tmp_path / "mount")
        assert free_bytes(device, **paths) is None  # no such files on other systems
        meminfo.write_text("MemTotal:  90 kB\nMemFree:   1 kB\nMemAvailable:   8 kB\nHuge: 0\n")
        assert free_bytes(device, **paths) == 8192
        lay_out("0::/\n", version_2(6000, 1000))
        assert free_bytes(device, **paths) == 5000

    def test_of_this_machine(self):
        free = free_bytes(jax.local_devices(backend="cpu")[0])
        assert free is None or 2**20 < free < 2**50

    @pytest.mark.parametrize(
        "stats, free, peak",
        [
            ({"bytes_limit": 100, "bytes_in_use": 30, "peak_bytes_in_use": 90}, 70, 90),
            ({"bytes_limit": 100, "bytes_in_use": 130}, 0, None),
            ({"bytes_in_use": 30}, None, None),
            (None, None, None),
        ],
    )
    def test_accelerators_report_their_pool(self, stats, free, peak):
        device = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
        assert free_bytes(device) == free
        assert peak_memory(device=device) == peak and process_memory(device=device) == 0


class TestUsedMemory:
    @pytest.mark.parametrize(
        "text, own, peak",
        [
            ("Name:\tx\nVmHWM:\t   7 kB\nVmRSS:\t   5 kB\n", 5120 + LATER_PROGRAMS, 7168),
            (None, 0, None),  # another system
            ("Name:\tVmHWM\nVmHWM:\nVmRSS:\tmuch kB\n", 0, None),
        ],
    )
    def test_numbers_from_linux(self, tmp_path, text, own, peak):
        if text is not None:
            (tmp_path / "status").write_text(text)
        options = dict(device=SimpleNamespace(platform="cpu"), status=tmp_path / "status")
        assert process_memory(**options) == own and peak_memory(**options) == peak

    @pytest.mark.skipif(not STATUS.exists(), reason="not Linux")
    @pytest.mark.skipif(jax.default_backend() != "cpu", reason="another memory")
    def test_of_this_process(self):
        before = bytes_in_use()
        block = ctypes.create_string_buffer(100_000_000)
        assert before is None or bytes_in_use() - before > 90_000_000
        block.raw = b"x" * len(block)
        peak, own = peak_memory(), process_memory() - LATER_PROGRAMS
        assert own > len(block) and peak > len(block) and own <= 1.1 * peak < 2**50


MALLOC = """
import ctypes
from pathlib import Path
from nst_jax.system.memory import keep_freed_memory, release_moved_block, reserve
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 10**6
assert keep_freed_memory() and reserve(10**9)
before = resident()
block = libc.malloc(10**8)
ctypes.memset(block, 1, 10**8)
libc.free(block)
print(resident() - before > 90, release_moved_block(10**8), resident() - before > 90)
print(release_moved_block(9 * 10**8), resident() - before < 10)
"""


class TestMalloc:
    @pytest.mark.skipif(bytes_in_use() is None, reason="not glibc")
    def test_freed_memory_is_kept_and_reused(self):
        """A larger block would not reuse the kept pages, which are then returned."""
        done = subprocess.run([sys.executable, "-c", MALLOC], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("True True True\nFalse True\n", "")

    def test_other_systems_are_left_alone(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "darwin")
        assert not keep_freed_memory() and not reserve(1) and bytes_in_use() is None
        assert release_moved_block(1)
