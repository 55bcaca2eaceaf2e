"""What is drawn over the steps: columns of steps.jsonl, and the evaluations."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from statistics import fmean
from typing import Any

from reinforce_lite.evaluation.reflection import REFLECTION_LISTS
from reinforce_lite.report import serialize
from reinforce_lite.report.run_data import RunData
from reinforce_lite.runlog.records import Record

MAX_POINTS = 1_500
"""More steps than this are drawn as means of neighbouring steps."""

# Keys of steps.jsonl that the report reads; costs.py has those of the phases.
STRICT, LENIENT, SECOND = "accuracy/strict", "accuracy/lenient", "accuracy/second_opinion"
REWARD, NO_SIGNAL = "reward", "frac_reward_zero_std"
MEAN_LENGTH, TRUNCATED = "completions/mean_length", "completions/clipped_ratio"
ENTROPY, GRAD_NORM = "entropy", "grad_norm"
ROLLOUT_SPEED, UPDATE_SPEED = "tokens_per_second/rollout", "tokens_per_second/update"
PEAK_MEMORY = "memory/peak_bytes"
REFLECTION = tuple(f"reflection/list_{name}" for name in REFLECTION_LISTS)

_EVALUATION_KEYS = ("step", "split", "n", "strict", "strict_interval")


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart of the page."""

    title: str
    unit: str
    lines: dict[str, str]
    """Key of steps.jsonl to label."""
    hint: str
    """What the chart shows, for a newcomer."""
    evals: str = ""
    """The line on which the validation points belong."""


CHARTS = (
    Chart(
        "Accuracy",
        "share",
        {STRICT: "strict", LENIENT: "lenient", SECOND: "second opinion"},
        "Share of the completions sampled in training that are right. Dots: greedy completions of validation "
        "problems, which are not trained on, with 95% intervals.",
        evals=STRICT,
    ),
    Chart(
        "Reward", "", {REWARD: "mean reward"}, "What training maximizes: the mean over a step's completions."
    ),
    Chart("Completion length", "tokens", {MEAN_LENGTH: "mean length"}, "Tokens that the model writes."),
    Chart(
        "Truncated completions",
        "share",
        {TRUNCATED: "truncated"},
        "Completions that reach the token limit before they end; raise it if they are many.",
    ),
    Chart(
        "No-signal groups",
        "share",
        {NO_SIGNAL: "groups without signal"},
        "Groups (all completions of one question in one step) with equal rewards, which teach nothing.",
    ),
    Chart(
        "Entropy",
        "nats per token",
        {ENTROPY: "sampled tokens"},
        "How varied the completions are. Near 0, all completions of a question are alike.",
    ),
    Chart("Gradient norm", "", {GRAD_NORM: "before clipping"}, "Size of a step's gradient."),
    Chart(
        "Speed",
        "tokens/s",
        {ROLLOUT_SPEED: "rollout", UPDATE_SPEED: "update"},
        "Rollout: sampling completions. Update: training on them.",
    ),
    Chart("Memory", "bytes", {PEAK_MEMORY: "peak so far"}, "The most memory in use at any time."),
)


def build_curves(data: RunData) -> dict[str, Any]:
    """Columns of equal length, with None where a step lacks a figure; `seconds` since the start of the run.

    The time counts steps and evaluations; loading and saving between them are not in the lines.
    """
    keys = [key for chart in CHARTS for key in chart.lines] + list(REFLECTION)
    seconds = _elapsed(data)
    size = -(-len(data.steps) // MAX_POINTS) or 1
    columns = {key: _average([line.get(key) for line in data.steps], size) for key in keys}
    return {
        "steps": [chunk[-1]["step"] for chunk in _chunks(data.steps, size)],
        "seconds": [serialize.round_float(chunk[-1]) for chunk in _chunks(seconds, size)],
        "columns": {key: column for key, column in columns.items() if any(v is not None for v in column)},
        "averaged": size,
        "evals": [_evaluation(e, data, seconds) for e in data.evals],
    }


def charts(curves: Sequence[Record]) -> list[dict[str, Any]]:
    """The charts for the curves of one run or several.

    The second opinion is omitted if it is the lenient verdict in every run, as in tasks whose golds are
    numbers.
    """
    pairs = [(c["columns"].get(SECOND), c["columns"].get(LENIENT)) for c in curves]
    if any(second != lenient for second, lenient in pairs if second):
        return list(map(asdict, CHARTS))
    return [asdict(replace(c, lines={k: v for k, v in c.lines.items() if k != SECOND})) for c in CHARTS]


def _elapsed(data: RunData) -> list[float]:
    """Seconds from the start of the run to the end of each step."""
    durations = [line["step_time"] + _eval_seconds(data, line["step"] - 1) for line in data.steps]
    return list(accumulate(durations))


def _eval_seconds(data: RunData, step: int) -> float:
    return float(sum(e.get("seconds", 0.0) for e in data.evals if e["step"] == step))


def _evaluation(evaluation: Record, data: RunData, elapsed: Sequence[float]) -> Record:
    shown = {key: serialize.round_float(evaluation[key]) for key in _EVALUATION_KEYS}
    by_step = dict(zip((line["step"] for line in data.steps), elapsed, strict=True))
    return shown | {"seconds": serialize.round_float(by_step.get(evaluation["step"], 0.0))}


def _chunks(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def _average(values: Sequence[float | None], size: int) -> list[float | None]:
    """The mean of every `size` neighbours; None if all of them are None."""
    return [_mean([v for v in chunk if v is not None]) for chunk in _chunks(values, size)]


def _mean(values: Sequence[float]) -> float | None:
    return serialize.round_float(fmean(values)) if values else None
