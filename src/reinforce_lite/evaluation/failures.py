"""Why responses are wrong: the reasons of their verdicts, counted, the most common first."""

from collections.abc import Sequence
from dataclasses import dataclass

from reinforce_lite.types import Group

TRUNCATED = "cut at the limit before an answer"
REPETITIVE = "repeated itself before an answer"


@dataclass(frozen=True, slots=True)
class Failure:
    """One reason, with the first completion that failed for it."""

    reason: str
    count: int
    share: float
    """Of all rollouts, including the right ones; a fraction of 1."""
    question: str
    gold: str
    completion: str


def common_failures(groups: Sequence[Group]) -> list[Failure]:
    """The reasons of all wrong rollouts, by falling count; ties in the order of their first example."""
    wrong: dict[str, list[tuple[str, str, str]]] = {}
    for group in groups:
        for rollout in group.rollouts:
            if not rollout.strict.correct:
                completion, problem = rollout.completion, group.problem
                reason = rollout.strict.reason
                if completion.truncated and rollout.strict.answer is None and not rollout.fault:
                    reason = REPETITIVE if completion.repetitive else TRUNCATED
                wrong.setdefault(reason, []).append((problem.question, problem.gold, completion.text))
    n = sum(len(group.rollouts) for group in groups)
    failures = [Failure(reason, len(found), len(found) / n, *found[0]) for reason, found in wrong.items()]
    return sorted(failures, key=lambda failure: failure.count, reverse=True)
