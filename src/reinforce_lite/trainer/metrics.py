"""Groups to the JSON lines of a run: one a step, one a completion."""

from collections.abc import Sequence
from statistics import fmean, stdev

from reinforce_lite.evaluation.reflection import find_reflections, reflection_rates
from reinforce_lite.learner.updater import GradientStats
from reinforce_lite.runlog.run import Line
from reinforce_lite.types import Group, Rollout


def step_line(
    step: int,
    groups: Sequence[Group],
    gradient: GradientStats,
    updated: bool,
    learning_rate: float,
    seconds: dict[str, float],
) -> Line:
    """A line of steps.jsonl. Shares are of 1, times in seconds, entropy in nats a token; `tokens` are
    the step's own, prompts included, which the trainer adds up as `num_tokens`.

    `entropy` is the mean of -log pi (at temperature 1) over the sampled tokens: an estimate that
    lies below the policy's entropy when sampling is cooler than 1 or cut by top-p.
    """
    rollouts = [r for g in groups for r in g.rollouts]
    completions = [r.completion for r in rollouts]
    tokens = sum(len(c.token_ids) for c in completions)
    lenient = [r.lenient.correct for r in rollouts if r.lenient is not None]
    second = [r.second_opinion for r in rollouts if r.second_opinion is not None]
    found = reflection_rates([r.completion.text for r in rollouts])
    return {
        "step": step,
        "reward": fmean(r.reward for r in rollouts),
        "reward_std": fmean(stdev(g.rewards) if len(g.rewards) > 1 else 0.0 for g in groups),
        "frac_reward_zero_std": fmean(len(set(g.rewards)) == 1 for g in groups),
        "accuracy/strict": fmean(r.strict.correct for r in rollouts),
        "accuracy/lenient": fmean(lenient) if lenient else None,
        "accuracy/second_opinion": fmean(second) if second else None,
        "completions/mean_length": tokens / len(completions),
        "completions/clipped_ratio": fmean(c.truncated for c in completions),
        "entropy": -sum(sum(c.logprobs) for c in completions) / tokens,
        "tokens": tokens + sum(len(g.prompt.token_ids) * len(g.rollouts) for g in groups),
        "loss": gradient.loss,
        "grad_norm": gradient.norm,
        "learning_rate": learning_rate,
        "updated": updated,
        "reward_faults": sum(bool(r.fault) for r in rollouts),
        **{f"reflection/list_{name}": rate for name, rate in found.items()},
        **{f"time/{name}": spent for name, spent in seconds.items()},
        "tokens_per_second/rollout": tokens / seconds["rollout"],
        "tokens_per_second/update": gradient.tokens / seconds["update"],
    }


def rollout_lines(
    step: int, groups: Sequence[Group], advantages: Sequence[Sequence[float]] | None
) -> list[Line]:
    """The lines of rollouts.jsonl or eval_rollouts.jsonl: every completion, stored exactly."""
    return [
        _rollout_line(step, group, sample, rollout, advantages[q][sample] if advantages else None)
        for q, group in enumerate(groups)
        for sample, rollout in enumerate(group.rollouts)
    ]


def _rollout_line(step: int, group: Group, sample: int, rollout: Rollout, advantage: float | None) -> Line:
    line: Line = {
        "step": step,
        "problem_id": group.problem.id,
        "sample": sample,
        "question": group.problem.question,
        "gold": _text(group.problem.gold),
        "completion": rollout.completion.text,
        "answer": _text(rollout.strict.answer),
        "reason": _text(rollout.strict.reason),
        "reward": rollout.reward,
        "strict": rollout.strict.correct,
        "lenient": rollout.lenient.correct if rollout.lenient else None,
        "second_opinion": rollout.second_opinion,
        "advantage": advantage,
        "tokens": len(rollout.completion.token_ids),
        "truncated": rollout.completion.truncated,
        "reflection": find_reflections(rollout.completion.text),
    }
    return line | ({"fault": rollout.fault} if rollout.fault else {})


def _text(value: object) -> str | None:
    """A value as text: an object given as a task is not checked to hold it."""
    return None if value is None else str(value)
