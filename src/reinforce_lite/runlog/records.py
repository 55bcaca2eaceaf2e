"""One line of steps.jsonl and one of rollouts.jsonl, as typed records, and what a line of a log must have.

Every line of a file has the same keys, and a key always the same type or null, so that other programs can
read the files as tables (docs/run-files.md). Lines of older versions are read too: they may lack keys.

The metric names in the files are TRL's where it has one (`completions/clipped_ratio`), so that dashboards can
be compared. In the program they are attributes; only this module and the page's charts spell them out.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, get_type_hints

from reinforce_lite.evaluation.evaluate import Evaluation
from reinforce_lite.types import Split
from reinforce_lite.utils.finite import from_json
from reinforce_lite.utils.kinds import Amount, Count, Keys, Share

Record = dict[str, Any]
NotFinite = Literal["weights", "gradient", "log-probabilities"]


def _metric(key: str) -> Any:
    return field(metadata={"key": key})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What is known after a step. Shares are fractions of 1, times in seconds, memory in bytes."""

    step: Count
    """From 1."""
    reward: float
    """Mean over the step's completions."""
    reward_std: float
    """Standard deviation within a group, mean over groups."""
    no_signal_ratio: Share = _metric("frac_reward_zero_std")
    """Share of groups whose rewards are all equal."""
    questions_asked: Count
    live_groups: Count
    """Groups whose rewards differ."""
    none_right: Share = _metric("questions/none_right")
    """Share of the questions asked of which no completion was right."""
    few_right: Share = _metric("questions/few_right")
    """Up to a third."""
    some_right: Share = _metric("questions/some_right")
    most_right: Share = _metric("questions/most_right")
    """Two thirds or more."""
    all_right: Share = _metric("questions/all_right")
    strict: Share = _metric("accuracy/strict")
    lenient: Share | None = _metric("accuracy/lenient")
    second_opinion: Share | None = _metric("accuracy/second_opinion")
    same_answer: Share | None = _metric("answers/most_frequent")
    """Share of completions that give the step's most frequent answer, whatever the question; None for few
    questions (`trainer.metrics.same_answer`) and where no answer was read."""
    same_answer_right: Share | None = _metric("answers/most_frequent_right")
    """The share of these that are right."""
    mean_length: Amount = _metric("completions/mean_length")
    """Tokens per completion, the end token included."""
    clipped_ratio: Share = _metric("completions/clipped_ratio")
    """Share of completions cut: at the limit, or where they repeat themselves."""
    repetition_ratio: Share | None = _metric("completions/repetition_ratio")
    """The part of them that repeats itself."""
    entropy: float | None
    """Mean of -log pi over the sampled tokens, in nats per token, at temperature 1 (with engine_correction at
    the rollout's): an estimate that lies below the policy's entropy when sampling is cooler than 1 or cut by
    top-p. None if it is not finite, as are the next two."""
    loss: float | None
    grad_norm: float | None
    """L2, before clipping; 0 when no group had a signal."""
    logprob_gap_mean: float | None = _metric("logprob_gap/mean")
    """Mean absolute difference, in nats, between what engine and update compute as the log-probability of a
    token that is learned from; 0 up to rounding. None in a step without such tokens, as are the next two."""
    logprob_gap_max: float | None = _metric("logprob_gap/max")
    effective_sample_size: float | None = _metric("logprob_gap/effective_sample_size")
    """Of the completions as samples of the current policy, as a fraction of their number."""
    loss_scale: float | None = None
    """The factor of the loss in this step's backward pass; only in float16."""
    learning_rate: float
    warm_start: bool = False
    """Whether only right completions were learned from (`train.warm_start`)."""
    updated: bool
    """False when there was nothing to learn from, or the gradient or the new weights were not finite."""
    not_finite: NotFinite | None
    """What held NaN or infinity in this step; None in a healthy one."""
    reward_faults: Count
    """Completions whose reward function failed."""
    reflection_a: Share = _metric("reflection/list_a")
    reflection_b: Share = _metric("reflection/list_b")
    reflection_c: Share = _metric("reflection/list_c")
    rollout_seconds: Amount = _metric("time/rollout")
    reward_seconds: Amount = _metric("time/reward")
    update_seconds: Amount = _metric("time/update")
    rollout_tokens_per_second: Amount = _metric("tokens_per_second/rollout")
    update_tokens_per_second: Amount = _metric("tokens_per_second/update")
    num_tokens: Count
    """Tokens since the start of the run, prompts included."""
    step_time: Amount
    peak_memory: Count = _metric("memory/peak_bytes")
    micro_batch_tokens: Count = _metric("memory/micro_batch_tokens")
    max_num_seqs: Count = _metric("memory/max_num_seqs")

    def completions(self, prompts_per_step: int, group_size: int) -> int:
        """How many were sampled; `prompts_per_step` is for lines of older versions."""
        return (self.questions_asked or prompts_per_step) * group_size

    def to_record(self) -> Record:
        """The line of steps.jsonl."""
        return {key: getattr(self, name) for name, key in KEYS.items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """A line read back. What an older version did not write, or wrote as NaN, is None."""
        values: dict[str, Any] = {name: record.get(key) for name, key in KEYS.items()}
        return cls(**values)


KEYS = {f.name: f.metadata.get("key", f.name) for f in fields(StepMetrics)}
"""The name in steps.jsonl of each attribute of StepMetrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRecord:
    """One completion and its verdicts: a line of rollouts.jsonl or eval_rollouts.jsonl."""

    step: Count
    problem_id: str
    sample: Count
    """From 0 within its group."""
    question: str
    gold: str | None
    completion: str
    """Exactly as decoded, without the prefill text."""
    answer: str | None
    """The extracted answer."""
    reason: str | None
    reward: float
    strict: bool
    lenient: bool | None
    second_opinion: bool | None
    advantage: float | None
    """In the warm start 1 if it was learned from, else 0; None in an evaluation."""
    tokens: Count
    truncated: bool
    reflection: Mapping[str, list[str]]
    """Reflection words by keyword list; `hits` reads those of a line."""
    fault: str = ""
    """Why the reward failed; empty if it did not."""
    split: Split = "train"

    def to_record(self) -> Record:
        """The line of the file."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def hits(line: Record) -> dict[str, list[str]]:
    """The reflection words of a completion's line, by keyword list; lists without any are omitted."""
    return {name: words for name, words in line.get("reflection", {}).items() if words}


def _line_keys(hints: dict[str, Any], required: Collection[str]) -> Keys:
    """What is not required may be null too: in a table a key that a line lacks is null."""
    return Keys({key: hint if key in required else hint | None for key, hint in hints.items()}, required)


def _steps() -> Keys:
    """Older versions lack other keys."""
    hints = get_type_hints(StepMetrics, include_extras=True)
    required = """step reward frac_reward_zero_std accuracy/strict completions/mean_length
        completions/clipped_ratio step_time time/rollout time/reward time/update tokens_per_second/rollout
        tokens_per_second/update"""
    return _line_keys({KEYS[name]: hint for name, hint in hints.items()}, required.split())


def _completions(*required: str) -> Keys:
    """In older versions the gold, the extracted answer and the reason could be of any type."""
    hints = get_type_hints(CompletionRecord, include_extras=True)
    hints |= dict.fromkeys(("gold", "answer", "reason"), Any)
    return _line_keys(hints, hints.keys() - {"second_opinion", "fault", "split"} | set(required))


def _evals() -> Keys:
    """Within a run an evaluation has a step and a duration."""
    hints = get_type_hints(Evaluation, include_extras=True)
    hints = {
        key: hint for key, hint in hints.items() if key not in ("reflection", "pass_at", "pass_at_interval")
    }
    required = "step split n reward strict strict_interval lenient lenient_interval seconds"
    return _line_keys(hints | {"step": Count, "seconds": Amount}, required.split())


LINES = {
    "steps": _steps(),
    "rollouts": _completions(),
    "eval_rollouts": _completions("split"),
    "evals": _evals(),
    "rewound": Keys({"file": str, "record": dict}, ("file", "record")),
}
"""By log, what each of its lines holds. Later versions may add keys."""


def parse_line(log: str, line: bytes) -> Record | None:
    """The record of a line of a log; None for a damaged one: no JSON object, or a key or its value is wrong.

    A number that is not finite is None in it.
    """
    try:
        record = from_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or (log in LINES and LINES[log].wrong(record)):
        return None
    return record
