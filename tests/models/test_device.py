"""Which device and dtype are picked, by request and automatically."""

import pytest
import torch

from reinforce_lite.errors import UsageError
from reinforce_lite.models.device import pick_device, pick_dtype

CPU = torch.device("cpu")
INTEL, AMD = {"cpu_name": "Intel Xeon"}, {"cpu_name": "AMD EPYC"}


def test_pick_device_honours_the_request() -> None:
    assert pick_device("cpu") == CPU


def test_pick_device_refuses_a_missing_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no cuda device"):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_pick_dtype_honours_the_request(name: str, dtype: torch.dtype) -> None:
    assert pick_dtype(name, CPU) == dtype


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), torch.float32),  # GTX 1080: float16 at a 64th of the rate of float32
        ((7, 0), torch.float16),  # V100
        ((7, 5), torch.float16),  # T4, RTX 2080
        ((8, 0), torch.bfloat16),  # A100
    ],
)
def test_pick_dtype_depends_on_the_cards_tensor_cores(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    """As torch reports these cards: bfloat16 is emulated before 8.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or capability >= (8, 0),
    )
    assert pick_dtype("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": True, **INTEL}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False, **INTEL}, torch.float32),
        ({"avx512_bf16": True, **AMD}, torch.bfloat16),
    ],
    ids=["neither", "Intel with AMX", "Intel without AMX", "AMD"],
)
def test_pick_dtype_depends_on_the_cpus_bfloat16_units(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], expected: torch.dtype
) -> None:
    """Intel's AVX-512 computes bfloat16 at half the rate of float32; its AMX and AMD's AVX-512 do not."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert pick_dtype("auto", CPU) == expected
