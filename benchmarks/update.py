"""One gradient with every group live: the program, with an adapter too, and plain training with transformers.

python benchmarks/update.py

8 questions x 8 completions of random tokens: prompts of 120 and completions of 40 tokens, then the
quickstart's shape, whose prompts share a prefix. Plain training passes whole sequences, a group at a time,
with logits for completion tokens only. Forward and backward passes; no optimizer step.
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
    """The quickstart's prompts, with completions of 32 random tokens."""
    groups = random_groups(8, 8, 1, 32)
    return [replace(g, prompt=p) for g, p in zip(groups, prompts(built), strict=True)]


def ours(built: Pipeline, groups: list[Group]) -> Figures:
    """The program's updater."""
    updater = Updater(built.policy, built.config.update, TEMPERATURE, 0)
    norms: list[float] = []
    seconds = timed(lambda: norms.append(updater.compute_gradient(groups, WEIGHTS).norm))
    return {"seconds": seconds, "norm": norms[-1]}


def plain(built: Pipeline, groups: list[Group]) -> Figures:
    """transformers, one padded batch per group."""
    model = built.policy.model

    def job() -> None:
        model.zero_grad()
        for group, weights in zip(groups, WEIGHTS, strict=True):
            prompt = group.prompt.token_ids
            ids = torch.tensor([[*prompt, *r.completion.token_ids] for r in group.rollouts])
            length = ids.shape[1] - len(prompt)
            logits = model(ids[:, :-1], use_cache=False, logits_to_keep=length).logits.float() / TEMPERATURE
            logprobs = logits.log_softmax(-1).gather(2, ids[:, -length:, None]).squeeze(2)
            (-(weights * logprobs.sum(1)).sum()).backward()

    seconds = timed(job, times=1)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    return {"seconds": seconds, "norm": float(norm)}


def ours_120(arguments: argparse.Namespace) -> Figures:
    """The program, prompts of 120 tokens."""
    return ours(pipeline(arguments), random_groups(8, 8, 120, 40))


def plain_120(arguments: argparse.Namespace) -> Figures:
    """transformers, prompts of 120 tokens."""
    return plain(pipeline(arguments, ours=False), random_groups(8, 8, 120, 40))


def ours_quickstart(arguments: argparse.Namespace) -> Figures:
    """The program, the quickstart's prompts."""
    built = pipeline(arguments)
    return ours(built, quickstart_groups(built))


def adapter_quickstart(arguments: argparse.Namespace) -> Figures:
    """The program with an adapter of rank 8, the quickstart's prompts."""
    built = pipeline(arguments, {"adapter.rank": 8})
    return ours(built, quickstart_groups(built))


def plain_quickstart(arguments: argparse.Namespace) -> Figures:
    """transformers, the quickstart's prompts."""
    built = pipeline(arguments, ours=False)
    return plain(built, quickstart_groups(built))


if __name__ == "__main__":
    run(
        "update",
        {
            "ours_120": ours_120,
            "plain_120": plain_120,
            "ours_quickstart": ours_quickstart,
            "adapter_quickstart": adapter_quickstart,
            "plain_quickstart": plain_quickstart,
        },
        lambda results: [
            ratio(results, "plain_120", "ours_120"),
            ratio(results, "plain_quickstart", "ours_quickstart"),
            ratio(results, "ours_quickstart", "adapter_quickstart"),
        ],
    )
