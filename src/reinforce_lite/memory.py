"""What a run did need: its peak, as the machine saw it. GB is 10^9 bytes."""

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
