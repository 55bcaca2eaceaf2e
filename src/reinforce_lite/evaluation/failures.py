"""Why answers are wrong: the reasons of their verdicts, counted, the most common first."""

from collections.abc import Sequence
from dataclasses import dataclass

from reinforce_lite.types import Group, Rollout

CUT = "cut at the limit before an answer"


@dataclass(frozen=True, slots=True)
class Failure:
    """One reason, with the first answer that failed by it."""

    reason: str
    count: int
    share: float
    """Of all answers, the right ones too."""
    question: str
    gold: str
    completion: str


def common_failures(groups: Sequence[Group]) -> list[Failure]:
    """The reasons of all wrong answers, by count; ties in the order of their first example."""
    answers = [(group, rollout) for group in groups for rollout in group.rollouts]
    by_reason: dict[str, list[tuple[Group, Rollout]]] = {}
    for group, rollout in answers:
        if not rollout.strict.correct:
            by_reason.setdefault(reason(rollout), []).append((group, rollout))
    found = [
        Failure(why, len(failed), len(failed) / len(answers), *_example(*failed[0]))
        for why, failed in by_reason.items()
    ]
    return sorted(found, key=lambda failure: -failure.count)


def reason(rollout: Rollout) -> str:
    """Why a wrong answer is wrong: it never came to one, or what the verdict says."""
    cut = rollout.completion.truncated and rollout.strict.answer is None
    return CUT if cut else rollout.strict.reason


def _example(group: Group, rollout: Rollout) -> tuple[str, str, str]:
    return group.problem.question, group.problem.gold, rollout.completion.text
