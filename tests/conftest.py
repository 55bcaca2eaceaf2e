"""Fixtures that all tests share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
if os.environ.get(
    "PYTEST_XDIST_WORKER"
):  # one of several processes: threads of two would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import pytest

from helpers.device import DEVICE
from helpers.tiny import make_model, make_tokenizer
from reinforce_lite.models.policy import Policy, load_policy


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def policy(model_folder: Path) -> Policy:
    """The tiny model in float32."""
    return load_policy(str(model_folder), dtype="float32", device=DEVICE)


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder: runs go under it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def settings(model_folder: Path, in_tmp: Path) -> dict[str, Any]:
    """Overrides that put the tiny model into any recipe; runs go under an empty folder."""
    return {"model.name": str(model_folder)}


@pytest.fixture
def no_spare_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a run on a CPU take its dry run, which it omits where memory is plentiful."""
    monkeypatch.setattr("reinforce_lite.utils.memory.available_bytes", lambda: 0)
