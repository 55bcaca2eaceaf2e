"""Is a task's reward right? What its own golds earn, and what a text earns that solves nothing.

A reward that pays for a constant, or not for the right answer, is learned all the same: the reward rises, and
nothing that was meant is learned.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.types import AnswerFormat, Problem, Reward
from reinforce_lite.utils import clock

WRITTEN: dict[AnswerFormat, str] = {
    "tags": "<answer>{}</answer>",
    "boxed": "\\boxed{{{}}}",
    "hash": "#### {}",
}
"""How an answer is written in each format."""
SAMPLE = 200
"""Problems that are looked at."""
PAID_FOR_NOTHING, PAID_FOR_EVERYTHING = 0.2, 0.9
"""Shares of problems for which a text that solves nothing is right: from the first on the audit advises
against it, from the second on the task is broken."""

Score = Callable[[Sequence[tuple[Problem, str]]], list[tuple[Reward, str]]]
"""`Scorer.score`: the reward and the fault of each response."""


@dataclass(frozen=True, slots=True)
class DataAudit:
    """What was found. Shares are fractions of 1 of the problems looked at."""

    problems: int
    """Looked at."""
    written: str
    """How the golds were written, with {} for the gold."""
    golds_paid: float
    """Share of problems whose gold, so written, is graded right. 0 may mean that a reward of the user's own
    wants something else than the gold."""
    unpaid: str
    """The first problem whose gold is graded wrong, with the reason; empty if there is none."""
    unearned: dict[str, float]
    """What responses that solve nothing earn, by a name for each: the share for which they are right."""
    faults: int
    """Calls of the reward that failed."""
    knows_format: bool
    """Whether it is known how the reward wants the gold."""
    milliseconds: float
    """Of a call of the reward."""

    @property
    def reason_broken(self) -> str:
        """Why no training can work: golds that are not paid, or a reward for nothing. Empty if it can."""
        name, share = self.easiest
        if self.golds_paid == 0 and self.faults >= self.problems:
            return f"the reward failed on {self.faults} calls"
        if share >= PAID_FOR_EVERYTHING:
            return f"{name} is right for {share:.0%} of the problems"
        if self.knows_format and self.golds_paid < 0.5:
            paid = f"{self.golds_paid:.0%}"
            return f"the gold is right for {paid} of the problems; the first failure: {self.unpaid}"
        return ""

    @property
    def easiest(self) -> tuple[str, float]:
        """What earns most without solving anything, and for how many problems."""
        return max(self.unearned.items(), key=lambda item: item[1])


def audit_data(problems: Sequence[Problem], score: Score, formats: Sequence[AnswerFormat]) -> DataAudit:
    """Look at the first SAMPLE problems; `formats` are those in which the reward may look for answers."""
    problems = problems[:SAMPLE]
    golds = [str(p.gold) for p in problems]
    start = clock.now()
    tried = [(*_paid(problems, [WRITTEN[f].format(g) for g in golds], score), WRITTEN[f]) for f in formats]
    seconds = clock.now() - start
    rights, unpaid, faults, written = max(tried, key=lambda found: sum(found[0]))
    texts = _unearned(problems, golds, written)
    earned = {name: _paid(problems, responses, score) for name, responses in texts.items()}
    return DataAudit(
        problems=len(problems),
        written=written,
        golds_paid=fmean(rights),
        unpaid=unpaid,
        unearned={name: fmean(found[0]) for name, found in earned.items()},
        faults=faults + sum(found[2] for found in earned.values()),
        knows_format=len(formats) == 1,
        milliseconds=1e3 * seconds / (len(formats) * len(problems)),
    )


def _paid(problems: Sequence[Problem], responses: Sequence[str], score: Score) -> tuple[list[bool], str, int]:
    """Whether each response is right, the first that is not with its reason, and how many calls failed."""
    try:
        rewards = score(list(zip(problems, responses, strict=True)))
    except ReinforceLiteError as error:  # it fails too often
        raise UsageError(error.cause, "fix the reward: it must return a number for any text") from error
    rights = [reward.strict is not None and reward.strict.correct and not fault for reward, fault in rewards]
    wrong = next((i for i, right in enumerate(rights) if not right), None)
    unpaid = ""
    if wrong is not None:
        reward, fault = rewards[wrong]
        reason = fault or (reward.strict.reason if reward.strict else "not judged")
        unpaid = f"{problems[wrong].id}, gold {problems[wrong].gold!r}: {reason}"
    return rights, unpaid, sum(bool(fault) for _, fault in rewards)


def _unearned(problems: Sequence[Problem], golds: Sequence[str], written: str) -> dict[str, list[str]]:
    """Responses that solve nothing, for each problem."""
    n = len(problems)
    common = Counter(golds).most_common(1)[0][0]
    many = " ".join(written.format(number) for number in range(101))
    return {
        f"the constant {common}": [written.format(common)] * n,
        "another problem's gold": [
            written.format(golds[(i + 1) % n] if golds[(i + 1) % n] != golds[i] else "none") for i in range(n)
        ],
        "all numbers to 100": [many] * n,
        "the question": [p.question for p in problems],
        "an empty answer": [written.format("")] * n,
        "nothing": [""] * n,
    }
