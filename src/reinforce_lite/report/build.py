"""From one run to what its page shows: its figures, and the completions selected for reading.

The completions are read twice, line by line: once to count all and select some, once to fetch the selected
ones. So a report needs little memory, however long the run.
"""

from typing import NamedTuple

from reinforce_lite.learner.presets import EPSILON, build_objective
from reinforce_lite.report import serialize
from reinforce_lite.report.audit import build_audit
from reinforce_lite.report.comparison import Compared, final_verdicts
from reinforce_lite.report.costs import build_costs
from reinforce_lite.report.curves import build_curves
from reinforce_lite.report.eval_history import EvalHistory, ProblemKey
from reinforce_lite.report.excerpts import ExcerptCollector
from reinforce_lite.report.reflection import ReflectionTally, build_reflection
from reinforce_lite.report.result import build_result
from reinforce_lite.report.run_data import RunData, iter_eval_completions, iter_groups, load_run_data
from reinforce_lite.report.selection import GroupStats, group_stats, select_groups, select_questions
from reinforce_lite.runlog.health import find_warnings
from reinforce_lite.runlog.records import Record, hits
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.summary import incomplete_evaluations


class RunReport(NamedTuple):
    """Everything that a page shows of a run."""

    summary: Record
    """Results and figures, as `report --json` prints them."""
    details: Record
    """Curves, excerpts and the selected completions."""
    compared: Compared
    """What a page of several runs compares."""


def build_report(run: Run, n_runs: int = 1) -> RunReport:
    """The report of a run; a page of `n_runs` runs gives each an equal part of its room for completions."""
    data = load_run_data(run)
    history, excerpts = EvalHistory(incomplete_evaluations(run)), ExcerptCollector()
    training = ReflectionTally(independent=False)
    stats = []
    for index, group in enumerate(iter_groups(run)):
        stats.append(group_stats(index, group))
        for line in group:
            if not line.get("fault"):
                training.add(hits(line), line["strict"], line["tokens"])
            excerpts.add(line)
    for line in iter_eval_completions(data):
        history.add(line)
        if line["step"]:
            excerpts.add(line)
    indices = select_groups(stats, n_runs)
    groups = [_group(group) for i, group in enumerate(iter_groups(run)) if i in indices]
    questions = _questions(data, select_questions(history, n_runs))
    result, name = build_result(data, history, stats), run.path.resolve().name
    summary: Record = {
        "name": name,
        "model": data.model,
        "task": data.task,
        "result": result,
        "audit": build_audit(data, result),
        "warnings": list(find_warnings(data.steps).values()),
        "reflection": build_reflection(data, history, training),
        "costs": build_costs(data),
        "completions": _counts(stats, history, groups, questions),
        "example": _example(result["kind"], questions),
    }
    details: Record = {
        "curves": build_curves(data),
        "excerpts": excerpts.select(),
        "objective": _objective(data),
        "groups": groups,
        "eval_history": questions,
    }
    verdicts = final_verdicts(history, result["after"]["step"]) if result["after"] else {}
    return RunReport(summary, details, Compared(name, data.config, verdicts))


def _counts(
    stats: list[GroupStats], history: EvalHistory, groups: list[Record], questions: list[Record]
) -> dict[str, int]:
    """The numbers of completions, questions and steps, and how many of them the page shows."""
    return {
        "training": sum(s.n_completions for s in stats),
        "training_shown": sum(len(group["completions"]) for group in groups),
        "evaluations": sum(map(len, history.problems.values())),
        "evaluations_shown": sum(len(question["completions"]) for question in questions),
        "questions": len(history.problems),
        "questions_shown": len(questions),
        "steps": len({s.step for s in stats}),
        "steps_shown": len({group["step"] for group in groups}),
    }


def _example(kind: str, questions: list[Record]) -> Record | None:
    """The shortest test question that illustrates the result: gained for a gain, lost for a loss."""
    right_after = {"better": True, "format": True, "constant": True, "worse": False}.get(kind)
    examples = []
    for question in questions:
        before, after = question["completions"][0], question["completions"][-1]
        scored = not (before.get("fault") or after.get("fault"))
        illustrates = scored and after["strict"] is right_after and before["strict"] is not right_after
        if question["split"] == "test" and illustrates:
            examples.append({"question": question["question"], "before": before, "after": after})
    return min(
        examples, key=lambda e: len(e["question"] + e["before"]["text"] + e["after"]["text"]), default=None
    )


def _objective(data: RunData) -> Record | None:
    """What turns a group's rewards into advantages; None for the config of another version."""
    try:
        objective = build_objective(**data.config["objective"])
    except (KeyError, TypeError):
        return None
    return {
        "baseline": objective.baseline,
        "scale": objective.scale,
        "clip": objective.advantage_clip,
        "epsilon": EPSILON,
        "refill": data.config.get("rollout", {}).get("refill", 1) > 1,
        "warm_start": data.config.get("train", {}).get("warm_start", 0),
    }


def _group(group: list[Record]) -> Record:
    completions = [serialize.completion(line) for line in group]
    return {"step": group[0]["step"]} | serialize.question(group[0]) | {"completions": completions}


def _questions(data: RunData, keys: list[ProblemKey]) -> list[Record]:
    """The selected held-out problems, in that order, with the completions of all evaluations."""
    questions: dict[ProblemKey, Record] = {key: {} for key in keys}
    for line in iter_eval_completions(data):
        question = questions.get((line["split"], line["problem_id"]))
        if question is not None:
            if not question:
                question |= {"split": line["split"]} | serialize.question(line) | {"completions": []}
            question["completions"].append({"step": line["step"]} | serialize.completion(line))
    return list(questions.values())
