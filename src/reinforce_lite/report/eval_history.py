"""The completions of the same held-out problems before, during and after training, compared."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from reinforce_lite.evaluation.reflection import REFLECTION_LISTS
from reinforce_lite.evaluation.statistics import mcnemar_p_value
from reinforce_lite.report.serialize import completion, page_bytes, question
from reinforce_lite.runlog.records import Record, hits

ProblemKey = tuple[str, str]
"""The split and the problem's id."""
OUTCOMES = {
    (False, True): "gained",
    (True, False): "lost",
    (True, True): "still_right",
    (False, False): "still_wrong",
}
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
    scored: bool
    """Whether the reward did not fail: otherwise there is no verdict to compare."""

    def verdict(self, kind: str) -> bool | None:
        """A verdict by its name; for the name of a keyword list, whether it has a hit."""
        return kind in self.lists if kind in REFLECTION_LISTS else getattr(self, kind)


Pair = tuple[EvalCompletion, EvalCompletion]
"""The untrained model's completion for a problem, and a later one."""


class EvalHistory:
    """All completions of finished evaluations.

    `incomplete` evaluations, by step and split, lost some, so accuracy can't be compared with theirs.
    """

    def __init__(self, incomplete: Collection[tuple[int, str]] = ()) -> None:
        self.incomplete = incomplete
        self.problems: dict[ProblemKey, dict[int, EvalCompletion]] = {}
        """By problem, then by step."""
        self.questions: dict[ProblemKey, str] = {}

    def add(self, line: Record) -> None:
        """Add a line of eval_rollouts.jsonl."""
        lists = frozenset(hits(line))
        size = page_bytes(completion(line)) + (0 if line["step"] else page_bytes(question(line)))
        key = line["split"], line["problem_id"]
        self.questions.setdefault(key, str(line["question"]))
        by_step = self.problems.setdefault(key, {})
        verdicts = line["strict"], line["lenient"], line.get("second_opinion")
        by_step[line["step"]] = EvalCompletion(
            *verdicts, lists, line["tokens"], size, scored=not line.get("fault")
        )

    def pairs(self, split: str, step: int) -> list[Pair]:
        """The completions at step 0 and at `step` of every problem that has both, with verdicts; none where
        completions were lost.
        """
        if (0, split) in self.incomplete or (step, split) in self.incomplete:
            return []
        both = (
            (by_step[0], by_step[step])
            for (problem_split, _), by_step in self.problems.items()
            if problem_split == split and 0 in by_step and step in by_step
        )
        return [pair for pair in both if all(completion.scored for completion in pair)]


def paired_p_value(pairs: Sequence[Pair], kind: str) -> float | None:
    """McNemar's exact p-value of a change of `EvalCompletion.verdict(kind)`.

    Problems without such a verdict are omitted; None if no problem has one.
    """
    verdicts = [(before.verdict(kind), after.verdict(kind)) for before, after in pairs]
    judged = [(b, a) for b, a in verdicts if b is not None and a is not None]
    return mcnemar_p_value([b for b, _ in judged], [a for _, a in judged]) if judged else None
