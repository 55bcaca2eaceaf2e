"""What is drawn over the steps: columns of steps.jsonl, and the evaluations."""

import math
import tomllib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from itertools import accumulate
from statistics import fmean
from typing import Any

from reinforce_lite.evaluation.reflection import REFLECTION_LISTS
from reinforce_lite.report.run_data import RunData
from reinforce_lite.report.serialize import round_float
from reinforce_lite.runlog.records import KEYS, Record

MAX_POINTS = 1_500
"""More steps than this are drawn as means of neighbouring steps."""
CHARTS: list[Record] = tomllib.loads((files(__package__) / "charts.toml").read_text("utf-8"))["charts"]
"""The charts of the page, as charts.toml describes them."""
UNTRAINED = {chart["untrained"] for chart in CHARTS if "untrained" in chart}
"""The figures of an evaluation that charts draw as a reference."""
EVALUATED = ("step", "split", "n", "strict", "strict_interval", "best_constant")
LENIENT, SECOND = "accuracy/lenient", "accuracy/second_opinion"
REFLECTION = tuple(f"reflection/list_{name}" for name in REFLECTION_LISTS)


def build_curves(data: RunData) -> dict[str, Any]:
    """Columns of equal length, with None where a step lacks a figure; `seconds` since the start of the run.

    The time counts steps and evaluations; loading and saving between them are not in the lines. `untrained`
    is what the evaluation before the first step measured, for reference lines.
    """
    lines, elapsed = list(map(_line, data.step_records)), _elapsed(data)
    size = -(-len(lines) // MAX_POINTS) or 1
    chunks = [lines[i : i + size] for i in range(0, len(lines), size)]
    steps = [chunk[-1]["step"] for chunk in chunks]
    keys = [*(key for chart in CHARTS for key in chart["lines"]), *REFLECTION]
    columns = {key: [_mean(line.get(key) for line in chunk) for chunk in chunks] for key in keys}
    greedy = _greedy(data)
    return {
        "steps": steps,
        "seconds": [round_float(elapsed[step]) for step in steps],
        "columns": {key: column for key, column in columns.items() if any(v is not None for v in column)},
        "averaged": size,
        "evals": [
            {key: round_float(e.get(key)) for key in EVALUATED}
            | {"seconds": round_float(elapsed.get(e["step"], 0.0))}
            for e in greedy
        ],
        "untrained": {
            key: round_float(e.get(key)) for e in greedy if e["step"] == 0 for key in sorted(UNTRAINED)
        },
    }


def _greedy(data: RunData) -> list[Record]:
    """The evaluations to draw: those on validation, or on the test problems where there are none."""
    validations = [e for e in data.evals if e["split"] == "validation"]
    return validations or [e for e in data.evals if e["split"] == "test"]


def charts(curves: Sequence[Record]) -> list[Record]:
    """The charts for the curves of one run or several.

    The second opinion is omitted if it is the lenient verdict in every run, as in tasks whose golds are
    numbers.
    """
    pairs = [(c["columns"].get(SECOND), c["columns"].get(LENIENT)) for c in curves]
    if any(second != lenient for second, lenient in pairs if second):
        return CHARTS
    return [chart | {"lines": {k: v for k, v in chart["lines"].items() if k != SECOND}} for chart in CHARTS]


def _line(record: Record) -> Record:
    """A step's figures. A warm start has no no-signal groups: each right completion teaches by itself."""
    return record | ({KEYS["no_signal_ratio"]: None} if record.get("warm_start") else {})


def _elapsed(data: RunData) -> dict[int, float]:
    """Seconds from the start of the run to the end of each step."""
    evaluating = dict.fromkeys((e["step"] for e in data.evals), 0.0)
    for e in data.evals:
        evaluating[e["step"]] += e.get("seconds", 0.0)
    durations = (s.step_time + evaluating.get(s.step - 1, 0.0) for s in data.steps)
    return dict(zip((s.step for s in data.steps), accumulate(durations), strict=True))


def _mean(values: Iterable[Any]) -> float | None:
    """The mean of the finite numbers; None without any."""
    known = [v for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
    return round_float(fmean(known)) if known else None
