"""Saving is tried before the first step, so that it does not fail after the last."""

import errno
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import RECIPE
from helpers.tiny import ToyTask
from reinforce_lite import api
from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models import policy as policy_module
from reinforce_lite.models.policy import Policy
from reinforce_lite.runlog.run import Run


@pytest.fixture
def no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a run that gets as far as an update fail the test."""
    monkeypatch.setattr(Updater, "compute_gradient", lambda *_: pytest.fail("it trains"))


def train(settings: dict[str, Any], **kwargs: Any) -> Run:
    return api.train(RECIPE, settings, task=ToyTask(), run="a", quiet=True, **kwargs)


def change_policies(patch: pytest.MonkeyPatch, change: Any) -> None:
    """Apply `change` to each model that is loaded."""
    real = policy_module.load_policy

    def load(*args: Any, **options: Any) -> Policy:
        policy = real(*args, **options)
        change(policy)
        return policy

    patch.setattr("reinforce_lite.pipeline.load_policy", load)


def break_config(policy: Policy) -> None:
    policy.model.config.note = {1, 2}


def break_generation_config(policy: Policy) -> None:
    policy.model.generation_config.temperature = 0.5


def share_memory(policy: Policy) -> None:
    layers = policy.model.model.layers
    layers[1].input_layernorm.weight = layers[0].input_layernorm.weight


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (break_config, "not JSON serializable"),
        (break_generation_config, "temperature"),
        (share_memory, "input_layernorm"),
    ],
)
def test_a_model_that_can_not_be_saved_is_refused_before_training(
    settings: dict[str, Any], no_steps: None, monkeypatch: pytest.MonkeyPatch, fault: Any, said: str
) -> None:
    change_policies(monkeypatch, fault)
    with pytest.raises(UsageError, match="could not be saved") as caught:
        train(settings)
    assert said in caught.value.cause
    assert not Path("runs/a").exists()


def test_a_folder_that_takes_no_model_is_found_before_training(
    settings: dict[str, Any], no_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    change_policies(
        monkeypatch, lambda policy: monkeypatch.setattr(policy.tokenizer, "save_pretrained", full)
    )
    with pytest.raises(ReinforceLiteError, match="No space left"):
        train(settings)


def test_nothing_of_a_trial_save_is_left(settings: dict[str, Any]) -> None:
    run = train(settings | {"train.steps": 1})
    assert not [p.name for p in run.path.iterdir() if "trial" in p.name]


def test_a_trial_save_that_was_killed_does_not_stand_in_the_way(settings: dict[str, Any]) -> None:
    for name in (".trial-save.incomplete", "..trial-save.incomplete.incomplete"):
        Path("runs/a", name).mkdir(parents=True)
    run = train(settings | {"train.steps": 1})
    assert not [p.name for p in run.path.iterdir() if "trial" in p.name]
