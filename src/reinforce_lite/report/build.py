"""From one run to what its page shows: its figures, and the completions selected for reading.

The completions are read twice, line by line: once to count all and select some, once to fetch the selected
ones. So a report needs little memory, however long the run.
"""

from typing import Any, NamedTuple

from reinforce_lite.report import selection, serialize
from reinforce_lite.report.costs import build_costs
from reinforce_lite.report.curves import build_curves
from reinforce_lite.report.eval_history import EvalHistory, ProblemKey
from reinforce_lite.report.excerpts import ExcerptCollector
from reinforce_lite.report.reflection import ReflectionTally, build_reflection
from reinforce_lite.report.result import build_result
from reinforce_lite.report.run_data import RunData, iter_eval_completions, iter_groups, load_run_data
from reinforce_lite.report.selection import GroupStats
from reinforce_lite.runlog.health import find_warnings
from reinforce_lite.runlog.records import Record, StepMetrics
from reinforce_lite.runlog.run import Run


class RunReport(NamedTuple):
    """Everything that a page shows of a run."""

    summary: Record
    """Results and figures, as `report --json` prints them."""
    details: Record
    """Curves, excerpts and the selected completions."""


def build_report(run: Run, n_runs: int = 1) -> RunReport:
    """The report of a run; a page of `n_runs` runs gives each an equal part of its room for completions."""
    data = load_run_data(run)
    collected = _Collected(data)
    indices = selection.select_groups(collected.groups, n_runs)
    keys = selection.select_questions(collected.history, n_runs)
    result, questions = build_result(data, collected.history), _questions(data, keys)
    summary: Record = {
        "name": run.path.resolve().name,
        "model": data.model,
        "task": data.task,
        "result": result,
        "warnings": list(find_warnings([StepMetrics.from_record(s) for s in data.steps]).values()),
        "reflection": build_reflection(data, collected.history, collected.populations),
        "costs": build_costs(data),
        "completions": _counts(collected, indices, keys),
        "example": _example(result["kind"], questions),
    }
    details: Record = {
        "curves": build_curves(data),
        "excerpts": collected.excerpts.select(),
        "groups": [_group(group) for i, group in enumerate(iter_groups(run)) if i in indices],
        "eval_history": questions,
    }
    return RunReport(summary, details)


class _Collected:
    """What the first pass over all completions collects."""

    def __init__(self, data: RunData) -> None:
        self.history = EvalHistory()
        self.excerpts = ExcerptCollector()
        self.populations = {name: ReflectionTally() for name in ("untrained", "training", "trained")}
        self.groups: list[GroupStats] = []
        self.n_eval_completions = 0
        self._read_training(data.run)
        self._read_evaluations(data)
        self._compare_first_and_last(max((e["step"] for e in data.evals), default=0))

    def _read_training(self, run: Run) -> None:
        for index, group in enumerate(iter_groups(run)):
            self.groups.append(selection.group_stats(index, group))
            for line in group:
                lists = line.get("reflection", {})
                self.populations["training"].add(lists, line["strict"], line["tokens"])
                self.excerpts.add(line)

    def _read_evaluations(self, data: RunData) -> None:
        for line in iter_eval_completions(data):
            self.history.add(line)
            if line["step"]:
                self.excerpts.add(line)
            self.n_eval_completions += 1

    def _compare_first_and_last(self, last: int) -> None:
        """Count the completions of the untrained model and of the last evaluation, for the same problems."""
        for by_step in self.history.problems.values():
            for step, who in {last: "trained", 0: "untrained"}.items():
                if last in by_step and step in by_step:
                    completion = by_step[step]
                    self.populations[who].add(completion.lists, completion.strict, completion.tokens)


def _counts(collected: _Collected, indices: set[int], keys: list[ProblemKey]) -> dict[str, Any]:
    """The numbers of completions, questions and steps, and how many of them the page shows."""
    shown = [group for group in collected.groups if group.index in indices]
    problems = collected.history.problems
    return {
        "training": sum(g.n_completions for g in collected.groups),
        "training_shown": sum(g.n_completions for g in shown),
        "evaluations": collected.n_eval_completions,
        "evaluations_shown": sum(len(problems[key]) for key in keys),
        "questions": len(problems),
        "questions_shown": len(keys),
        "steps": len({g.step for g in collected.groups}),
        "steps_shown": len({g.step for g in shown}),
    }


def _example(kind: str, questions: list[Record]) -> Record | None:
    """The shortest test question that illustrates the result: gained for a gain, lost for a loss."""
    right_after = {"better": True, "format": True, "worse": False}.get(kind)
    pairs = [
        (q["question"], q["completions"][0], q["completions"][-1]) for q in questions if q["split"] == "test"
    ]
    examples = [
        {"question": question, "before": before, "after": after}
        for question, before, after in pairs
        if after["strict"] is right_after and before["strict"] is not right_after
    ]
    return min(examples, key=_length, default=None)


def _length(example: Record) -> int:
    return len(example["question"] + example["before"]["text"] + example["after"]["text"])


def _group(group: list[Record]) -> Record:
    completions = [serialize.completion(line) for line in group]
    return {"step": group[0]["step"]} | serialize.question(group[0]) | {"completions": completions}


def _questions(data: RunData, keys: list[ProblemKey]) -> list[Record]:
    """The selected held-out problems, in that order, with the completions of all evaluations."""
    questions: dict[ProblemKey, Record] = {key: {} for key in keys}
    for line in iter_eval_completions(data):
        key = (line["split"], line["problem_id"])
        if key in questions:
            question = questions[key]
            if not question:
                question |= {"split": key[0]} | serialize.question(line) | {"completions": []}
            question["completions"].append({"step": line["step"]} | serialize.completion(line))
    return list(questions.values())
