"""The result of a run in one sentence, from the same test problems before and after training.

A change counts if McNemar's exact test finds it significant (p < 0.05). A strict gain without a lenient one
may be a gain in format only.
"""

from collections import Counter
from typing import Any

from reinforce_lite.evaluation.statistics import SIGNIFICANCE, against_chance, format_p
from reinforce_lite.report.eval_history import OUTCOMES, EvalHistory, paired_p_value
from reinforce_lite.report.run_data import RunData
from reinforce_lite.runlog.records import Record
from reinforce_lite.utils.text import percent

VERDICTS = ("strict", "lenient", "second_opinion")
_FIGURES = ("step", "n", *VERDICTS, *(f"{name}_interval" for name in VERDICTS))


def build_result(data: RunData, history: EvalHistory) -> dict[str, Any]:
    """The result: `kind`, `sentence`, `before` and `after` (the test's figures, or None), `p` and `changes`.

    `kind` is better, format, same, worse, unknown (no p-value), unfinished or unmeasured. `other` is the
    verdict shown in addition to strict: lenient, or second_opinion if the task has no lenient one. Shares
    are fractions of 1.
    """
    tests: list[Record] = [{key: e.get(key) for key in _FIGURES} for e in data.evals if e["split"] == "test"]
    before = next((e for e in tests if e["step"] == 0), None)
    after = next((e for e in reversed(tests) if e["step"] > 0), None)
    result: dict[str, Any] = {"status": status(data), "step": data.step, "before": before, "after": after}
    result["other"] = next((v for v in VERDICTS[1:] if before and before[v] is not None), None)
    if before is None or after is None:
        kind = "unmeasured" if before is None else "unfinished"
        return result | {"kind": kind, "sentence": _unfinished(data, before)}
    pairs = history.pairs("test", after["step"])
    p = {name: paired_p_value(pairs, name) for name in VERDICTS}
    outcomes = Counter(OUTCOMES[b.strict, a.strict] for b, a in pairs)
    changes = {name: outcomes[name] for name in OUTCOMES.values()}
    kind, meaning = _judge(before, after, p, result["other"])
    warm_steps = sum(bool(s.warm_start) for s in data.steps if s.step <= after["step"])
    warm_start = f" ({warm_steps} of warm start)" if warm_steps else ""
    head = (
        f"After {count(after['step'], 'step')}{warm_start}, {data.model} solves "
        f"{percent(after['strict'])} of {after['n']} test problems, "
        f"compared with {percent(before['strict'])} before training: "
    )
    return result | {"kind": kind, "sentence": f"{head}{meaning}.", "p": p, "changes": changes}


def status(data: RunData) -> str:
    """Whether the run is finished, in words."""
    progress = f"step {data.step} of {data.config.get('train', {}).get('steps', data.step)}"
    ended = {
        "steps": f"finished: {count(data.step, 'step')}",
        "hours": f"finished at its time limit, at {progress}",
        "not finite": f"failed at {progress}: weights, gradients or log-probabilities were not finite",
        "signal": f"stopped by a signal at {progress}; it can be resumed",
    }
    return ended.get(data.summary.get("stopped", ""), f"not finished: {progress}")


def count(n: int, noun: str) -> str:
    """A number with its noun, in the plural if needed.

    >>> count(1, "step"), count(2000, "step")
    ('1 step', '2,000 steps')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _judge(before: Record, after: Record, p: dict[str, float | None], other: str | None) -> tuple[str, str]:
    """The kind of result, and the second half of the sentence.

    A strict gain may be in format only: the verdict that training does not reward tells.
    """
    strict, p_other = p["strict"], p[other] if other else None
    if strict is None:
        reason = "as the completions of the evaluations are missing"
        return "unknown", f"whether this is chance is unknown, {reason}"
    chance, figures = against_chance(strict, after["strict"] - before["strict"], after["n"]), ""
    if other and p_other is not None:
        change = f"{percent(before[other])} → {percent(after[other])}, {format_p(p_other)}"
        figures = f"{other.replace('_', ' ')} {change}"
    suffix = f"; {figures}" if figures else ""
    if strict >= SIGNIFICANCE:
        return "same", f"{chance}{suffix}"
    if after["strict"] < before["strict"]:
        return "worse", f"a loss, {chance}{suffix}"
    gain = f"a gain, {chance}"
    if other is None or p_other is None:
        return "better", f"{gain}; this task has no second verdict to tell skill from format"
    if after[other] > before[other] and p_other < SIGNIFICANCE:
        return "better", f"{gain}; the verdict that asks for no format rose too ({figures})"
    return "format", f"{gain}; perhaps only in format, as no other verdict rose so clearly ({figures})"


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
