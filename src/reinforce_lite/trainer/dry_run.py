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
from reinforce_lite.pipeline import Pipeline
from reinforce_lite.rollout.collect import sample_completions
from reinforce_lite.types import Group, Problem, Rollout, Verdict
from reinforce_lite.utils.memory import release_cached_memory

UNJUDGED = Verdict(False, None, "not judged")


def dry_run(pipeline: Pipeline, problems: Sequence[Problem], updater: Updater, parts: Objective) -> None:
    """Answer and learn once. Raises WontFit where memory runs out with the smallest pieces."""
    updater.allocate_optimizer_state()  # makes the moments, which are there in every later step
    asked = groups(pipeline, longest(pipeline, problems))
    release_cached_memory()
    sizes = [[len(r.completion.token_ids) for r in g.rollouts] for g in asked]
    live = torch.ones(len(asked), len(sizes[0]), dtype=torch.float64)
    limit = pipeline.config.rollout.max_new_tokens
    weights = objective.weights(live, sizes, parts, limit)
    weights[groups_that_fill(weights, sizes, 2 * updater.micro_batch_tokens) :] = 0
    updater.compute_gradient(asked, weights)
    updater.allocate_optimizer_state()
    updater.reset_optimizer()


def groups_that_fill(weights: Tensor, sizes: Sequence[Sequence[int]], tokens: int) -> int:
    """How many groups have so many completion tokens to learn from. Those that fill two micro-batches show
    what all need: the second finds the gradient of the first, and each further one what the second found."""
    counts = (torch.tensor(sizes) * (weights != 0)).sum(1).cumsum(0)
    return int((counts < tokens).sum()) + 1


def longest(pipeline: Pipeline, problems: Sequence[Problem]) -> list[Problem]:
    """A step's problems, those with the longest prompts: in tokens, of four times as many by their bytes."""
    n = pipeline.config.rollout.prompts_per_step
    long = sorted(problems, key=lambda p: len(p.question.encode()), reverse=True)[: 4 * n]
    return sorted(long, key=lambda p: len(pipeline.prompter(p.question).token_ids), reverse=True)[:n]


def groups(pipeline: Pipeline, problems: Sequence[Problem]) -> list[Group]:
    """Answers of full length to these problems, unjudged."""
    sampling = replace(pipeline.sampling(greedy=False), min_new_tokens=pipeline.config.rollout.max_new_tokens)
    sampled = sample_completions(problems, pipeline.prompter, pipeline.engine, sampling, seed=0)
    return [
        Group(problem, prompt, tuple(Rollout(c, "", 0.0, UNJUDGED, None) for c in completions))
        for problem, (prompt, completions) in zip(problems, sampled, strict=True)
    ]
