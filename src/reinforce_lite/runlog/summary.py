"""What came of a run, from its own files: totals, rates, accuracy before and after."""

from collections.abc import Sequence
from typing import Any

from reinforce_lite.config import Config
from reinforce_lite.evaluation.statistics import mcnemar_p_value
from reinforce_lite.runlog.health import find_warnings
from reinforce_lite.runlog.run import Line, Run

VERDICTS = ("strict", "lenient", "second_opinion")


def summarize(run: Run, config: Config, step: int) -> dict[str, Any]:
    """The part of summary.json that the lines of the run hold; rates are over their own phase's time."""
    lines, evals = run.steps, run.evals
    samples = config.rollout.prompts_per_step * config.rollout.group_size
    tokens = sum(line["completions/mean_length"] * samples for line in lines)
    trained = sum(line["tokens_per_second/update"] * line["time/update"] for line in lines)
    return {
        "recipe": config.recipe,
        "model": config.model.name,
        "task": config.task.name,
        "steps": step,
        "samples": samples * len(lines),
        "tokens": round(tokens),
        "seconds_per_step": _total(lines, "step_time") / max(1, len(lines)),
        "rollout_tokens_per_second": tokens / max(1e-9, _total(lines, "time/rollout")),
        "train_tokens_per_second": trained / max(1e-9, _total(lines, "time/update")),
        "best_step": best_step(evals) if evals else None,
        "evals": before_and_after(run, step),
        "warnings": list(find_warnings(lines).values()),
    }


def best_step(evals: Sequence[Line]) -> int:
    """The step with the highest mean reward on validation; the earliest of several."""
    scored = [e for e in evals if e["split"] == "validation"]
    return int(max(scored, key=lambda e: (e["reward"], -e["step"]))["step"])


def before_and_after(run: Run, step: int) -> dict[str, Any]:
    """Test accuracy of the untrained model and after `step`, as far as measured, and whether it changed."""
    tests = {e["step"]: e for e in run.evals if e["split"] == "test"}
    keys = [key for kind in VERDICTS for key in (kind, f"{kind}_interval")]
    found: dict[str, Any] = {
        name: {key: tests[at].get(key) for key in (*keys, "n")}
        for name, at in (("before", 0), ("after", step))
        if at in tests and (name, at) != ("after", 0)
    }
    if "after" in found:
        found["paired_p"] = {kind: _paired_p(run, step, kind) for kind in VERDICTS}
    return found


def _paired_p(run: Run, step: int, kind: str) -> float | None:
    """None where the task has no such verdict."""
    verdicts: dict[int, dict[str, Any]] = {0: {}, step: {}}
    for line in run.read("eval_rollouts"):
        if line["split"] == "test" and line["step"] in verdicts:
            verdicts[line["step"]][line["problem_id"]] = line.get(kind)
    before, after = verdicts[0], verdicts[step]
    judged = [i for i in before if before[i] is not None and after[i] is not None]
    return mcnemar_p_value([before[i] for i in judged], [after[i] for i in judged]) if judged else None


def _total(lines: Sequence[Line], key: str) -> float:
    return float(sum(line[key] for line in lines))
