from .backend import device as device
from .backend import make_deterministic as make_deterministic
from .backend import use_compilation_cache as use_compilation_cache
from .backend import use_cpu_devices as use_cpu_devices
from .backend import versions as versions
from .files import atomic_write as atomic_write
from .files import cache_dir as cache_dir
from .files import file_digest as file_digest
from .memory import free_bytes as free_bytes
from .memory import host_bytes as host_bytes
from .memory import keep_freed_memory as keep_freed_memory
from .memory import peak_memory as peak_memory
from .signals import end_on_signals as end_on_signals
from .signals import stop_on_signals as stop_on_signals
from .threads import set_threads as set_threads
from .threads import usable_cpus as usable_cpus

__all__ = [
    "atomic_write",
    "cache_dir",
    "device",
    "end_on_signals",
    "file_digest",
    "free_bytes",
    "host_bytes",
    "keep_freed_memory",
    "make_deterministic",
    "peak_memory",
    "set_threads",
    "stop_on_signals",
    "usable_cpus",
    "use_compilation_cache",
    "use_cpu_devices",
    "versions",
]
