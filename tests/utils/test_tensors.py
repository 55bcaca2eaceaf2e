"""Files of tensors against those of the safetensors library."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.fake_cuda import FakeCuda
from reinforce_lite.utils import tensors
from reinforce_lite.utils.tensors import save_tensors


def some_tensors() -> dict[str, torch.Tensor]:
    """Every dtype, a number, an empty tensor, and one that is not contiguous."""
    torch.manual_seed(0)
    return {
        "weight/b": torch.randn(7, 5).bfloat16(),
        "weight/a": torch.nn.Parameter(torch.randn(3, 4)),
        'codes/ä "0"': torch.arange(77, dtype=torch.uint8),
        "half": torch.randn(3).half(),
        "double": torch.randn(3).double(),
        "counts": torch.arange(3),
        "step": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "turned": torch.randn(6, 5).t(),
    }


@pytest.mark.parametrize("piece_bytes", [16, 2**20])
def test_a_file_has_the_bytes_of_safetensors_own(
    piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "PIECE_BYTES", piece_bytes)
    saved = some_tensors()
    save_file({name: t.contiguous() for name, t in saved.items()}, tmp_path / "theirs")
    save_tensors(tmp_path / "ours", saved)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_of_a_card_pass_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 400 bytes at most 64 are copied at a time."""
    monkeypatch.setattr(tensors, "PIECE_BYTES", 64)
    numbers = torch.arange(100.0)
    copied: list[int] = []
    with FakeCuda():
        on_card = numbers.to("cuda")
        copy = torch.Tensor.cpu

        def counted(tensor: torch.Tensor) -> torch.Tensor:
            copied.append(tensor.nbytes)
            return copy(tensor)

        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "cpu", counted)
            save_tensors(tmp_path / "file", {"x": on_card})
    assert copied == [64] * 6 + [16]
    assert torch.equal(load_file(tmp_path / "file")["x"], numbers)
