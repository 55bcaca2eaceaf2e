"""One update, every group live: ours, and plain training with transformers.

python benchmarks/update.py

8 questions x 8 answers of random tokens, prompts of 120 and answers of 40 tokens, and once more in the
quickstart's shape, whose prompts begin alike. Plain training passes whole sequences, a group at a
time, with logits for completion tokens only. Forward and backward passes; no optimizer step.
"""

import argparse
from dataclasses import replace

import torch
from common import Figures, pipeline, prompts, random_groups, ratio, run, timed

from reinforce_lite.learner.updater import Updater
from reinforce_lite.pipeline import Pipeline
from reinforce_lite.types import Group

WEIGHTS = torch.linspace(-1, 1, 64, dtype=torch.float64).view(8, 8) / 4096
TEMPERATURE = 0.7


def quickstart_groups(built: Pipeline) -> list[Group]:
    """The quickstart's prompts, with answers of 32 random tokens."""
    groups = random_groups(8, 8, 1, 32)
    return [replace(g, prompt=p) for g, p in zip(groups, prompts(built), strict=True)]


def ours(built: Pipeline, groups: list[Group]) -> Figures:
    updater = Updater(built.policy, built.config.update, TEMPERATURE)
    found: list[float] = []
    seconds = timed(lambda: found.append(updater.compute_gradient(groups, WEIGHTS).norm))
    return {"seconds": seconds, "norm": found[-1]}


def plain(built: Pipeline, groups: list[Group]) -> Figures:
    model = built.policy.model

    def job() -> None:
        model.zero_grad()
        for group, weights in zip(groups, WEIGHTS, strict=True):
            prompt = group.prompt.token_ids
            rows = torch.tensor([[*prompt, *r.completion.token_ids] for r in group.rollouts])
            kept = rows.shape[1] - len(prompt)
            logits = model(rows[:, :-1], use_cache=False, logits_to_keep=kept).logits.float() / TEMPERATURE
            logprobs = logits.log_softmax(-1).gather(2, rows[:, -kept:, None]).squeeze(2)
            (-(weights * logprobs.sum(1)).sum()).backward()

    seconds = timed(job, times=1)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    return {"seconds": seconds, "norm": float(norm)}


def ours_120(arguments: argparse.Namespace) -> Figures:
    return ours(pipeline(arguments), random_groups(8, 8, 120, 40))


def plain_120(arguments: argparse.Namespace) -> Figures:
    return plain(pipeline(arguments, ours=False), random_groups(8, 8, 120, 40))


def ours_quickstart(arguments: argparse.Namespace) -> Figures:
    built = pipeline(arguments)
    return ours(built, quickstart_groups(built))


def plain_quickstart(arguments: argparse.Namespace) -> Figures:
    built = pipeline(arguments, ours=False)
    return plain(built, quickstart_groups(built))


if __name__ == "__main__":
    run(
        "update",
        {
            "ours_120": ours_120,
            "plain_120": plain_120,
            "ours_quickstart": ours_quickstart,
            "plain_quickstart": plain_quickstart,
        },
        lambda found: [
            ratio(found, "plain_120", "ours_120"),
            ratio(found, "plain_quickstart", "ours_quickstart"),
        ],
    )
