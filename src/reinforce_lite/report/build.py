"""One run to what its page shows: its numbers, and the answers chosen to be read.

The answers are read twice, line by line: once to count them all and to choose, once to fetch the chosen.
So a page needs little memory, however long the run.
"""

from typing import Any

from reinforce_lite.report import (
    eval_history,
    selection,
    serialize,
)
from reinforce_lite.report.costs import build_costs
from reinforce_lite.report.curves import build_curves
from reinforce_lite.report.eval_history import EvalHistory, Key
from reinforce_lite.report.excerpts import Excerpts
from reinforce_lite.report.reflection import Hits, build_reflection
from reinforce_lite.report.result import build_result
from reinforce_lite.report.run_data import Files, groups, load, whole
from reinforce_lite.report.selection import Seen
from reinforce_lite.runlog.health import find_warnings
from reinforce_lite.runlog.records import StepMetrics
from reinforce_lite.runlog.run import Line, Run

RunReport = tuple[Line, Line]
"""What the page says in numbers, and what it shows beside them."""


def build_report(run: Run, share: int = 1) -> RunReport:
    """Everything a page shows of a run; `share` runs divide the room for answers."""
    files = load(run)
    counted = _Counted(files)
    shown = selection.of_groups(counted.seen, share)
    questions = selection.of_questions(counted.eval_history, share)
    numbers: Line = {
        "name": run.path.resolve().name,
        "model": files.model,
        "task": files.task,
        "result": build_result(files, counted.eval_history),
        "warnings": list(find_warnings([StepMetrics.from_record(s) for s in files.steps]).values()),
        "aha": build_reflection(files, counted.eval_history, counted.populations),
        "cost": build_costs(files),
        "answers": _answers(counted, shown, questions),
    }
    beside: Line = {
        "curves": build_curves(files),
        "excerpts": counted.excerpts.chosen(),
        "groups": _groups(run, shown),
        "asked": _questions(files, questions),
    }
    return numbers | {"example": _example(numbers["result"]["kind"], beside["asked"])}, beside


class _Counted:
    """All answers, counted."""

    def __init__(self, files: Files) -> None:
        self.eval_history = EvalHistory()
        self.excerpts = Excerpts()
        self.populations = {name: Hits() for name in ("untrained", "training", "trained")}
        self.seen: list[Seen] = []
        self.lines = 0
        self._training(files.run)
        self._evaluations(files)

    def _training(self, run: Run) -> None:
        for place, group in enumerate(groups(run)):
            self.seen.append(selection.seen(place, group))
            for line in group:
                found = line.get("reflection", {})
                self.populations["training"].add(found, line["strict"], line["tokens"])
                self.excerpts.add(line)

    def _evaluations(self, files: Files) -> None:
        for line in whole(files):
            key, step = (line["split"], line["problem_id"]), line["step"]
            self.eval_history.marks.setdefault(key, {})[step] = eval_history.mark(line)
            if step:
                self.excerpts.add(line)
            self.lines += 1
        self._first_and_last(max((e["step"] for e in files.evals), default=0))

    def _first_and_last(self, last: int) -> None:
        """The untrained model's answers beside the last evaluation's, to the same problems."""
        for marks in self.eval_history.marks.values():
            for step, who in {last: "trained", 0: "untrained"}.items():
                if last in marks and step in marks:
                    found = marks[step]
                    self.populations[who].add(found.lists, found.strict, found.tokens)


def _answers(counted: _Counted, shown: set[int], questions: list[Key]) -> dict[str, Any]:
    """How many answers there are and how many of them the page shows."""
    return {
        "training": sum(g.size for g in counted.seen),
        "training_shown": sum(g.size for g in counted.seen if g.place in shown),
        "evaluations": counted.lines,
        "evaluations_shown": sum(len(counted.eval_history.marks[key]) for key in questions),
        "questions": len(counted.eval_history.marks),
        "questions_shown": len(questions),
        "steps": len({g.step for g in counted.seen}),
        "steps_shown": len({g.step for g in counted.seen if g.place in shown}),
    }


def _example(kind: str, questions: list[Line]) -> Line | None:
    """The shortest test question that shows the result: won where it is a gain, lost where it is a loss."""
    won = {"better": True, "format": True, "worse": False}.get(kind)
    found = [
        {"question": q["question"], "before": q["answers"][0], "after": q["answers"][-1]}
        for q in questions
        if q["split"] == "test" and q["answers"][-1]["strict"] is won and q["answers"][0]["strict"] is not won
    ]
    if won is None or not found:
        return None
    return min(found, key=lambda e: len(e["question"] + e["before"]["text"] + e["after"]["text"]))


def _groups(run: Run, places: set[int]) -> list[Line]:
    """The chosen groups with their cards, in the order of the file."""
    return [_group(group) for place, group in enumerate(groups(run)) if place in places]


def _group(group: list[Line]) -> Line:
    answers = [serialize.card(line) for line in group]
    return {"step": group[0]["step"]} | serialize.question(group[0]) | {"answers": answers}


def _questions(files: Files, keys: list[Key]) -> list[Line]:
    """The chosen held-out problems with the answer of every evaluation, in the order of the selection."""
    found: dict[Key, Line] = {key: {} for key in keys}
    for line in whole(files):
        key = (line["split"], line["problem_id"])
        if key in found:
            found[key] = found[key] or {"split": key[0]} | serialize.question(line) | {"answers": []}
            found[key]["answers"].append({"step": line["step"]} | serialize.card(line))
    return list(found.values())
