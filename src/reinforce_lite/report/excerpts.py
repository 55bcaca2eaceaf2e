"""Excerpts: the completions with a reflection word that are most worth reading, collected in one pass.

Best first: those that may have corrected themselves, because another number appears before the word and the
right answer after it; then other right ones; then a few wrong ones, since many are wrong.
"""

import heapq

from reinforce_lite.errors import UsageError
from reinforce_lite.evaluation.reflection import PLAIN, keyword_pattern
from reinforce_lite.report import serialize
from reinforce_lite.runlog.records import Record, hits
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
        if not hits(line) or line.get("fault"):
            return
        self.n_hits += 1
        heap, shown = (self.right, MAX_RIGHT) if line["strict"] else (self.wrong, MAX_WRONG)
        heapq.heappush(heap, (KINDS.index(_kind(line)), line["step"], self.n_hits, line))
        if len(heap) > 4 * shown:
            heapq.heappop(heap)

    def select(self) -> list[Record]:
        """The excerpts to show, best first: right ones, then wrong ones, each at most one a problem."""
        return _one_per_problem(self.right, MAX_RIGHT) + _one_per_problem(self.wrong, MAX_WRONG)


def _kind(line: Record) -> str:
    """Corrected if the line is right, and what is before its first hit is wrong by the lenient verdict."""
    if not line["strict"]:
        return "wrong"
    try:
        before = grade(line["completion"][: _first_hit(line)], line["gold"], mode="lenient")
    except UsageError:  # the gold is not a number, so a correction can't be detected
        return "right"
    return "right" if before.answer is None or before.correct else "corrected"


def _first_hit(line: Record) -> int:
    """Where the first hit starts in the completion; 0 if it is only in the response's prefill."""
    words = {word for words in hits(line).values() for word in words}
    longest_first = sorted(words, key=len, reverse=True)
    match = keyword_pattern(longest_first).search(line["completion"].translate(PLAIN))
    return match.start() if match else 0


def _one_per_problem(candidates: list[Candidate], limit: int) -> list[Record]:
    excerpts: dict[str, Record] = {}
    for rank, _, _, line in sorted(candidates, key=lambda c: c[:3], reverse=True):
        excerpts.setdefault(line["problem_id"], _excerpt(line, rank))
    return list(excerpts.values())[:limit]


def _excerpt(line: Record, rank: int) -> Record:
    """The text around the first hit, with its question, extracted answer and verdict."""
    text, hit = line["completion"], _first_hit(line)
    start, end = max(0, hit - CHARS_BEFORE), min(len(text), hit + CHARS_AFTER)
    part = ("… " if start else "") + text[start:end] + (" …" if end < len(text) else "")
    return serialize.question(line) | {
        "step": line["step"],
        "split": line.get("split", "train"),
        "extracted": serialize.text(line["answer"]),
        "strict": line["strict"],
        "text": part,
        "hits": serialize.unique_hits(line),
        "kind": KINDS[rank],
    }
