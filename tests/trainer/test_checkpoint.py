"""Checkpoints on the disk: complete or absent, checked by their hash, the last two kept."""

from pathlib import Path

import pytest
import torch

from reinforce_lite.errors import ReinforceLiteError
from reinforce_lite.trainer import checkpoint
from reinforce_lite.trainer.checkpoint import checkpoint_steps, latest_checkpoint, save_checkpoint

META = {"data": "abc", "seconds": 1.5}


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weight/w": torch.full((4, 3), value), "step/w": torch.tensor(value)}


def test_saved_checkpoint_is_read_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, tensors(3), META)
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.step == 3
    assert {key: latest.meta[key] for key in META} == META
    assert torch.equal(latest.tensors["weight/w"], torch.full((4, 3), 3.0))


def test_no_folder_and_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    assert latest_checkpoint(tmp_path) is None


def test_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10, 11):
        save_checkpoint(tmp_path, step, tensors(step), META)
    assert checkpoint_steps(tmp_path) == [10, 11]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, tensors(step), META)
    file = tmp_path / "step-2" / "state.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.step == 1
    assert float(latest.tensors["step/w"]) == 1


def test_failed_write_leaves_the_checkpoint_before_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, tensors(1), META)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ReinforceLiteError) as caught:
        save_checkpoint(tmp_path, 2, tensors(2), META)
    assert "step 2" in caught.value.cause
    assert "No space left on device" in caught.value.cause
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_leftover_of_a_kill_is_removed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, tensors(1), META)
    (tmp_path / ".step-2").mkdir()
    (tmp_path / ".step-2" / "state.safetensors").write_bytes(b"half")
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
