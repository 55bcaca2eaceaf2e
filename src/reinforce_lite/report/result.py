"""The result of a run in one sentence, from the same test problems before and after training.

A change counts if McNemar's exact test finds it significant (p < 0.05). A strict gain without a lenient one
may be a gain in format only.
"""

from typing import Any

from reinforce_lite.report.eval_history import EvalHistory
from reinforce_lite.report.run_data import RunData
from reinforce_lite.runlog.records import Record
from reinforce_lite.utils.text import percent

SIGNIFICANCE = 0.05
MIN_P = 1e-99
"""The smallest p-value shown: with many problems one may underflow to 0, which no p-value is."""
VERDICTS = ("strict", "lenient", "second_opinion")
_FIGURES = ("step", "n", *VERDICTS, *(f"{name}_interval" for name in VERDICTS))


def build_result(data: RunData, history: EvalHistory) -> dict[str, Any]:
    """The result: `kind`, `sentence`, `before` and `after` (the test's figures, or None), `p` and `changes`.

    `kind` is better, format, same, worse, unknown (no p-value), unfinished or unmeasured. `other` is the
    verdict shown in addition to strict: lenient, or second_opinion if the task has no lenient one. Shares
    are fractions of 1.
    """
    tests = [e for e in data.evals if e["split"] == "test"]
    before = next((_figures(e) for e in tests if e["step"] == 0), None)
    after = next((_figures(e) for e in reversed(tests) if e["step"] > 0), None)
    result: dict[str, Any] = {"status": status(data), "step": data.step, "before": before, "after": after}
    result["other"] = next((v for v in VERDICTS[1:] if before and before[v] is not None), None)
    if before is None or after is None:
        kind = "unmeasured" if before is None else "unfinished"
        return result | {"kind": kind, "sentence": _unfinished(data, before)}
    p = {name: history.paired_p_value("test", after["step"], name) for name in VERDICTS}
    changes = history.count_outcomes("test", after["step"])
    kind, meaning = _judge(before, after, p, result["other"])
    head = (
        f"After {count(after['step'], 'step')}, {data.model} solves {percent(after['strict'])} of "
        f"{after['n']} test problems, compared with {percent(before['strict'])} before training: "
    )
    return result | {"kind": kind, "sentence": f"{head}{meaning}.", "p": p, "changes": changes}


def status(data: RunData) -> str:
    """Whether the run is finished, in words."""
    progress = f"step {data.step} of {data.planned_steps}"
    match data.summary.get("stopped"):
        case "steps":
            return f"finished: {count(data.step, 'step')}"
        case "hours":
            return f"finished at its time limit, at {progress}"
        case "signal":
            return f"stopped by a signal at {progress}; it can be resumed"
        case _:
            return f"not finished: {progress}"


def count(n: int, noun: str) -> str:
    """A number with its noun, in the plural if needed.

    >>> count(1, "step"), count(2000, "step")
    ('1 step', '2,000 steps')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def format_p(p: float) -> str:
    """A p-value with two digits.

    >>> format_p(0.000012)
    'p = 1.2e-05'
    """
    return f"p = {p:.2g}" if p >= MIN_P else f"p < {MIN_P:g}"


def _judge(before: Record, after: Record, p: dict[str, float | None], other: str | None) -> tuple[str, str]:
    """The kind of result, and the second half of the sentence."""
    strict = p["strict"]
    if strict is None:
        return (
            "unknown",
            "whether this is chance is unknown, as the completions of the evaluations are missing",
        )
    figures = _other_figures(before, after, p, other)
    suffix = f"; {figures}" if figures else ""
    if strict >= SIGNIFICANCE:
        return "same", f"no change beyond chance ({format_p(strict)}){suffix}"
    if after["strict"] < before["strict"]:
        return "worse", f"a loss beyond chance ({format_p(strict)}){suffix}"
    kind, reading = _judge_gain(before, after, p, other)
    return kind, f"a gain beyond chance ({format_p(strict)}){reading}"


def _judge_gain(
    before: Record, after: Record, p: dict[str, float | None], other: str | None
) -> tuple[str, str]:
    """Whether a strict gain may be in format only, by the verdict that training does not reward."""
    p_other = p[other] if other else None
    if other is None or p_other is None:
        return "better", "; this task has no second verdict to tell skill from format"
    figures = _other_figures(before, after, p, other)
    if after[other] > before[other] and p_other < SIGNIFICANCE:
        return "better", f", and not only in format ({figures})"
    return "format", f", but perhaps only in format: no other verdict rose beyond chance ({figures})"


def _other_figures(before: Record, after: Record, p: dict[str, float | None], other: str | None) -> str:
    """The other verdict's change, or nothing."""
    p_other = p[other] if other else None
    if other is None or p_other is None:
        return ""
    name = other.replace("_", " ")
    return f"{name} {percent(before[other])} → {percent(after[other])}, {format_p(p_other)}"


def _unfinished(data: RunData, before: Record | None) -> str:
    if before is None:
        return "No result yet: the evaluation of the untrained model is not finished."
    text = (
        f"No result yet ({status(data)}). Before training, {data.model} solves {percent(before['strict'])} "
        f"of {before['n']} test problems; the same problems follow at the end of training."
    )
    validations = [e for e in data.evals if e["split"] == "validation"]
    if len(validations) < 2:
        return text
    first, last = validations[0], validations[-1]
    return text + (
        f" On {last['n']} validation problems, accuracy went from {percent(first['strict'])} to "
        f"{percent(last['strict'])} by step {last['step']}."
    )


def _figures(evaluation: Record) -> Record:
    return {key: evaluation.get(key) for key in _FIGURES}
