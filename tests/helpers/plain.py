"""Log-probabilities and gradients by plain transformers: the independent path."""

from collections.abc import Sequence
from typing import Any

import torch

from helpers.tiny import END
from reinforce_lite.models.prefix_tree import Branch

PROMPT = (1, 40, 41, 42, 43, 44)


COMPLETIONS = [(50, 51, 52, 53, END), (60, END), (END,), (70, 71, 72, 73, 74, 75, 76)]


BRANCHES = [
    Branch(PROMPT, COMPLETIONS),
    Branch((*PROMPT[:5], 90, 91), COMPLETIONS[:2]),
    Branch((*PROMPT[:5], 92), [(END,)]),
]


def plain(model: Any, prompt: Sequence[int], completion: Sequence[int], temperature: float) -> torch.Tensor:
    """The independent path: whole sequence, no padding, no cache, log_softmax of everything."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(ids, use_cache=False).logits[0].double() / temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return torch.stack([logprobs[place, token] for place, token in zip(places, completion, strict=True)])


def plain_of(model: Any, branches: list[Branch], temperature: float) -> torch.Tensor:
    return torch.cat([plain(model, b.prompt, c, temperature) for b in branches for c in b.completions])


def tokens_of(branches: list[Branch]) -> torch.Tensor:
    return torch.tensor([t for b in branches for c in b.completions for t in c])


def relative_difference(model: Any, reference: Any) -> float:
    pairs = list(zip(model.parameters(), reference.parameters(), strict=True))
    difference = torch.cat([(a.grad - b.grad).flatten() for a, b in pairs]).norm()
    return float(difference / torch.cat([b.grad.flatten() for _, b in pairs]).norm())
