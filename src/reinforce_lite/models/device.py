"""Which device a model runs on, and the dtype its products are computed in."""

import torch

from reinforce_lite.errors import UsageError


def pick_device(wish: str) -> torch.device:
    """The device wished for; auto is the first there is of cuda, xpu, mps, cpu."""
    there = {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wish == "auto":
        wish = next(kind for kind, available in there.items() if available)
    if not there[wish]:
        raise UsageError(f"there is no {wish} device here", "model.device = auto takes what there is")
    return torch.device(wish)


def pick_dtype(wish: str, device: torch.device) -> torch.dtype:
    """The dtype wished for; auto is bfloat16 where the device computes it faster, else float32.

    Processors without units for it emulate it. Intel's have AMX for it; where that is hidden (in some
    virtual machines) AVX-512 does it at half the rate of float32 (docs/performance.md).
    """
    if wish != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[wish]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        can = torch.cpu.get_capabilities()
        avx512 = can.get("avx512_bf16", False) and "intel" not in str(can.get("cpu_name", "")).lower()
        fast = bool(avx512 or can.get("amx_bf16", False) or can.get("arm_bf16", False))
    else:
        fast = True
    return torch.bfloat16 if fast else torch.float32
