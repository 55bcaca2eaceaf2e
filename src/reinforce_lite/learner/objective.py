"""Rewards to advantages to loss: Reinforce-Lite and its family, one pure function for each part.

    rewards (Q, G) ──advantages──▶ A (Q, G) ──weights──▶ w (Q, G) ──loss──▶ - sum_i w_i sum_t log pi(token_t)

No gradient flows through A, and every member of the family gives all tokens of one answer the
same weight, so the whole objective is one number per answer. There is one update per batch of
answers: the sampling policy is the trained policy, the surrogate ratio is 1, and there is nothing
to clip. No KL, no reference model, no critic.

Shapes: Q questions in the step, G answers to each, N answers that take part in a loss.
Arithmetic is float64: the difference of nearly equal rewards is all that there is to learn from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from reinforce_lite.errors import UsageError

EPSILON = 1e-8  # keeps a scale of 0 finite: with a clamp, an answer alone against all others saturates


@dataclass(frozen=True, slots=True)
class Objective:
    """One member of the family; the meaning of each part is in the function that reads it."""

    baseline: Literal["leave-one-out", "group", "none"]
    scale: Literal["leave-one-out", "group", "none"]
    advantage_clip: float | None
    gradient_samples: Literal["all", "one"]
    loss_normalization: Literal["constant", "sequence-sum", "sequence-mean"]
    logprob_temperature: float | Literal["sampling"]

    def temperature(self, sampling: float) -> float:
        """The temperature at which log pi is differentiated, when answers were drawn at `sampling`."""
        return sampling if self.logprob_temperature == "sampling" else self.logprob_temperature


PRESETS = {
    "reinforce-lite": Objective("leave-one-out", "leave-one-out", 2.0, "all", "constant", "sampling"),
    "article": Objective("leave-one-out", "leave-one-out", 2.0, "one", "sequence-sum", 1.0),
    "rloo": Objective("leave-one-out", "none", None, "all", "sequence-sum", "sampling"),
    "grpo": Objective("group", "group", None, "all", "sequence-mean", "sampling"),
    "dr-grpo": Objective("group", "none", None, "all", "constant", "sampling"),
    "monte-carlo": Objective("none", "none", None, "all", "sequence-sum", "sampling"),
}


def build_objective(preset: str, **parts: Any) -> Objective:
    """A preset with some parts replaced; a part that is None stays the preset's, "none" clamps nothing."""
    given = {name: value for name, value in parts.items() if value is not None}
    if given.get("advantage_clip") == "none":
        given["advantage_clip"] = None
    return replace(PRESETS[preset], **given)


def check_group_size(objective: Objective, size: int) -> None:
    """Raises UsageError when a group of `size` answers has no such baseline or scale."""
    needs = {"leave-one-out": 3, "group": 2, "none": 1}[objective.scale]
    needs = max(needs, 1 if objective.baseline == "none" else 2)
    if size < needs:
        raise UsageError(
            f"rollout.group_size is {size}, but baseline {objective.baseline!r} with scale "
            f"{objective.scale!r} needs at least {needs} answers to a question",
            "raise it, or choose another objective.baseline and objective.scale",
        )


def advantages(rewards: Sequence[Sequence[float]], objective: Objective) -> Tensor:
    """How much better each answer is than its group: A_i = clamp((r_i - baseline_i) / scale_i).

    When all rewards of a group are equal, A is exactly 0 (but where there is neither baseline nor scale,
    and A is the reward itself). That is tested by equality, never by a small deviation: ten rewards of
    0.7 have one that is not 0 in floating point.

    Returns (Q, G) float64.
    """
    r = torch.tensor(rewards, dtype=torch.float64)  # (Q, G)
    a = (r - _baseline(r, objective.baseline)) / _scale(r, objective.scale)
    if objective.advantage_clip is not None:
        a = a.clamp(-objective.advantage_clip, objective.advantage_clip)
    if (objective.baseline, objective.scale) != ("none", "none"):
        a = a.masked_fill((r == r[:, :1]).all(dim=1, keepdim=True), 0.0)
    return a


def _baseline(r: Tensor, kind: str) -> Tensor:
    """others: mean of r over the other G-1 answers; group: over all G; none: 0."""
    if kind == "leave-one-out":
        return _others(r).mean(-1)
    return r.mean(-1, keepdim=True) if kind == "group" else torch.zeros_like(r)


def _scale(r: Tensor, kind: str) -> Tensor:
    """The standard deviation (unbiased) over the same answers, plus EPSILON; none: 1."""
    if kind == "leave-one-out":
        return _others(r).std(-1) + EPSILON
    return r.std(-1, keepdim=True) + EPSILON if kind == "group" else torch.ones_like(r)


def _others(r: Tensor) -> Tensor:
    """For each answer the rewards of the others: (Q, G) to (Q, G, G-1)."""
    q, g = r.shape
    return r.unsqueeze(1).expand(q, g, g)[:, ~torch.eye(g, dtype=torch.bool)].view(q, g, g - 1)


def weights(a: Tensor, lengths: Sequence[Sequence[int]], objective: Objective, max_new_tokens: int) -> Tensor:
    """What each answer's summed log-probability counts: w_i = A_i / normaliser_i.

    With n = Q x G gradient answers (Q when only one a question is taken, the group's first: its
    answers are drawn alike, so the first is as good as any):

        constant   n x max_new_tokens   no bias by length, the same in every process and micro-batch
        sums       n                    the mean over answers of the plain sum
        answers    n x length_i         the mean over answers of each answer's mean

    `a` is (Q, G); `lengths` are the answers' tokens, end token included. Returns (Q, G) float64.
    """
    q, g = a.shape
    if objective.gradient_samples == "one":
        a = a * (torch.arange(g) == 0)
        n = q
    else:
        n = q * g
    if objective.loss_normalization == "constant":
        return a / (n * max_new_tokens)
    if objective.loss_normalization == "sequence-sum":
        return a / n
    return a / (n * torch.tensor(lengths, dtype=torch.float64))
