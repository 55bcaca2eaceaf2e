"""Scored groups by hand, and their loss weights under an objective."""

from pathlib import Path
from typing import Any

from torch import Tensor

from helpers.tiny import END, make_model, make_tokenizer
from reinforce_lite.config import PresetName
from reinforce_lite.learner.objective import compute_advantages, compute_loss_weights
from reinforce_lite.learner.presets import PRESETS
from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout, Verdict

LENGTHS = [[3, 5, 1, 4], [2, 2, 6, 3], [4, 1, 1, 2]]
"""Completion lengths in tokens, by group."""

REWARDS = [
    [1.0, 0.0, 0.0, 1.0],
    [0.0, 0.0, 0.0, 0.0],
    [1.0, 1.0, 0.0, 1.0],
]  # the middle group has no signal


def save_wide(folder: Path, **changes: Any) -> str:
    """Save a model whose tensors are large enough for 8-bit moments. Its weights are of realistic size, so that
    rounding errors stay small."""
    wide = {"hidden_size": 64, "vocab_size": 320, "head_dim": 32, "initializer_range": 0.1}
    make_model(**(wide | changes)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def make_groups(rewards: list[list[float]] = REWARDS) -> list[Group]:
    """One group per row of rewards; all prompts share their first token."""
    groups = []
    for q, (row, lengths) in enumerate(zip(rewards, LENGTHS, strict=True)):
        rollouts = []
        for i, (reward, length) in enumerate(zip(row, lengths, strict=True)):
            ids = (*(20 + 7 * q + 3 * i + t for t in range(length - 1)), END)
            completion = Completion(ids, "", False, (0.0,) * length)
            rollouts.append(Rollout(completion, "", reward, Verdict(reward == 1, None, ""), None))
        prompt = Prompt((1, *range(30 + q, 36 + 2 * q), END, 40))
        groups.append(Group(Problem(str(q), "", ""), prompt, tuple(rollouts)))
    return groups


def make_weights(preset: PresetName = "reinforce-lite") -> Tensor:
    return compute_loss_weights(
        compute_advantages(REWARDS, PRESETS[preset]), LENGTHS, PRESETS[preset], max_new_tokens=8
    )
