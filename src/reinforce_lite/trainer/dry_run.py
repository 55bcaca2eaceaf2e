"""The largest step that a run may meet, tried before it begins: as a rule memory runs out then or never.

The longest prompts that training has, every answer as long as it may be, and of these as many learned from as
matter, beside the optimizer's moments. No weight moves, no reward is asked, and nothing is written.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reinforce_lite.learner import objective
from reinforce_lite.learner.objective import Objective
from reinforce_lite.learner.updater import Updater
from reinforce_lite.pipeline import Road
from reinforce_lite.rollout import collect as rollout
from reinforce_lite.types import Group, Problem, Rollout, Verdict
from reinforce_lite.utils import memory

UNJUDGED = Verdict(False, None, "not judged")


def run(road: Road, problems: Sequence[Problem], updater: Updater, parts: Objective) -> None:
    """Answer and learn once. Raises WontFit where memory runs out with the smallest pieces."""
    updater.stand_still()  # makes the moments, which are there in every later step
    asked = groups(road, longest(road, problems))
    memory.give_back()
    sizes = [[len(r.completion.token_ids) for r in g.rollouts] for g in asked]
    live = torch.ones(len(asked), len(sizes[0]), dtype=torch.float64)
    limit = road.config.rollout.max_new_tokens
    weights = objective.weights(live, sizes, parts, limit)
    weights[filling(weights, sizes, 2 * updater.micro_batch_tokens) :] = 0
    updater.gradient(asked, weights)
    updater.stand_still()
    updater.forget()


def filling(weights: Tensor, sizes: Sequence[Sequence[int]], tokens: int) -> int:
    """How many groups have so many completion tokens to learn from. Those that fill two micro-batches show
    what all need: the second finds the gradient of the first, and each further one what the second found."""
    counts = (torch.tensor(sizes) * (weights != 0)).sum(1).cumsum(0)
    return int((counts < tokens).sum()) + 1


def longest(road: Road, problems: Sequence[Problem]) -> list[Problem]:
    """A step's problems, those with the longest prompts: in tokens, of four times as many by their bytes."""
    n = road.config.rollout.prompts_per_step
    long = sorted(problems, key=lambda p: len(p.question.encode()), reverse=True)[: 4 * n]
    return sorted(long, key=lambda p: len(road.prompter(p.question).token_ids), reverse=True)[:n]


def groups(road: Road, problems: Sequence[Problem]) -> list[Group]:
    """Answers of full length to these problems, unjudged."""
    sampling = replace(road.sampling(greedy=False), min_new_tokens=road.config.rollout.max_new_tokens)
    sampled = rollout.sample(problems, road.prompter, road.engine, sampling, seed=0)
    return [
        Group(problem, prompt, tuple(Rollout(c, "", 0.0, UNJUDGED, None) for c in completions))
        for problem, (prompt, completions) in zip(problems, sampled, strict=True)
    ]
