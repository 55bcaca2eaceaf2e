"""Groups to the records of a run: one a step, one a completion."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean, stdev
from typing import Any

from reinforce_lite.evaluation.reflection import find_reflections, reflection_rates
from reinforce_lite.learner.updater import GradientStats
from reinforce_lite.runlog.records import CompletionRecord, NotFinite, Record, StepMetrics
from reinforce_lite.tasks.numbers import UnreadableError, read_number
from reinforce_lite.types import Group, Split, Verdict
from reinforce_lite.utils.finite import finite_or_none

FEW_QUESTIONS = 4
"""Of fewer, it means nothing that one answer is frequent."""


def step_metrics(
    step: int,
    groups: Sequence[Group],
    gradient: GradientStats,
    updated: bool,
    weights_finite: bool,
    seconds: Mapping[str, float],
    **state: Any,
) -> StepMetrics:
    """The metrics of one step.

    `updated`: whether the step changed the weights. `weights_finite`: whether they are finite afterwards.
    `seconds` are those of its phases: rollout, reward, update. `state` are the fields of StepMetrics that the
    trainer knows: warm_start, learning_rate, num_tokens, step_time, peak_memory, micro_batch_tokens,
    max_num_seqs.
    """
    rollouts = [r for g in groups for r in g.rollouts]
    scored = [g for g in groups if any(g.scored)]
    completions = [r.completion for r in rollouts]
    sampled = sum(len(c.token_ids) for c in completions)
    lenient = [r.lenient.correct for r in rollouts if r.lenient is not None]
    second = [r.second_opinion for r in rollouts if r.second_opinion is not None]
    reflection = reflection_rates([c.text for c in completions])
    entropy = finite_or_none(-sum(sum(c.logprobs) for c in completions) / sampled)
    not_finite: NotFinite | None = None
    if not weights_finite:
        not_finite = "weights"
    elif not gradient.is_finite:
        not_finite = "gradient"
    elif entropy is None:
        not_finite = "log-probabilities"
    none, few, some, most, every = difficulty(groups)
    gap = gradient.sampler_gap
    same, same_right = same_answer(groups) or (None, None)
    return StepMetrics(
        step=step,
        reward=fmean([reward for g in scored for reward in g.rewards] or [0.0]),
        reward_std=fmean([stdev(g.rewards) if len(g.rewards) > 1 else 0.0 for g in scored] or [0.0]),
        no_signal_ratio=fmean(not g.is_live for g in groups),
        questions_asked=len(groups),
        live_groups=sum(g.is_live for g in groups),
        none_right=none,
        few_right=few,
        some_right=some,
        most_right=most,
        all_right=every,
        strict=fmean([right for g in groups for right in g.right_where_scored] or [0.0]),
        lenient=fmean(lenient) if lenient else None,
        second_opinion=fmean(second) if second else None,
        same_answer=same,
        same_answer_right=same_right,
        mean_length=sampled / len(completions),
        clipped_ratio=fmean(c.truncated for c in completions),
        repetition_ratio=fmean(c.repetitive for c in completions),
        entropy=entropy,
        loss=finite_or_none(gradient.loss),
        grad_norm=finite_or_none(gradient.norm),
        logprob_gap_mean=finite_or_none(gap.mean) if gap.tokens else None,
        logprob_gap_max=finite_or_none(gap.largest) if gap.tokens else None,
        effective_sample_size=gap.effective_sample_size if gap.tokens and isfinite(gap.mean) else None,
        loss_scale=gradient.loss_scale.factor if gradient.loss_scale else None,
        updated=updated and weights_finite,
        not_finite=not_finite,
        reward_faults=sum(bool(r.fault) for r in rollouts),
        reflection_a=reflection["a"],
        reflection_b=reflection["b"],
        reflection_c=reflection["c"],
        rollout_seconds=seconds["rollout"],
        reward_seconds=seconds["reward"],
        update_seconds=seconds["update"],
        rollout_tokens_per_second=sampled / seconds["rollout"],
        update_tokens_per_second=gradient.tokens / seconds["update"],
        **state,
    )


def difficulty(groups: Sequence[Group]) -> list[float]:
    """Shares of the questions by success rate: 0, up to 1/3, between, from 2/3, and 1."""
    rates = [rate for g in groups if (rate := g.success_rate) is not None]
    classes = [(rate > 0) + (rate > 1 / 3) + (rate >= 2 / 3) + (rate == 1) for rate in rates]
    return [classes.count(i) / max(1, len(rates)) for i in range(5)]


def same_answer(groups: Sequence[Group]) -> tuple[float, float] | None:
    """The share of completions that give the most frequent answer, and the share of these that are right."""
    verdicts = [(_answer(r.strict), r.strict.correct) for g in groups for r in g.rollouts if not r.fault]
    counts = Counter(answer for answer, _ in verdicts if answer)
    if len(groups) < FEW_QUESTIONS or not counts:
        return None
    [(most_frequent, n)] = counts.most_common(1)
    return n / len(verdicts), fmean(right for answer, right in verdicts if answer == most_frequent)


def _answer(verdict: Verdict) -> str:
    """An answer as text, numbers in the same spelling; empty if there is none."""
    text = _text(verdict.answer) or ""
    try:
        return str(read_number(text).value)
    except UnreadableError:
        return text


def completion_records(
    step: int,
    groups: Sequence[Group],
    advantages: Sequence[Sequence[float]] | None = None,
    split: Split = "train",
) -> list[Record]:
    """Every completion of a step, or of an evaluation, which has no advantages."""
    return [
        CompletionRecord(
            step=step,
            problem_id=group.problem.id,
            sample=sample,
            question=group.problem.question,
            gold=_text(group.problem.gold),
            completion=rollout.completion.text,
            answer=_text(rollout.strict.answer),
            reason=_text(rollout.strict.reason),
            reward=rollout.reward,
            strict=rollout.strict.correct,
            lenient=rollout.lenient.correct if rollout.lenient else None,
            second_opinion=rollout.second_opinion,
            advantage=advantages[q][sample] if advantages else None,
            tokens=len(rollout.completion.token_ids),
            truncated=rollout.completion.truncated,
            reflection=find_reflections(rollout.completion.text),
            fault=rollout.fault,
            split=split,
        ).to_record()
        for q, group in enumerate(groups)
        for sample, rollout in enumerate(group.rollouts)
    ]


def _text(value: object) -> str | None:
    """A value as text: a task given as an object is not checked to hold text."""
    return None if value is None else str(value)
