"""Prompts with completions, and what plain transformers computes for them: the independent reference."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from helpers.device import DEVICE
from helpers.groups import REWARDS, make_groups
from helpers.tiny import END
from reinforce_lite.config import PresetName
from reinforce_lite.models.forward import ForwardPass, FullSequenceForward, SharedPromptForward, TreeForward
from reinforce_lite.models.llama import Llama
from reinforce_lite.models.prefix_tree import Branch

PROMPT = (1, 40, 41, 42, 43, 44)
COMPLETIONS = [(50, 51, 52, 53, END), (60, END), (END,), (70, 71, 72, 73, 74, 75, 76)]
BRANCHES = [
    Branch(PROMPT, COMPLETIONS),
    Branch((*PROMPT[:5], 90, 91), COMPLETIONS[:2]),
    Branch((*PROMPT[:5], 92), [(END,)]),
]
FORWARD_PASSES: dict[str, Callable[[Any], ForwardPass]] = {
    "tree": lambda model: TreeForward(Llama(model)),
    "shared prompt": SharedPromptForward,
    "full sequence": FullSequenceForward,
}


def sequence_logprobs(
    model: Any, prompt: Sequence[int], completion: Sequence[int], temperature: float
) -> torch.Tensor:
    """(completion,) log-probabilities in float64: no padding, no cache, log_softmax of all logits."""
    ids = torch.tensor([[*prompt, *completion]], device=model.device)
    logits = model(ids, use_cache=False).logits[0].double() / temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    positions = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return torch.stack([logprobs[p, token] for p, token in zip(positions, completion, strict=True)])


def reference_logprobs(model: Any, branches: list[Branch], temperature: float) -> torch.Tensor:
    """(L,) log-probabilities of all completion tokens of the branches, one after another."""
    return torch.cat(
        [sequence_logprobs(model, b.prompt, c, temperature) for b in branches for c in b.completions]
    )


def completion_tokens(branches: list[Branch]) -> torch.Tensor:
    """(L,) token ids of all completions, one after another."""
    return torch.tensor([t for b in branches for c in b.completions for t in c], device=DEVICE)


def gradient_difference(model: Any, reference: Any) -> float:
    """The norm of the difference of two models' gradients, relative to the reference's."""
    pairs = list(zip(model.parameters(), reference.parameters(), strict=True))
    difference = torch.cat([(a.grad - b.grad).flatten() for a, b in pairs]).norm()
    return float(difference / torch.cat([b.grad.flatten() for _, b in pairs]).norm())


def independent_loss(model: torch.nn.Module, preset: PresetName, temperature: float) -> Tensor:
    """- mean over all 12 completions of A / 8 * sum log pi, completion by completion."""
    total = torch.zeros((), device=DEVICE)
    n = 3 if preset == "article" else 12
    for group, rewards in zip(make_groups(), REWARDS, strict=True):
        for i, rollout in enumerate(group.rollouts):
            others = torch.tensor(rewards[:i] + rewards[i + 1 :])
            if len(set(rewards)) == 1 or (preset == "article" and i > 0):
                continue
            a = ((rewards[i] - others.mean()) / (others.std() + 1e-8)).clamp(-2, 2)
            ids = torch.tensor([group.prompt.token_ids + rollout.completion.token_ids], device=DEVICE)
            logprobs = torch.log_softmax(model(ids).logits[0] / temperature, -1)
            start = len(group.prompt.token_ids)
            summed = sum(logprobs[t - 1, ids[0, t]] for t in range(start, ids.shape[1]))
            total = total - a * summed / (n if preset == "article" else n * 8)
    return total
