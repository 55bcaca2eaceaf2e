"""What a run did need: its peak, as the machine saw it. GB is 10^9 bytes."""

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch


def peak_bytes(device: torch.device) -> int:
    """The most memory this process has held: the device's, or on a CPU the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "xpu":
        return torch.xpu.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


Made = TypeVar("Made")

OUT = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "bad_alloc")
"""What errors say that have no type of their own: a processor's, Metal's, CUDA's libraries'."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is torch's, or Python's, way to say that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in OUT)


def retry_on_oom(job: Callable[[], Made], smaller: Callable[[], None]) -> Made:
    """What `job` makes; each time that memory runs out, `smaller` is called and the job done again.

    `smaller` raises WontFit when there is nothing left to make smaller. It is called when the error, and with
    it all that its frames held, is gone.
    """
    while True:
        try:
            return job()
        except Exception as error:  # what torch raises has no type of its own on every device
            if not is_out_of_memory(error):
                raise
        release_cached_memory()
        smaller()


def installed_bytes() -> int:
    """What this machine has, or this container may use."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        there = min(there, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return there


def available_bytes() -> int:
    """Memory that a new process could use now: the system's estimate, or the container's remainder."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return free


MAPPED = 32 * 2**20  # bytes
PRIMITIVES = 100
"""Products that oneDNN keeps compiled, each for sizes of its own."""


def release_cached_memory() -> None:
    """Return to the system what glibc and torch keep for the next tensors.

    For between rollout and update and after an evaluation: the next blocks are of other sizes, which would
    not fit into these and would come on top. Nothing happens where there is neither glibc nor a card.
    """
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def limit_fragmentation() -> None:
    """Keep a process from growing step by step; before the first product.

    Steps are never of the same length, so blocks that were freed leave holes that the next step's tensors do
    not fit into (docs/log.md). From here on every tensor above MAPPED is mapped on its own and goes back to
    the system when it is freed; smaller ones are kept for reuse within the step, which saves the time that
    fresh pages take, and `give_back` lets go of them after it. Nothing happens where there is no glibc.

    oneDNN would keep a thousand compiled products, for lengths that never come again.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, MAPPED)
        libc.mallopt(m_trim_threshold, 512 * 2**20)
