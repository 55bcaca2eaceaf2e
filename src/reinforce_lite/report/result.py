"""The result of a run in one sentence, from the same test problems before and after training.

A change counts if McNemar's exact test finds it significant (p < 0.05). A strict gain without a lenient one
may be a gain in format only. The p-values are in the small print.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from reinforce_lite.evaluation.statistics import (
    CHANCE_RULE,
    SIGNIFICANCE,
    VERDICTS,
    chance_words,
    constant_hint,
    format_p,
    small_n_hint,
)
from reinforce_lite.report.eval_history import OUTCOMES, EvalHistory, paired_p_value
from reinforce_lite.report.progress import known_so_far, resume_command
from reinforce_lite.report.run_data import RunData
from reinforce_lite.report.selection import GroupStats
from reinforce_lite.runlog.records import Record
from reinforce_lite.utils.text import as_sentence, percent

_FIGURES = (
    "step",
    "n",
    "reward_faults",
    "best_constant",
    *VERDICTS,
    *(f"{name}_interval" for name in VERDICTS),
)


def build_result(data: RunData, history: EvalHistory, groups: Sequence[GroupStats] = ()) -> dict[str, Any]:
    """The result: `kind`, `sentence`, `before` and `after` (the test's figures, or None), `p` and `changes`.

    `kind` is better, format, constant, same, worse, unknown (no p-value), unfinished or unmeasured. `other`
    is the verdict shown in addition to strict: lenient, or second_opinion if the task has no lenient one.
    Shares are fractions of 1. `notes` are the small print, `resume` the command that continues an unfinished
    run. `groups` are those of training, for the trend of an unfinished run.
    """
    tests: list[Record] = [{key: e.get(key) for key in _FIGURES} for e in data.evals if e["split"] == "test"]
    before = next((e for e in tests if e["step"] == 0), None)
    after = next((e for e in reversed(tests) if e["step"] > 0), None)
    result: dict[str, Any] = {"status": status(data), "step": data.step, "before": before, "after": after}
    result["other"] = next((v for v in VERDICTS[1:] if before and _is_known(v, before, after)), None)
    result["resume"] = resume_command(data)
    if before is None or after is None:
        kind = "unmeasured" if before is None else "unfinished"
        sentence, *notes = known_so_far(data, groups, history)
        return result | {"kind": kind, "sentence": sentence, "notes": notes}
    pairs = history.pairs("test", after["step"])
    p = {name: paired_p_value(pairs, name) for name in VERDICTS}
    outcomes = Counter(OUTCOMES[b.strict, a.strict] for b, a in pairs)
    changes = {name: outcomes[name] for name in OUTCOMES.values()}
    is_loss = changes["lost"] > changes["gained"]
    kind, meaning = _judge(before, after, p, result["other"], is_loss)
    warm_steps = sum(bool(s.warm_start) for s in data.steps if s.step <= after["step"])
    warm_start = f" ({warm_steps} of warm start)" if warm_steps else ""
    head = (
        f"After {count(after['step'], 'step')}{warm_start}, {data.model} solves "
        f"{percent(after['strict'])} of {after['n']} test problems, "
        f"compared with {percent(before['strict'])} before training: "
    )
    notes = _notes(before, after, p, result["other"])
    if faults := sum(e["reward_faults"] or 0 for e in (before, after)):
        notes.append(f"The reward failed on {count(faults, 'completion')}: not counted.")
    if kind != "constant" and (constant := constant_hint(after)):
        notes.append(as_sentence(constant))
    return result | {
        "kind": kind,
        "sentence": f"{head}{meaning}.",
        "notes": notes,
        "p": p,
        "changes": changes,
    }


def _is_known(verdict: str, *evaluations: Record | None) -> bool:
    return all(e[verdict] is not None for e in evaluations if e)


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


def _judge(
    before: Record, after: Record, p: dict[str, float | None], other: str | None, is_loss: bool
) -> tuple[str, str]:
    """The kind of result, and the second half of the sentence.

    A strict gain may be in format only: the verdict that training does not reward tells. Or one answer to
    all questions may be right as often.
    """
    strict = p["strict"]
    if strict is None:
        reason = "as the completions of the evaluations are missing"
        return "unknown", f"whether this is chance is unknown, {reason}"
    chance = chance_words(strict)
    if strict >= SIGNIFICANCE:
        return "same", chance
    if is_loss:
        return "worse", f"a loss, {chance}"
    kind, doubt = _judge_gain(before, after, p[other] if other else None, other)
    return kind, f"a gain, {chance}{doubt}"


def _judge_gain(before: Record, after: Record, p_other: float | None, other: str | None) -> tuple[str, str]:
    """The kind of a gain in strict accuracy, and what is to be said about it."""
    if constant := constant_hint(after):
        return "constant", f"; but {constant}"
    if other is None or p_other is None:
        return "better", "; this task has no second verdict to tell skill from format"
    if after[other] > before[other] and p_other < SIGNIFICANCE:
        return "better", ", and not in format alone"
    figures = f"{other.replace('_', ' ')} {percent(before[other])} → {percent(after[other])}"
    return "format", f"; perhaps only in format, as no other verdict rose so clearly ({figures})"


def _notes(before: Record, after: Record, p: dict[str, float | None], other: str | None) -> list[str]:
    """The small print: p-values by verdict, and where more test problems would tell more."""
    known = [(name, p[name]) for name in ("strict", other) if name]
    figures = [f"{name.replace('_', ' ')} {format_p(value)}" for name, value in known if value is not None]
    if not figures or p["strict"] is None:
        return []
    note = f"McNemar's exact test on the same problems before and after: {', '.join(figures)}. {CHANCE_RULE}"
    hint = small_n_hint(p["strict"], after["strict"] - before["strict"], after["n"])
    return [note, f"{hint} tells more."] if hint else [note]
