"""A warm start: maximum likelihood on right completions, against plain transformers; then the recipe as it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers.paths import RECIPE
from helpers.plain import sequence_logprobs
from helpers.tiny import ToyTask, make_model
from reinforce_lite import api
from reinforce_lite.api import resolve_config
from reinforce_lite.callbacks.base import Callback
from reinforce_lite.runlog.records import StepMetrics
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.runs import create_run
from reinforce_lite.trainer import session
from reinforce_lite.types import Group, Problem, Reward


class Steps(Callback):
    """What each step was told to consist of."""

    def __init__(self) -> None:
        self.metrics: list[StepMetrics] = []
        self.groups: list[Sequence[Group]] = []

    def stepped(self, metrics: StepMetrics, groups: Sequence[Group]) -> None:
        self.metrics.append(metrics)
        self.groups.append(groups)


def train(settings: dict[str, Any], name: str, task: ToyTask | None = None) -> tuple[Run, Steps]:
    task, steps = task or ToyTask(), Steps()
    run = create_run(name)
    session.train(resolve_config(RECIPE, settings, task), run, task, steps)
    return run, steps


def right_ids(group: Group) -> set[tuple[int, ...]]:
    """The distinct right completions, judged as the toy task does."""
    return {r.completion.token_ids for r in group.rollouts if sum(map(ord, r.response)) % 3 == 0}


def negative_log_likelihood(model: Any, groups: Sequence[Group], temperature: float = 1.0) -> Tensor:
    """Summed over the tokens of the distinct right completions, through plain transformers in float64."""
    sums = [
        sequence_logprobs(model, group.prompt.token_ids, ids, temperature).sum()
        for group in groups
        for ids in right_ids(group)
    ]
    return -torch.stack(sums).sum()


def plain_model(weights: dict[str, Tensor] | None = None) -> Any:
    model = make_model()
    model.get_input_embeddings().padding_idx = None  # it is the end token, whose embedding learns too
    if weights:
        model.load_state_dict(weights, strict=False)
    return model


PLAIN: dict[str, Any] = {"rollout.engine": "native"}


@pytest.mark.parametrize(
    ("changes", "temperature", "normaliser"),
    [
        (PLAIN, 0.7, 5 * 4 * 8),  # questions, completions of each, max_new_tokens
        (PLAIN | {"rollout.temperature": 1.0, "rollout.top_p": 1.0}, 1.0, 5 * 4 * 8),
        (PLAIN | {"objective.preset": "article"}, 1.0, 5 * 4),  # all count, not one per question
        (PLAIN | {"rollout.refill": 2, "train.seed": 3}, 0.7, 5 * 4 * 8),
    ],
)
def test_gradient_is_that_of_the_likelihood_of_right_completions(
    settings: dict[str, Any], changes: dict[str, Any], temperature: float, normaliser: int
) -> None:
    run, steps = train(settings | {"train.steps": 2, "train.warm_start": 1} | changes, "a")
    model = plain_model()
    loss = negative_log_likelihood(model, steps.groups[0], temperature) / normaliser
    torch.autograd.backward(loss)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert steps.metrics[0].loss == pytest.approx(loss.item(), rel=1e-4)
    assert steps.metrics[0].grad_norm == pytest.approx(norm.item(), rel=1e-4)
    used = [line["advantage"] for line in run.read("rollouts") if line["step"] == 1]
    assert sum(used) == sum(len(right_ids(group)) for group in steps.groups[0])
    assert set(used) == {0, 1}
    assert (len(steps.groups[0]) > 5) == ("rollout.refill" in changes)


class AlwaysRight(ToyTask):
    def reward(self, problem: Problem, completion: str) -> Reward:
        return Reward(1.0)


def test_all_groups_that_teach_count_where_refill_asks_for_more(settings: dict[str, Any]) -> None:
    """Groups that are all right are not live, so ten questions are asked; each of them teaches."""
    changes = PLAIN | {"rollout.refill": 2, "train.steps": 2, "train.warm_start": 1}
    _, steps = train(settings | changes, "a", AlwaysRight())
    assert len(steps.groups[0]) == 10
    model = plain_model()
    sums = [
        sequence_logprobs(model, group.prompt.token_ids, ids, 0.7).sum().item()
        for group in steps.groups[0]
        for ids in {r.completion.token_ids for r in group.rollouts}
    ]
    assert steps.metrics[0].loss == pytest.approx(-sum(sums) / (10 * 4 * 8), rel=1e-4)


def test_right_completions_become_likelier(settings: dict[str, Any]) -> None:
    """Those of all its steps, by what plain transformers computes from the saved weights."""
    warm = {"train.steps": 4, "train.warm_start": 3, "train.save_every": 1, "update.learning_rate": 1e-3}
    run, steps = train(settings | warm, "a")
    state = load_file(run.path / "checkpoints/step-3/state.safetensors")
    before, after = plain_model(), plain_model({k.removeprefix("weight/"): v for k, v in state.items()})
    sampled = [group for groups in steps.groups[:3] for group in groups]
    losses = [negative_log_likelihood(model, sampled).item() for model in (before, after)]
    assert losses[1] < 0.97 * losses[0]


class NeverRight(ToyTask):
    def reward(self, problem: Problem, completion: str) -> Reward:
        return Reward(0.0)


def test_step_without_right_completions_changes_nothing(settings: dict[str, Any], model_folder: Path) -> None:
    run, _ = train(settings | {"train.steps": 2, "train.warm_start": 1}, "a", NeverRight())
    first = run.steps[0]
    assert (first["warm_start"], first["updated"], first["loss"], first["grad_norm"]) == (True, False, 0, 0)
    before, after = (
        load_file(model_folder / "model.safetensors"),
        load_file(run.path / "model/model.safetensors"),
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_recipe_follows_as_it_is(settings: dict[str, Any]) -> None:
    """The untrained model is evaluated and sampled as without a warm start; later steps compare within groups."""
    plain = api.train(RECIPE, settings | {"train.steps": 3}, task=ToyTask(), run="plain", quiet=True)
    run, steps = train(settings | {"train.steps": 3, "train.warm_start": 2}, "warm")
    texts = [[line["completion"] for line in r.read("rollouts") if line["step"] == 1] for r in (plain, run)]
    assert texts[0] == texts[1]
    before = [[e | {"seconds": 0} for e in r.evals if e["step"] == 0] for r in (plain, run)]
    assert before[0] == before[1]
    assert [line["warm_start"] for line in plain.steps] == [False] * 3
    assert [line["warm_start"] for line in run.steps] == [True, True, False]
    assert [line["learning_rate"] for line in run.steps] == [line["learning_rate"] for line in plain.steps]
    lines = [line["advantage"] for line in run.read("rollouts") if line["step"] == 3]
    assert any(a < 0 for a in lines)
    for q, group in enumerate(steps.groups[2]):
        rewards = torch.tensor(group.rewards)
        others = [torch.cat([rewards[:i], rewards[i + 1 :]]) for i in range(4)]
        expected = [
            0.0 if len(set(group.rewards)) == 1 else ((r - o.mean()) / (o.std() + 1e-8)).clamp(-2, 2).item()
            for r, o in zip(rewards, others, strict=True)
        ]
        assert lines[4 * q : 4 * q + 4] == pytest.approx(expected, abs=1e-6)
