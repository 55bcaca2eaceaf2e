"""The answers with a reflection word that a person should read, found while all of them pass by once.

Best first: right after another number stood before the word, which may be a corrected mind; then right
at all; then some that are wrong, as many are.
"""

import heapq

from reinforce_lite.errors import UsageError
from reinforce_lite.evaluation import reflection
from reinforce_lite.evaluation.reflection import keyword_pattern
from reinforce_lite.report import serialize
from reinforce_lite.runlog.run import Line
from reinforce_lite.tasks.grading import grade

BEST, WRONG = 12, 4  # shown
BEFORE, AFTER = 240, 420  # characters around the first hit
KINDS = ("wrong", "right", "corrected")
"""By rank."""

Kept = tuple[int, int, int, Line]
"""Rank, step, how many had passed before, and the line."""


class Excerpts:
    """The most telling answers with a hit, kept while all answers pass by."""

    def __init__(self) -> None:
        self.best: list[Kept] = []
        self.wrong: list[Kept] = []
        self.passed = 0

    def add(self, line: Line) -> None:
        if not line.get("reflection"):
            return
        self.passed += 1
        if line["strict"]:
            rank = 2 if _another_number_before(line) else 1
            self._keep(self.best, BEST * 4, rank, line)
        else:
            self._keep(self.wrong, WRONG * 4, 0, line)

    def _keep(self, kept: list[Kept], most: int, rank: int, line: Line) -> None:
        heapq.heappush(kept, (rank, line["step"], self.passed, line))
        if len(kept) > most:
            heapq.heappop(kept)

    def chosen(self) -> list[Line]:
        """Best first: right after another number stood before the hit, right, then some that are wrong."""
        return _one_a_problem(self.best, BEST) + _one_a_problem(self.wrong, WRONG)


def _another_number_before(line: Line) -> bool:
    """Whether the last number before the first hit differs from the gold: the answer changed its mind."""
    at = _first_hit(line)
    if at is None:
        return False
    try:
        before = grade(line["completion"][:at], line["gold"], mode="lenient")
    except UsageError:  # the gold is no number: whether a mind was changed can't be told
        return False
    return before.answer is not None and not before.correct


def _first_hit(line: Line) -> int | None:
    """Where the completion's first hit begins; None when it stands in the turn that was begun for it."""
    words = {word for found in line["reflection"].values() for word in found}
    ordered = sorted(words, key=len, reverse=True)
    found = keyword_pattern(ordered).search(line["completion"].translate(reflection.PLAIN))
    return found.start() if found else None


def _one_a_problem(kept: list[Kept], most: int) -> list[Line]:
    chosen: dict[str, Line] = {}
    for rank, _, _, line in sorted(kept, key=lambda k: k[:3], reverse=True):
        chosen.setdefault(line["problem_id"], _excerpt(line, rank))
    return list(chosen.values())[:most]


def _excerpt(line: Line, rank: int) -> Line:
    """The text around the first hit, and what stands around it."""
    text, at = line["completion"], _first_hit(line) or 0
    start, end = max(0, at - BEFORE), min(len(text), at + AFTER)
    part = ("… " if start else "") + text[start:end] + (" …" if end < len(text) else "")
    return serialize.question(line) | {
        "step": line["step"],
        "split": line.get("split", "train"),
        "answer": serialize.text(line["answer"]),
        "strict": line["strict"],
        "text": part,
        "hits": serialize.hits(line),
        "kind": KINDS[rank],
    }
