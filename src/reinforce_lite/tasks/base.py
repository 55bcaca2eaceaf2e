"""What a task is: where problems come from, and what a response to one is worth."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reinforce_lite.tasks.grading import grade
from reinforce_lite.types import AnswerFormat, Problem, Reward, Split

# No sign that could be an operator counts as punctuation: "3 - 4" and "3 + 4" are two questions.
_SPELLING = re.compile(r"(?P<number>\d+(?:,\d{3})*(?:\.\d+)?)|[.,;:!?'\"’‘“”…]")


class Task(Protocol):
    """Problems in three disjoint splits, and a reward.

    A Python module with these two functions is a task too: see `tasks/python_file.py`.
    """

    def problems(self, split: Split) -> Sequence[Problem]:
        """The same problems in the same order at every call; ids are unique over all splits."""
        ...

    def reward(self, problem: Problem, completion: str) -> float | Reward:
        """What the whole response is worth: `completion` includes the prefill."""
        ...


@dataclass(frozen=True, slots=True)
class NumberTask:
    """Problems in memory whose golds are numbers."""

    train: tuple[Problem, ...]
    validation: tuple[Problem, ...]
    test: tuple[Problem, ...]
    answer_format: AnswerFormat = "tags"

    def problems(self, split: Split) -> Sequence[Problem]:
        """See `Task`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def reward(self, problem: Problem, completion: str) -> Reward:
        """See `Task`."""
        return number_reward(problem, completion, self.answer_format)


def number_reward(problem: Problem, completion: str, answer_format: AnswerFormat = "tags") -> Reward:
    """1 for a right final number, 0 otherwise, with the strict and the lenient verdict.

    Raises UsageError when the problem's gold is not a number and nothing else.
    """
    strict = grade(completion, problem.gold, mode="strict", answer_format=answer_format)
    lenient = grade(completion, problem.gold, mode="lenient", answer_format=answer_format)
    return Reward(float(strict.correct), strict, lenient)


def find_defect(problem: object, texts: Sequence[str]) -> str:
    """Why this is no problem whose fields `texts` are text; empty if it is one."""
    if not isinstance(problem, Problem):
        return f"is of type {type(problem).__name__}, not Problem"
    for name in texts:
        value = getattr(problem, name)
        if not isinstance(value, str):
            return f"has its {name} of type {type(value).__name__}, not text"
    return ""


def normalize_question(question: str) -> str:
    """The question with single spaces: two texts that differ in whitespace alone are one question."""
    return " ".join(question.split())


def loose_question(question: str) -> str:
    """The question without case, punctuation and the spelling of numbers.

    >>> loose_question("Ann's 1,000 eggs cost $2.50. Why?"), loose_question("ANN’S 1000 eggs cost $2.5")
    ('ann s 1000 eggs cost $2.5 why', 'ann s 1000 eggs cost $2.5')
    """
    return normalize_question(_SPELLING.sub(_plain_spelling, question.casefold()))


def _plain_spelling(match: re.Match[str]) -> str:
    if not match["number"]:
        return " "
    integer, point, decimals = match["number"].replace(",", "").partition(".")
    return integer + (point + decimals).rstrip("0").rstrip(".")


def hash_info(info: Mapping[str, Any]) -> str:
    """A SHA-256 of a problem's `info`; empty if there is none, or if it can't be written as JSON."""
    try:
        return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest() if info else ""
    except (TypeError, ValueError, RecursionError):
        return ""


def short_hash(text: str) -> str:
    """12 hex digits of a text, for ids; the same on every machine."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=6).hexdigest()
