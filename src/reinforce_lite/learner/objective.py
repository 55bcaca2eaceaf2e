"""Rewards to advantages to loss weights: Reinforce-Lite and its family, one pure function for each part.

    rewards (Q, G) ──advantages──▶ A (Q, G) ──loss_weights──▶ w (Q, G) ──loss──▶ -sum_i w_i sum_t log pi(o_t)

The policy gradient is that of REINFORCE (Williams 1992, https://doi.org/10.1007/BF00992696). The members of
the family differ in what they subtract from a reward, what they divide it by, and how they average:

    baseline  "leave-one-out"  mean reward of the other G-1 completions: RLOO, https://arxiv.org/abs/2402.14740
              "group"          mean reward of all G completions: GRPO, https://arxiv.org/abs/2402.03300
    scale                      the standard deviation of the same rewards; Dr. GRPO and RLOO have none
    loss_normalization         by a constant: Dr. GRPO, https://arxiv.org/abs/2503.20783;
                               by each completion's length: GRPO

No gradient flows through A, and every token of a completion has the same loss weight, so the objective is one
number per completion. Each batch of completions is used for one update: the sampling policy is the trained
policy, and the importance ratio is left out. It is 1 except for what only sampling applies (truncation by
top-p, `min_new_tokens` and, where `logprob_temperature` is set, another temperature) and for the rounding of
another engine, which `engine_correction` corrects by a ratio truncated at 2 (`loss.importance_weights`).
No KL term, no reference model, no critic.

Shapes: Q questions in the step, G completions of each.
Arithmetic is float64, since learning rests on small differences of rewards.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from reinforce_lite.config import RolloutConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.learner.presets import EPSILON, Objective


def check_group_size(objective: Objective, size: int) -> None:
    """Raises UsageError when groups of `size` completions are too small for the baseline or the scale."""
    smallest = {"leave-one-out": 3, "group": 2, "none": 1}[objective.scale]
    smallest = max(smallest, 1 if objective.baseline == "none" else 2)
    if size < smallest:
        raise UsageError(
            f"rollout.group_size is {size}, but baseline {objective.baseline!r} with scale "
            f"{objective.scale!r} needs at least {smallest} completions per question",
            "raise rollout.group_size, or choose another objective.baseline and objective.scale",
        )


def check_engine_correction(objective: Objective, rollout: RolloutConfig) -> None:
    """Refuse options by which the engine's probabilities differ in more than their temperature.

    What top-p or `min_new_tokens` cut away is missing from the engine's probabilities. Then their ratio to
    the policy's is not 1 even if both programs compute the same.
    """
    if objective.engine_correction == "none":
        return
    for key, value, neutral in (("top_p", rollout.top_p, 1), ("min_new_tokens", rollout.min_new_tokens, 0)):
        if value != neutral:
            raise UsageError(
                f"objective.engine_correction compares the probabilities of engine and update, but "
                f"rollout.{key} {value:g} changes the distribution that the engine samples from",
                f"set rollout.{key} to {neutral}, or objective.engine_correction to none",
            )


def compute_advantages(rewards: Sequence[Sequence[float]], objective: Objective) -> Tensor:
    """How much better each completion is than its group: A_i = clip((r_i - b_i) / s_i, -c, c).

        baseline        b_i                              scale           s_i, both unbiased
        leave-one-out   1 / (G-1) * sum_{j != i} r_j     leave-one-out   std_{j != i}(r_j) + EPSILON
        group           1 / G * sum_j r_j                group           std_j(r_j) + EPSILON
        none            0                                none            1

    c is `advantage_clip`; None does not clip. In a group of equal rewards A is exactly 0, except with neither
    baseline nor scale, where A is the reward itself. Such groups are detected by equality, not by a small
    standard deviation: the computed standard deviation of ten rewards of 0.7 is not exactly 0.

    Takes (Q, G) rewards; returns (Q, G) float64.
    """
    r = torch.tensor(rewards, dtype=torch.float64)  # (Q, G)
    a = r
    if objective.baseline != "none":
        a = a - _peers(r, objective.baseline).mean(-1)
    if objective.scale != "none":
        a = a / (_peers(r, objective.scale).std(-1) + EPSILON)
    if objective.advantage_clip is not None:
        a = a.clamp(-objective.advantage_clip, objective.advantage_clip)
    if (objective.baseline, objective.scale) != ("none", "none"):
        a = a.masked_fill((r == r[:, :1]).all(dim=1, keepdim=True), 0.0)
    return a


def warm_start_advantages(
    right: Sequence[Sequence[bool]], completions: Sequence[Sequence[tuple[int, ...]]]
) -> Tensor:
    """What takes the place of advantages in a warm start: 1 for right completions, 0 for wrong ones.

    The loss is then a negative log-likelihood, that of what rejection sampling keeps:

        - 1 / normaliser * sum over right completions of sum_t log pi(o_t)

    as in STaR, https://arxiv.org/abs/2203.14465, RAFT, https://arxiv.org/abs/2304.06767, and ReST,
    https://arxiv.org/abs/2308.08998. It is REINFORCE with rewards of 0 and 1 and no baseline, so no
    completion has a negative weight. The normaliser is that of the steps that follow, for which the
    optimizer's moments are kept. It is larger in two cases: where refill finds more groups that teach, and,
    by a factor of G, where those steps learn from one completion per group. Of identical right completions of
    a group only the first counts: the others teach nothing new, and would make what is likely already
    likelier still.

    Takes (Q, G) verdicts and token ids; returns (Q, G) float64.
    """
    weights = torch.zeros(len(right), len(right[0]), dtype=torch.float64)
    for row, verdicts, ids in zip(weights, right, completions, strict=True):
        first = {tuple(ids[i]): i for i in reversed(range(len(ids))) if verdicts[i]}
        row[list(first.values())] = 1.0
    return weights


def _peers(r: Tensor, kind: Literal["leave-one-out", "group"]) -> Tensor:
    """The rewards that each of the (Q, G) is compared with: the others, (Q, G, G-1), or all, (Q, 1, G)."""
    if kind == "group":
        return r.unsqueeze(1)
    q, g = r.shape
    return r.unsqueeze(1).expand(q, g, g)[:, ~torch.eye(g, dtype=torch.bool)].view(q, g, g - 1)


def compute_loss_weights(
    a: Tensor,
    lengths: list[list[int]],
    objective: Objective,
    max_new_tokens: int,
    questions: int | None = None,
) -> Tensor:
    """The factor of each completion's summed log-probability in the loss: w_i = A_i / normaliser_i.

    The normaliser, with n completions that take part in the gradient:

        constant        n * max_new_tokens   no length bias; the same in every process and micro-batch
        sequence-sum    n                    mean over completions of the sum over tokens
        sequence-mean   n * length_i         mean over completions of the mean over tokens

    With gradient_samples "all", n = Q * G. With "one", n = Q and only each group's first completion counts;
    completions of a group are identically distributed, so the choice does not matter. `questions` takes
    the place of Q in n: with refill more groups are sampled than the recipe asks for, but no more of them are
    live, and the others must not make the normaliser larger. In a warm start it is the number of groups with
    a right completion, if that is more.

    `a` is (Q, G); `lengths` are the completions' tokens, EOS included. Returns (Q, G) float64.
    """
    q, g = a.shape
    q = questions or q
    n = q * g
    if objective.gradient_samples == "one":
        a = a * (torch.arange(g) == 0)
        n = q
    if objective.loss_normalization == "constant":
        return a / (n * max_new_tokens)
    if objective.loss_normalization == "sequence-sum":
        return a / n
    return a / (n * torch.tensor(lengths, dtype=torch.float64))
