"""What came of a run, in one sentence: measured on the same test problems before and after, or not yet.

A gain counts when McNemar's exact test finds it beyond chance (p < 0.05); strict without lenient is format.
"""

from typing import Any

from reinforce_lite.report.eval_history import EvalHistory
from reinforce_lite.report.run_data import Files
from reinforce_lite.runlog.run import Line
from reinforce_lite.utils.text import percent

BEYOND_CHANCE = 0.05
SMALLEST = 1e-99  # p-value that is told; of many problems it may round to 0, which none is
VERDICTS = ("strict", "lenient", "second_opinion")
_FIGURES = ("step", "n", *VERDICTS, *(f"{name}_interval" for name in VERDICTS))


def build_result(files: Files, asked: EvalHistory) -> dict[str, Any]:
    """The result: `kind`, `sentence`, `before` and `after` (the test's figures, or None), `p` and `changes`.

    `kind` is better, format, same, worse, unknown (no p), unfinished or nothing; `other` is the verdict that
    stands beside the strict one: lenient, or second_opinion where a task has no lenient one. Shares are of 1.
    """
    tests = [e for e in files.evals if e["split"] == "test"]
    before = next((_figures(e) for e in tests if e["step"] == 0), None)
    after = next((_figures(e) for e in reversed(tests) if e["step"] > 0), None)
    found: dict[str, Any] = {"state": state(files), "step": files.step, "before": before, "after": after}
    found["other"] = next((v for v in VERDICTS[1:] if before and before[v] is not None), None)
    if before is None or after is None:
        kind = "nothing" if before is None else "unfinished"
        return found | {"kind": kind, "sentence": _unfinished(files, before)}
    p = {name: asked.paired_p("test", after["step"], name) for name in VERDICTS}
    changes = asked.changes("test", after["step"])
    kind, meaning = _judge(before, after, p, found["other"])
    head = (
        f"After {counted(after['step'], 'step')} {files.model} answers {percent(after['strict'])} of "
        f"{after['n']} test problems right, {percent(before['strict'])} before training: "
    )
    return found | {"kind": kind, "sentence": f"{head}{meaning}.", "p": p, "changes": changes}


def state(files: Files) -> str:
    """Whether the run is finished, in words."""
    steps, asked_for = files.step, files.planned_steps
    match files.summary.get("stopped"):
        case "steps":
            return f"finished: {counted(steps, 'step')}"
        case "hours":
            return f"finished within its hours, at step {steps} of {asked_for}"
        case "signal":
            return f"stopped by a signal at step {steps} of {asked_for}; it can go on"
        case _:
            return f"not finished: step {steps} of {asked_for}"


def counted(n: int, thing: str) -> str:
    """How many of a thing.

    >>> counted(1, "step"), counted(2000, "step")
    ('1 step', '2,000 steps')
    """
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


def p_value(p: float) -> str:
    """A p-value with two digits.

    >>> p_value(0.000012)
    'p = 1.2e-05'
    """
    return f"p = {p:.2g}" if p >= SMALLEST else f"p < {SMALLEST:g}"


def _judge(before: Line, after: Line, p: dict[str, float | None], other: str | None) -> tuple[str, str]:
    """The kind of result, and the sentence's second half."""
    strict = p["strict"]
    if strict is None:
        return "unknown", "whether that is chance can't be told without the answers of both evaluations"
    figures = _figures_of(before, after, p, other)
    beside = f"; {figures}" if figures else ""
    if strict >= BEYOND_CHANCE:
        return "same", f"no change that chance does not explain ({p_value(strict)}){beside}"
    if after["strict"] < before["strict"]:
        return "worse", f"it got worse, beyond chance ({p_value(strict)}){beside}"
    kind, reading = _gain(before, after, p, other)
    return kind, f"a gain beyond chance ({p_value(strict)}){reading}"


def _gain(before: Line, after: Line, p: dict[str, float | None], other: str | None) -> tuple[str, str]:
    """Whether a strict gain is one of format: what the verdict says that training does not pay for."""
    figures, chance = _figures_of(before, after, p, other), p[other] if other else None
    if other is None or chance is None:
        return "better", "; this task has no other verdict that could tell skill from format"
    if after[other] > before[other] and chance < BEYOND_CHANCE:
        return "better", f", and not of format alone ({figures})"
    return "format", f", but perhaps of format alone: no other verdict rose beyond chance ({figures})"


def _figures_of(before: Line, after: Line, p: dict[str, float | None], other: str | None) -> str:
    """The other verdict's figures, or nothing."""
    chance = p[other] if other else None
    if other is None or chance is None:
        return ""
    name = other.replace("_", " ")
    return f"{name} {percent(before[other])} → {percent(after[other])}, {p_value(chance)}"


def _unfinished(files: Files, before: Line | None) -> str:
    if before is None:
        return "Nothing is measured yet: the untrained model's evaluation is not done."
    text = (
        f"No result yet, {state(files)}. Before training {files.model} answers {percent(before['strict'])} "
        f"of {before['n']} test problems right; the test after training comes at the end."
    )
    checks = [e for e in files.evals if e["split"] == "validation"]
    if len(checks) < 2:
        return text
    first, last = checks[0], checks[-1]
    return text + (
        f" On {last['n']} validation problems it went from {percent(first['strict'])} to "
        f"{percent(last['strict'])} by step {last['step']}."
    )


def _figures(evaluation: Line) -> Line:
    return {key: evaluation.get(key) for key in _FIGURES}
