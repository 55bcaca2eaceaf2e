"""A whole run in float16, against one in float32."""

from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.paths import RECIPE
from helpers.tiny import ToyTask
from reinforce_lite import api
from reinforce_lite.learner import loss_scale, updater
from reinforce_lite.types import Problem, Reward


class Letters(ToyTask):
    """The reward is the share of letters among a completion's characters."""

    def reward(self, problem: Problem, completion: str) -> Reward:
        return Reward(sum(c.isalpha() for c in completion) / max(1, len(completion)))


def test_a_resumed_run_equals_a_straight_one(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through an overflow in the first step and two times of growing; steps.jsonl has the loss scale."""
    monkeypatch.setattr(loss_scale, "UPDATES_TO_GROW", 2)
    start = 2.0**24
    monkeypatch.setattr(updater, "LossScale", lambda factor=start, n=0: loss_scale.LossScale(factor, n))
    changes = settings | {"model.dtype": "float16", "train.save_every": 3, "eval.every": 9}
    straight = api.train(RECIPE, changes | {"train.steps": 5}, task=ToyTask(), run="straight", quiet=True)
    api.train(RECIPE, changes | {"train.steps": 3}, task=ToyTask(), run="parts", quiet=True)
    resumed = api.train(
        RECIPE, changes | {"train.steps": 5}, task=ToyTask(), run="parts", resume=True, quiet=True
    )
    scales = [step["loss_scale"] for step in straight.steps]
    assert scales[0] < start
    assert len(set(scales)) > 1
    assert [step["loss_scale"] for step in resumed.steps] == scales
    assert [step["grad_norm"] for step in resumed.steps] == [step["grad_norm"] for step in straight.steps]
    a, b = (load_file(run.path / "checkpoints/step-5/state.safetensors") for run in (straight, resumed))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native", "hf"])
def test_it_learns_as_in_float32(settings: dict[str, Any], engine: str) -> None:
    sizes = {"train.steps": 24, "rollout.group_size": 8, "rollout.engine": engine, "train.save_every": 40}
    sizes |= {"eval.every": 40, "update.learning_rate": 3e-3}
    rewards = {}
    for dtype in ("float32", "float16"):
        changes = settings | sizes | {"model.dtype": dtype}
        run = api.train(RECIPE, changes, task=Letters(), run=dtype, quiet=True)
        rewards[dtype] = [step["reward"] for step in run.steps]
        assert all(step["not_finite"] is None for step in run.steps)
    first, last = fmean(rewards["float32"][:5]), fmean(rewards["float32"][-5:])
    assert last - first > 0.3
    assert fmean(rewards["float16"][-5:]) == pytest.approx(last, abs=0.1)
