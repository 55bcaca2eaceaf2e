"""summary.json: what came of a run, computed from its own files."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from reinforce_lite.config import Config
from reinforce_lite.evaluation.statistics import VERDICTS, mcnemar_p_value
from reinforce_lite.runlog.health import find_warnings
from reinforce_lite.runlog.records import Record, StepMetrics
from reinforce_lite.runlog.run import Run


def summarize(run: Run, config: Config, step: int) -> dict[str, Any]:
    """The part of summary.json that follows from the run's lines up to `step`, the warnings from all of them:
    a run that ended because its numbers were not finite has lines of later steps. Rates are per second of
    their own phase.
    """
    lines, evals = run.step_metrics, [e for e in run.evals if e["step"] <= step]
    steps = [s for s in lines if s.step <= step]
    samples = [s.completions(config.rollout.prompts_per_step, config.rollout.group_size) for s in steps]
    tokens = sum(s.mean_length * n for s, n in zip(steps, samples, strict=True))
    trained_tokens = sum(s.update_tokens_per_second * s.update_seconds for s in steps)
    return {
        "recipe": config.recipe,
        "model": config.model.name,
        "task": config.task.name,
        "steps": step,
        "samples": sum(samples),
        "tokens": round(tokens),
        "seconds_per_step": sum(s.step_time for s in steps) / max(1, len(steps)),
        "rollout_tokens_per_second": tokens / max(1e-9, sum(s.rollout_seconds for s in steps)),
        "train_tokens_per_second": trained_tokens / max(1e-9, sum(s.update_seconds for s in steps)),
        "reward_faults": reward_faults(steps, evals),
        "best_step": best_step(evals),
        "evals": before_and_after(run, step),
        "warnings": list(find_warnings(lines).values()),
    }


def seconds_told(run: Run) -> float:
    """What the run's steps and evaluations took: it has lasted at least that long, even where a kill lost the
    time since its checkpoint.
    """
    evaluating: float = sum(e["seconds"] for e in run.evals)
    return evaluating + sum(s.step_time for s in run.step_metrics)


def reward_faults(steps: Sequence[StepMetrics], evals: Sequence[Record]) -> int:
    """Completions on which the reward failed, also in evaluations, for which older runs have no record."""
    return sum(s.reward_faults or 0 for s in steps) + sum(e.get("reward_faults") or 0 for e in evals)


def best_step(evals: Sequence[Record]) -> int | None:
    """The step with the highest mean reward on validation, the earliest of equals; None without any."""
    rewards = {e["step"]: e["reward"] for e in evals if e["split"] == "validation"}
    return max(rewards, key=lambda step: (rewards[step], -step), default=None)


def before_and_after(run: Run, step: int) -> dict[str, Any]:
    """Test accuracy untrained and after `step`, as far as measured, and whether it changed: that is unknown,
    None, where completions were lost.
    """
    tests = {e["step"]: e for e in run.evals if e["split"] == "test"}
    keys = [*(key for kind in VERDICTS for key in (kind, f"{kind}_interval")), "best_constant"]
    evals: dict[str, Any] = {
        name: {key: tests[at].get(key) for key in (*keys, "n")}
        for name, at in (("before", 0), ("after", step))
        if at in tests and (name, at) != ("after", 0)
    }
    if "after" in evals:
        lost = {(0, "test"), (step, "test")} & incomplete_evaluations(run)
        evals["paired_p"] = {kind: None if lost else _paired_p(run, step, kind) for kind in VERDICTS}
    return evals


def incomplete_evaluations(run: Run) -> set[tuple[int, str]]:
    """Step and split of the evaluations that lack completions in eval_rollouts.jsonl."""
    scored = Counter((r["step"], r["split"]) for r in run.read("eval_rollouts") if not r.get("fault"))
    sizes = {(e["step"], e["split"]): e["n"] for e in run.evals}
    return {at for at, n in sizes.items() if scored[at] < n}


def _paired_p(run: Run, step: int, kind: str) -> float | None:
    """Of the problems that have such a verdict both times; None if no problem has."""
    verdicts: dict[int, dict[str, Any]] = {0: {}, step: {}}
    for record in run.read("eval_rollouts"):
        if record["split"] == "test" and record["step"] in verdicts:
            verdicts[record["step"]][record["problem_id"]] = None if record.get("fault") else record.get(kind)
    before, after = verdicts[0], verdicts[step]
    judged = [i for i in before if before[i] is not None and after.get(i) is not None]
    return mcnemar_p_value([before[i] for i in judged], [after[i] for i in judged]) if judged else None
