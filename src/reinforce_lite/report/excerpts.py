"""Excerpts: the completions with a reflection word that are most worth reading, collected in one pass.

Best first: those that may have corrected themselves, because another number appears before the word and the
right answer after it; then other right ones; then a few wrong ones, since many are wrong.
"""

import heapq

from reinforce_lite.errors import UsageError
from reinforce_lite.evaluation.reflection import PLAIN, keyword_pattern
from reinforce_lite.report import serialize
from reinforce_lite.runlog.records import Record
from reinforce_lite.tasks.grading import grade

MAX_RIGHT, MAX_WRONG = 12, 4  # excerpts shown
CHARS_BEFORE, CHARS_AFTER = 240, 420  # shown around the first hit
KINDS = ("wrong", "right", "corrected")
"""By rank."""

Candidate = tuple[int, int, int, Record]
"""Rank, step, order of arrival (so that lines are never compared), line."""


class ExcerptCollector:
    """Keeps the best candidates of all completions that are added."""

    def __init__(self) -> None:
        self.right: list[Candidate] = []
        self.wrong: list[Candidate] = []
        self.n_hits = 0

    def add(self, line: Record) -> None:
        """Consider a line of rollouts.jsonl or eval_rollouts.jsonl."""
        if not line.get("reflection"):
            return
        self.n_hits += 1
        if line["strict"]:
            rank = KINDS.index("corrected" if _wrong_number_before_hit(line) else "right")
            self._push(self.right, MAX_RIGHT * 4, rank, line)
        else:
            self._push(self.wrong, MAX_WRONG * 4, KINDS.index("wrong"), line)

    def _push(self, heap: list[Candidate], capacity: int, rank: int, line: Record) -> None:
        heapq.heappush(heap, (rank, line["step"], self.n_hits, line))
        if len(heap) > capacity:
            heapq.heappop(heap)

    def select(self) -> list[Record]:
        """The excerpts to show, best first: right ones, then wrong ones, each at most one a problem."""
        return _one_per_problem(self.right, MAX_RIGHT) + _one_per_problem(self.wrong, MAX_WRONG)


def _wrong_number_before_hit(line: Record) -> bool:
    """Whether the number before the first hit, by the lenient verdict, differs from the gold."""
    start = _first_hit(line)
    if start is None:
        return False
    try:
        before = grade(line["completion"][:start], line["gold"], mode="lenient")
    except UsageError:  # the gold is not a number, so a correction can't be detected
        return False
    return before.answer is not None and not before.correct


def _first_hit(line: Record) -> int | None:
    """Where the first hit starts in the completion; None if it is only in the response's prefill."""
    words = {word for words in line["reflection"].values() for word in words}
    longest_first = sorted(words, key=len, reverse=True)
    match = keyword_pattern(longest_first).search(line["completion"].translate(PLAIN))
    return match.start() if match else None


def _one_per_problem(candidates: list[Candidate], limit: int) -> list[Record]:
    excerpts: dict[str, Record] = {}
    for rank, _, _, line in sorted(candidates, key=lambda c: c[:3], reverse=True):
        excerpts.setdefault(line["problem_id"], _excerpt(line, rank))
    return list(excerpts.values())[:limit]


def _excerpt(line: Record, rank: int) -> Record:
    """The text around the first hit, with its question, extracted answer and verdict."""
    text, hit = line["completion"], _first_hit(line) or 0
    start, end = max(0, hit - CHARS_BEFORE), min(len(text), hit + CHARS_AFTER)
    part = ("… " if start else "") + text[start:end] + (" …" if end < len(text) else "")
    return serialize.question(line) | {
        "step": line["step"],
        "split": line.get("split", "train"),
        "extracted": serialize.text(line["answer"]),
        "strict": line["strict"],
        "text": part,
        "hits": serialize.hits(line),
        "kind": KINDS[rank],
    }
