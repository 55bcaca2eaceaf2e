"""What a run did need: its peak, as the machine saw it. GB is 10^9 bytes."""

import contextlib
import ctypes
import resource
import sys

import torch


def peak_bytes(device: torch.device) -> int:
    """The most memory this process has held: the device's, or on a CPU the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "xpu":
        return torch.xpu.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def give_back() -> None:
    """Return to the system what `reuse_freed` has kept.

    For after an evaluation: its blocks are of other sizes than an update's, which would not fit into
    them and would come on top. Nothing happens where there is no glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def reuse_freed() -> None:
    """Have glibc keep large freed blocks for the next tensor instead of giving them back.

    By default every large tensor on a CPU is fresh pages from the system, which zeroes them first:
    a quarter of an update's time (docs/log.md). Nothing happens where there is no glibc.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
