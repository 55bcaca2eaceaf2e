"""The memory of this process and machine: measure it, return it to the system, retry when it runs out."""

import contextlib
import ctypes
import errno
import os
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError

Result = TypeVar("Result")

OOM_MESSAGES = (
    "out of memory",  # CUDA, HIP, Metal, and most others
    "can't allocate memory",  # torch on a CPU
    "cannot allocate memory",  # the system, e.g. when a file of weights is mapped
    "not enough memory",  # torch on Windows
    "failed to allocate memory",  # MKL
    "alloc_failed",  # cuBLAS, cuDNN, cuSPARSE, hipBLAS
    "erroroutofmemory",  # hipErrorOutOfMemory
    "errormemoryallocation",  # cudaErrorMemoryAllocation
    "error_out_of_device_memory",  # XPU: Level Zero and Unified Runtime
    "error_out_of_host_memory",
    "error_out_of_resources",
    "bad_alloc",  # C++
    "could not create a memory object",  # oneDNN
)
"""Parts of RuntimeErrors of libraries that have no type for running out of memory, in lower case."""
ONEDNN_OOM = re.compile(r"could not (create|execute) a primitive(?! descriptor)")
"""oneDNN does not say why it could not. Usually memory is short; if the reason is another one, a retry with
smaller pieces fails again. A descriptor is refused for an operation that oneDNN does not support."""
MMAP_THRESHOLD = 32 * 2**20
"""Bytes from which glibc maps an allocation separately (limit_fragmentation)."""
TRIM_THRESHOLD = 512 * 2**20
"""Bytes that glibc may keep free at the end of its heap."""
ONEDNN_CACHE_CAPACITY = 100
"""Compiled primitives that oneDNN keeps, each for one shape; its default is 1024."""
CUDA_CONTEXT = 500 * 10**6
"""About what CUDA and its libraries take of a GPU; varies with GPU and driver."""


def peak_bytes(device: torch.device) -> int:
    """The most memory this process has held: allocated on a GPU, else its resident set."""
    if device.type in ("cuda", "xpu"):
        return int(getattr(torch, device.type).max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def installed_bytes() -> int:
    """The memory of this machine, or of this container or process (`ulimit -v`) if it is limited to less."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        installed = min(installed, address_space)
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or its limit is "max"
        installed = min(installed, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return installed


def available_bytes() -> int:
    """Memory that could be allocated now: the system's estimate, or the container's remainder."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        available = min(available, limit - used)
    return available


def usable_bytes(device: torch.device) -> int | None:
    """What a run could hold if it were started now: the free memory and what this process holds.

    None where the device can't tell. On a GPU, which this call initializes, CUDA's context is counted in.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(min(total, free + torch.cuda.memory_reserved(device) + CUDA_CONTEXT))
    if device.type != "cpu":
        return None
    held = 0
    with contextlib.suppress(OSError):
        held = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return min(installed_bytes(), available_bytes() + held)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, one of its libraries or the system raised this error because memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    message = str(error).lower()
    is_library = isinstance(error, (RuntimeError, SafetensorError))
    return is_library and (any(m in message for m in OOM_MESSAGES) or bool(ONEDNN_OOM.search(message)))


def retry_on_oom(job: Callable[[], Result], shrink: Callable[[], None]) -> Result:
    """Return the result of `job`; whenever memory runs out, call `shrink` and run the job again.

    `shrink` raises DoesNotFitError when the job can't be made smaller. It is called after the error is gone,
    and with it the tensors that the error's frames held.
    """
    while True:
        try:
            return job()
        except Exception as error:  # not every device has an exception type for OOM
            if not is_out_of_memory(error):
                raise
        release_cached_memory()
        shrink()


def release_cached_memory() -> None:
    """Return to the system the free blocks that glibc and torch keep for later tensors.

    Called between rollout and update and after an evaluation: the next phase allocates other sizes, which
    do not fit into those blocks and would come on top. No effect without glibc or a GPU.
    """
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def limit_fragmentation() -> None:
    """Keep the process from growing step by step. Call it before the first matrix product, and before CUDA.

    No two steps have the same lengths, so freed blocks leave gaps that the next step's tensors do not fit
    into (docs/log.md). From now on glibc maps every tensor of MMAP_THRESHOLD or more separately and returns
    it to the system when it is freed. Smaller blocks stay in the process within a step, which saves the time
    to fault in fresh pages; `release_cached_memory` returns them afterwards. No effect without glibc.

    On a GPU torch's blocks grow in place (expandable segments), unless the user has configured its allocator.
    oneDNN's cache of compiled primitives is cut too: its entries are for shapes that do not recur.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the name before torch 2.9
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(ONEDNN_CACHE_CAPACITY))
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, MMAP_THRESHOLD)
        libc.mallopt(m_trim_threshold, TRIM_THRESHOLD)
