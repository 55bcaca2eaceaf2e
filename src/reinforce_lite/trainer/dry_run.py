"""The largest step that a run may meet, tried before the first: memory then runs out now or never.

It samples the training problems with the longest prompts, every completion at full length, and computes the
gradient of as many as matter while the optimizer's state is allocated. Where memory runs out, the sizes are
halved as in training. No weight changes, no reward is computed and nothing is written.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reinforce_lite.learner.objective import compute_loss_weights
from reinforce_lite.learner.presets import Objective
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models import distributed
from reinforce_lite.pipeline import Pipeline
from reinforce_lite.planner.estimate import most_groups
from reinforce_lite.rollout.collect import sample_completions
from reinforce_lite.types import Group, Problem, Rollout, Verdict
from reinforce_lite.utils.memory import release_cached_memory

UNJUDGED = Verdict(False, None, "not judged")


def dry_run(pipeline: Pipeline, updater: Updater, objective: Objective) -> None:
    """Sample and compute a gradient once. Raises DoesNotFitError where the smallest pieces are too large."""
    updater.allocate_optimizer_state()
    groups = full_length_groups(pipeline, longest_problems(pipeline))
    release_cached_memory()
    if pipeline.config.train.warm_start:
        objective = replace(objective, gradient_samples="all")
    ones = torch.ones(len(groups), len(groups[0].rollouts), dtype=torch.float64)
    lengths = [g.lengths for g in groups]
    group_weights = compute_loss_weights(ones, lengths, objective, pipeline.config.rollout.max_new_tokens)
    filling = 2 * updater.micro_batch_tokens * distributed.size()
    group_weights[groups_that_fill(group_weights, lengths, filling) :] = 0
    updater.compute_gradient(groups, group_weights)
    updater.allocate_optimizer_state()  # once more: an optimizer step at the peak of memory
    updater.reset_optimizer()


def groups_that_fill(weights: Tensor, lengths: Sequence[Sequence[int]], tokens: int) -> int:
    """How many groups have `tokens` completion tokens to learn from.

    Groups that fill two micro-batches show what all need: the second adds to the gradient of the first, and
    so does each further one.
    """
    counts = (torch.tensor(lengths) * (weights != 0)).sum(1).cumsum(0)
    return int((counts < tokens).sum()) + 1


def longest_problems(pipeline: Pipeline) -> list[Problem]:
    """A step's problems with the most prompt tokens, among four times as many that are longest in bytes."""
    n = most_groups(pipeline.config)
    problems = pipeline.problems("train")
    long = sorted(problems, key=lambda p: len(p.question.encode(errors="replace")), reverse=True)[: 4 * n]
    return sorted(long, key=lambda p: len(pipeline.prompt_builder(p.question).token_ids), reverse=True)[:n]


def full_length_groups(pipeline: Pipeline, problems: Sequence[Problem]) -> list[Group]:
    """Completions of full length of these problems, not judged."""
    longest = pipeline.config.rollout.max_new_tokens
    sampling = replace(pipeline.sampling(), min_new_tokens=longest, stop=(), repetition_detection=False)
    sampled = sample_completions(problems, pipeline.prompt_builder, pipeline.engine, sampling, seed=0)
    return [
        Group(problem, prompt, tuple(Rollout(c, "", 0.0, UNJUDGED, None) for c in completions))
        for problem, (prompt, completions) in zip(problems, sampled, strict=True)
    ]
