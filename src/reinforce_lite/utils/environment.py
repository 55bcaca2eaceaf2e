"""What a run goes on: the machine, and the versions that a result depends on."""

import os
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from reinforce_lite.utils import memory


def describe_machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The machine in names and numbers; `gpu` and its memory where the device is a card."""
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": memory.installed_bytes(),
    }
    if device.type in ("cuda", "xpu"):
        card = getattr(torch, device.type).get_device_properties(device)
        found |= {"gpu": card.name, "gpu_memory_bytes": card.total_memory}
    return found | {
        "versions": package_versions(),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
    }


def package_versions() -> dict[str, str]:
    """What a result depends on."""
    names = ["reinforce-lite", "torch", "transformers", "tokenizers"]
    names += ["torchao"] if find_spec("torchao") else []
    return {name: version(name) for name in names} | {"python": platform.python_version()}


def _processor() -> str:
    """The name that its maker gave it, where the system tells; else the kind."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
