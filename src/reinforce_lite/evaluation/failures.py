"""Why responses are wrong: the reasons of their verdicts, counted, the most common first."""

from collections.abc import Sequence
from dataclasses import dataclass

from reinforce_lite.types import Group, Problem, Rollout

TRUNCATED = "cut at the limit before an answer"


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
    rollouts = [(group.problem, rollout) for group in groups for rollout in group.rollouts]
    wrong: dict[str, list[tuple[Problem, Rollout]]] = {}
    for problem, rollout in rollouts:
        if not rollout.strict.correct:
            wrong.setdefault(failure_reason(rollout), []).append((problem, rollout))
    failures = [
        Failure(reason, len(failed), len(failed) / len(rollouts), *_example(*failed[0]))
        for reason, failed in wrong.items()
    ]
    return sorted(failures, key=lambda failure: -failure.count)


def failure_reason(rollout: Rollout) -> str:
    """Why a wrong rollout is wrong: truncated before any answer, or what its verdict says."""
    truncated = rollout.completion.truncated and rollout.strict.answer is None
    return TRUNCATED if truncated else rollout.strict.reason


def _example(problem: Problem, rollout: Rollout) -> tuple[str, str, str]:
    return problem.question, problem.gold, rollout.completion.text
