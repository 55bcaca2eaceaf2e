"""What is drawn over the steps: columns of steps.jsonl, and the evaluations beside them."""

from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean
from typing import Any

from reinforce_lite.report import serialize
from reinforce_lite.report.run_data import Files
from reinforce_lite.runlog.run import Line

POINTS = 1_500
"""More steps than this are drawn as means of neighbours."""

LENIENT, SECOND = "accuracy/lenient", "accuracy/second_opinion"
CHARTS: tuple[dict[str, Any], ...] = (
    {
        "title": "Accuracy",
        "unit": "share",
        "lines": {
            "accuracy/strict": "strict",
            LENIENT: "lenient",
            SECOND: "second opinion",
        },
        "evals": "strict",
    },
    {"title": "Reward", "unit": "", "lines": {"reward": "mean reward"}},
    {"title": "Length of answers", "unit": "tokens", "lines": {"completions/mean_length": "mean length"}},
    {
        "title": "Answers cut at the limit",
        "unit": "share",
        "lines": {"completions/clipped_ratio": "share cut"},
    },
    {
        "title": "Groups that teach nothing",
        "unit": "share",
        "lines": {"frac_reward_zero_std": "share with equal rewards"},
    },
    {"title": "Entropy", "unit": "nats a token", "lines": {"entropy": "of the sampled tokens"}},
    {"title": "Gradient norm", "unit": "", "lines": {"grad_norm": "before clipping"}},
    {
        "title": "Speed",
        "unit": "tokens/s",
        "lines": {"tokens_per_second/rollout": "rollout", "tokens_per_second/update": "update"},
    },
    {"title": "Memory", "unit": "bytes", "lines": {"memory/peak_bytes": "peak so far"}},
)
REFLECTION = tuple(f"reflection/list_{name}" for name in "abc")

_EVALUATION = ("step", "split", "n", "strict", "strict_interval")


def build_curves(files: Files) -> dict[str, Any]:
    """Columns of equal length, with None where a step has no such figure; `seconds` since the start.

    The clock counts steps and evaluations; what saving and loading took between them is not in the lines.
    """
    keys = [key for chart in CHARTS for key in chart["lines"]] + list(REFLECTION)
    seconds = _seconds(files)
    size = -(-len(files.steps) // POINTS) or 1
    columns = {key: _thin([line.get(key) for line in files.steps], size) for key in keys}
    return {
        "steps": [part[-1]["step"] for part in _parts(files.steps, size)],
        "seconds": [serialize.short(part[-1]) for part in _parts(seconds, size)],
        "columns": {key: column for key, column in columns.items() if any(v is not None for v in column)},
        "averaged": size,
        "evals": [_evaluation(e, files, seconds) for e in files.evals],
    }


def charts(drawn: Sequence[Line]) -> list[dict[str, Any]]:
    """The charts for these runs' curves: without the second opinion where it is every run's lenient verdict,
    as on number tasks."""
    pairs = [(one["columns"].get(SECOND), one["columns"].get(LENIENT)) for one in drawn]
    if any(second != lenient for second, lenient in pairs if second):
        return list(CHARTS)
    return [c | {"lines": {k: v for k, v in c["lines"].items() if k != SECOND}} for c in CHARTS]


def _seconds(files: Files) -> list[float]:
    """When each step ended, in seconds since the start."""
    spent = [line["step_time"] + _evaluating(files, line["step"] - 1) for line in files.steps]
    return list(accumulate(spent))


def _evaluating(files: Files, step: int) -> float:
    return float(sum(e.get("seconds", 0.0) for e in files.evals if e["step"] == step))


def _evaluation(evaluation: Line, files: Files, seconds: Sequence[float]) -> Line:
    shown = {key: serialize.short(evaluation[key]) for key in _EVALUATION}
    ends = dict(zip((line["step"] for line in files.steps), seconds, strict=True))
    return shown | {"seconds": serialize.short(ends.get(evaluation["step"], 0.0))}


def _parts(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def _thin(values: Sequence[float | None], size: int) -> list[float | None]:
    """Means of neighbours, `size` together; None where they hold no figure."""
    return [_mean([v for v in part if v is not None]) for part in _parts(values, size)]


def _mean(values: Sequence[float]) -> float | None:
    return serialize.short(fmean(values)) if values else None
