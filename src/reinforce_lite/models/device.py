"""Which device a model runs on, and the dtype of its matrix products."""

import torch

from reinforce_lite.errors import UsageError


def pick_device(requested: str) -> torch.device:
    """The requested device; auto is the first available of cuda, xpu, mps, cpu."""
    available = {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if requested == "auto":
        requested = next(kind for kind, usable in available.items() if usable)
    if not available[requested]:
        raise UsageError(
            f"this machine has no {requested} device", "model.device = auto picks one that is available"
        )
    return torch.device(requested)


def pick_dtype(requested: str, device: torch.device) -> torch.dtype:
    """The requested dtype; auto is bfloat16 where the device computes it faster than float32, else float32.

    CUDA devices of compute capability 7.0 and 7.5 have tensor cores for float16 but not for bfloat16.
    CPUs without bfloat16 instructions emulate it. Intel's are fast at it with AMX only: where a virtual
    machine hides AMX, AVX-512 runs at half the rate of float32 (docs/performance.md).
    """
    if requested != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[requested]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        if not fast and torch.cuda.get_device_capability(device) >= (7, 0):
            return torch.float16
    elif device.type == "cpu":
        cpu = torch.cpu.get_capabilities()
        avx512 = cpu.get("avx512_bf16", False) and "intel" not in str(cpu.get("cpu_name", "")).lower()
        fast = bool(avx512 or cpu.get("amx_bf16", False) or cpu.get("arm_bf16", False))
    else:
        fast = True
    return torch.bfloat16 if fast else torch.float32
