"""Checkpoints on the disk: complete or absent, checked by their hashes, the last two kept."""

import errno
import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from reinforce_lite.errors import FileError
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


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "remove":
        file.unlink()
    elif how == "truncate":
        file.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.case(4)
@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("file", ["state.safetensors", "meta.json", "manifest.json"])
def test_damaged_checkpoint_is_named_and_set_aside(
    tmp_path: Path, file: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, tensors(step), META)
    damage(tmp_path / "step-2" / file, how)
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.step == 1
    assert float(latest.tensors["step/w"]) == 1
    assert f"step-2 is damaged ({file}" in caplog.text
    assert names(tmp_path) == ["step-1", "step-2.damaged"]
    save_checkpoint(tmp_path, 2, tensors(2), META)
    save_checkpoint(tmp_path, 3, tensors(3), META)
    assert names(tmp_path) == ["step-2", "step-2.damaged", "step-3"]


@pytest.mark.case(4)
def test_any_flipped_bit_of_the_small_files_is_found(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, tensors(1), META)
    for name in ("meta.json", "manifest.json"):
        file = tmp_path / "step-1" / name
        content = file.read_bytes()
        for bit in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            assert checkpoint._damaged_file(file.parent) == name
        file.write_bytes(content)
    assert checkpoint._damaged_file(tmp_path / "step-1") is None


@pytest.mark.case(4)
def test_damaged_checkpoints_are_all_kept(tmp_path: Path) -> None:
    for _ in range(2):
        for step in (1, 2):
            save_checkpoint(tmp_path, step, tensors(step), META)
            damage(tmp_path / f"step-{step}" / "state.safetensors", "flip")
        assert latest_checkpoint(tmp_path) is None
    assert names(tmp_path) == ["step-1.damaged", "step-1.damaged-2", "step-2.damaged", "step-2.damaged-2"]
    assert checkpoint_steps(tmp_path) == []


@pytest.mark.case(4)
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("part", ["step-2/state.safetensors", "step-2/meta.json", "step-2/manifest.json"])
def test_checkpoint_that_can_not_be_read_is_not_called_damaged(
    tmp_path: Path, number: int, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, tensors(step), META)
    read = io.open

    def refuse(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).endswith(part):
            raise OSError(number, os.strerror(number), str(file))
        return read(file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", refuse)
        with pytest.raises(FileError) as caught:
            latest_checkpoint(tmp_path)
    assert "step-2" in caught.value.cause
    assert os.strerror(number) in caught.value.cause
    assert names(tmp_path) == ["step-1", "step-2"]
    assert getattr(latest_checkpoint(tmp_path), "step", None) == 2


def test_checkpoints_that_can_not_be_listed_are_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, tensors(1), META)

    def refuse(_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(FileError, match="can't read"):
        latest_checkpoint(tmp_path)


def test_checkpoint_of_an_older_version_has_no_manifest(tmp_path: Path) -> None:
    """Its meta.json held the hash of the state."""
    save_checkpoint(tmp_path, 1, tensors(1), META)
    folder = tmp_path / "step-1"
    (folder / "manifest.json").unlink()
    digest = hashlib.sha256((folder / "state.safetensors").read_bytes()).hexdigest()
    (folder / "meta.json").write_text(json.dumps(META | {"step": 1, "sha256": digest}))
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.meta["data"] == "abc"
    damage(folder / "state.safetensors", "flip")
    assert latest_checkpoint(tmp_path) is None
    assert names(tmp_path) == ["step-1.damaged"]


@pytest.mark.case(1)
def test_a_third_checkpoint_that_a_kill_left_goes_at_the_next_start(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, tensors(step), META)
    shutil.copytree(tmp_path / "step-1", tmp_path / "copy")
    save_checkpoint(tmp_path, 3, tensors(3), META)
    (tmp_path / "copy").rename(tmp_path / "step-1")
    assert getattr(latest_checkpoint(tmp_path), "step", None) == 3
    assert names(tmp_path) == ["step-2", "step-3"]


@pytest.mark.case(2)
@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_failed_write_leaves_the_checkpoint_before_and_says_so(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, tensors(1), META)

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(FileError) as caught:
        save_checkpoint(tmp_path, 2, tensors(2), META)
    assert "step-2" in caught.value.cause
    assert "No space left on device" in caught.value.cause
    assert "space" in caught.value.remedy
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
