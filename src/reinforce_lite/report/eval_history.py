"""What the model answered to the same held-out questions before, during and after training."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from reinforce_lite.evaluation.reflection import REFLECTION_LISTS
from reinforce_lite.evaluation.statistics import mcnemar_p_value
from reinforce_lite.report import serialize
from reinforce_lite.runlog.run import Line

Key = tuple[str, str]
"""The split and the problem's id."""


class Mark(NamedTuple):
    """What is kept of every answer of every evaluation."""

    strict: bool
    lenient: bool | None
    second_opinion: bool | None
    lists: frozenset[str]
    """The keyword lists with a hit."""
    tokens: int
    cost: int
    """Bytes in the page."""


@dataclass(slots=True)
class EvalHistory:
    """The marks of every evaluation that is whole: problem, then step."""

    marks: dict[Key, dict[int, Mark]] = field(default_factory=dict)

    def paired_p(self, split: str, step: int, kind: str) -> float | None:
        """The p-value that nothing changed from step 0 to `step`: McNemar's, on the same problems.

        `kind` is strict, lenient, second_opinion, or a keyword list's name. Problems without such a verdict
        are left out; None where no problem has one.
        """
        bits = [(_bit(before, kind), _bit(after, kind)) for before, after in self._pairs(split, step)]
        judged = [(bool(b), bool(a)) for b, a in bits if b is not None and a is not None]
        return mcnemar_p_value([b for b, _ in judged], [a for _, a in judged]) if judged else None

    def shares(self, split: str, step: int, name: str) -> tuple[float, float]:
        """The shares of answers with a hit of a keyword list at step 0 and at `step`, same problems."""
        pairs = list(self._pairs(split, step))
        before = sum(name in b.lists for b, _ in pairs)
        after = sum(name in a.lists for _, a in pairs)
        return before / max(1, len(pairs)), after / max(1, len(pairs))

    def changes(self, split: str, step: int) -> dict[str, int]:
        """How many problems were won, lost, kept (right both times) and missed (wrong both times)."""
        found = dict.fromkeys(("won", "lost", "kept", "missed"), 0)
        for before, after in self._pairs(split, step):
            found[_change(before.strict, after.strict)] += 1
        return found

    def size(self, split: str, step: int) -> int:
        """Problems that both step 0 and `step` answered."""
        return sum(1 for _ in self._pairs(split, step))

    def kinds(self) -> dict[str, list[Key]]:
        """The problems by how their strict verdict went from the first answer to the last."""
        found: dict[str, list[Key]] = {name: [] for name in ("won", "lost", "kept", "missed")}
        for key, marks in self.marks.items():
            verdicts = [marks[step].strict for step in sorted(marks)]
            found[_change(verdicts[0], verdicts[-1])].append(key)
        return found

    def _pairs(self, split: str, step: int) -> Iterator[tuple[Mark, Mark]]:
        for (where, _), marks in self.marks.items():
            if where == split and 0 in marks and step in marks:
                yield marks[0], marks[step]


def mark(line: Line) -> Mark:
    """What is kept of a line."""
    lists = frozenset(line.get("reflection", {})) & frozenset(REFLECTION_LISTS)
    cost = serialize.cost(line) + (0 if line["step"] else serialize.question_cost(line))
    return Mark(line["strict"], line["lenient"], line.get("second_opinion"), lists, line["tokens"], cost)


def _bit(found: Mark, kind: str) -> bool | None:
    verdicts = {"strict": found.strict, "lenient": found.lenient, "second_opinion": found.second_opinion}
    return verdicts.get(kind, kind in found.lists)


def _change(before: bool, after: bool) -> str:
    if before:
        return "kept" if after else "lost"
    return "won" if after else "missed"
