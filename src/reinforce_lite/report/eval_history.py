"""The completions of the same held-out problems before, during and after training, compared."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from reinforce_lite.evaluation.reflection import REFLECTION_LISTS
from reinforce_lite.evaluation.statistics import mcnemar_p_value
from reinforce_lite.report import serialize
from reinforce_lite.runlog.records import Record

ProblemKey = tuple[str, str]
"""The split and the problem's id."""
OUTCOMES = ("gained", "lost", "still_right", "still_wrong")
"""How a problem's strict verdict changes from the first evaluation to the last."""


class EvalCompletion(NamedTuple):
    """What figures and selection need of a completion of an evaluation."""

    strict: bool
    lenient: bool | None
    second_opinion: bool | None
    lists: frozenset[str]
    """The keyword lists with a hit."""
    tokens: int
    size: int
    """Bytes in the page."""


@dataclass(slots=True)
class EvalHistory:
    """All completions of finished evaluations."""

    problems: dict[ProblemKey, dict[int, EvalCompletion]] = field(default_factory=dict)
    """By problem, then by step."""

    def add(self, line: Record) -> None:
        """Add a line of eval_rollouts.jsonl."""
        lists = frozenset(line.get("reflection", {})) & frozenset(REFLECTION_LISTS)
        size = serialize.completion_bytes(line) + (0 if line["step"] else serialize.question_bytes(line))
        by_step = self.problems.setdefault((line["split"], line["problem_id"]), {})
        by_step[line["step"]] = EvalCompletion(
            line["strict"], line["lenient"], line.get("second_opinion"), lists, line["tokens"], size
        )

    def paired_p_value(self, split: str, step: int, kind: str) -> float | None:
        """McNemar's exact p-value of a change from step 0 to `step` on the same problems.

        `kind` is strict, lenient, second_opinion, or the name of a keyword list. Problems without such a
        verdict are omitted; None if no problem has one.
        """
        pairs = [
            (_verdict(before, kind), _verdict(after, kind)) for before, after in self._pairs(split, step)
        ]
        judged = [(bool(b), bool(a)) for b, a in pairs if b is not None and a is not None]
        return mcnemar_p_value([b for b, _ in judged], [a for _, a in judged]) if judged else None

    def reflection_rates(self, split: str, step: int, name: str) -> tuple[float, float]:
        """The shares of completions with a hit of a list at step 0 and at `step`, on the same problems."""
        pairs = list(self._pairs(split, step))
        before = sum(name in b.lists for b, _ in pairs)
        after = sum(name in a.lists for _, a in pairs)
        return before / max(1, len(pairs)), after / max(1, len(pairs))

    def count_outcomes(self, split: str, step: int) -> dict[str, int]:
        """The number of problems by outcome, from step 0 to `step`."""
        counts = dict.fromkeys(OUTCOMES, 0)
        for before, after in self._pairs(split, step):
            counts[_outcome(before.strict, after.strict)] += 1
        return counts

    def count_pairs(self, split: str, step: int) -> int:
        """The number of problems that were evaluated both at step 0 and at `step`."""
        return sum(1 for _ in self._pairs(split, step))

    def problems_by_outcome(self) -> dict[str, list[ProblemKey]]:
        """The problems by outcome, from the first evaluation of each to its last."""
        keys: dict[str, list[ProblemKey]] = {name: [] for name in OUTCOMES}
        for key, by_step in self.problems.items():
            keys[_outcome(by_step[min(by_step)].strict, by_step[max(by_step)].strict)].append(key)
        return keys

    def _pairs(self, split: str, step: int) -> Iterator[tuple[EvalCompletion, EvalCompletion]]:
        for (problem_split, _), by_step in self.problems.items():
            if problem_split == split and 0 in by_step and step in by_step:
                yield by_step[0], by_step[step]


def _verdict(completion: EvalCompletion, kind: str) -> bool | None:
    if kind in REFLECTION_LISTS:
        return kind in completion.lists
    verdict: bool | None = getattr(completion, kind)
    return verdict


def _outcome(before: bool, after: bool) -> str:
    if before:
        return "still_right" if after else "lost"
    return "gained" if after else "still_wrong"
