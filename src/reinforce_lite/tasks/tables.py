"""Rows of somebody's table to number problems, with one report of everything that is wrong in them.

What `jsonl`, `hub` and `gsm8k` share: which values are accepted, how a part is held out. Answers
that are not one number are left to a task of the user's own, which brings its own reward.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from reinforce_lite.errors import UsageError
from reinforce_lite.tasks.base import NumberTask, normalized
from reinforce_lite.tasks.grading import SHOWN, parse_number
from reinforce_lite.types import Problem
from reinforce_lite.utils.seeding import hash_fraction

COLUMNS = ("question", "answer", "solution", "id")
REPORTED = 10  # bad rows named in one report
VALIDATION = 0.06  # of train, where only the test part is given
HELD_OUT = 0.1  # of train, for each part, where both or the test part are missing


class BadRow(Exception):
    """Why a row can't be used, and what would mend it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as they were found."""

    name: str
    """For messages: a file or a split."""
    stem: str
    """Begins the ids of rows that bring none."""
    rows: Iterable[tuple[int, Any]]
    """Each with its number; a row that can't be read is the BadRow that says why."""
    unit: str = "line"
    """What the number counts."""


def read_problems(table: Table, columns: Mapping[str, str]) -> tuple[Problem, ...]:
    """The table's problems in their order, each question once; raises one UsageError for all bad rows."""
    check_columns(columns)
    found: dict[str, tuple[int, Problem]] = {}
    ids: dict[str, int] = {}
    bad: dict[int, BadRow] = {}
    for number, row in table.rows:
        try:
            problem = _problem(row, columns, table.stem)
            before = found.get(normalized(problem.question))
            if before is None:
                _claim(problem.id, number, ids)
                found[normalized(problem.question)] = number, problem
            else:
                _check_equal(problem, before[1], before[0], table.unit)
        except BadRow as why:
            bad[number] = why
    if bad:
        raise _report(table, bad)
    if not found:
        raise UsageError(f"{table.name} holds no problems", "each row is one question with its answer")
    return tuple(problem for _, problem in found.values())


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuse a column that we would never read."""
    for key in columns:
        if key not in COLUMNS:
            near = get_close_matches(key, COLUMNS, n=1)
            known = f"known are {', '.join(COLUMNS)}"
            raise UsageError(
                f"task.columns: there is no key {key!r}", f"did you mean {near[0]!r}?" if near else known
            )


def split_train(
    train: tuple[Problem, ...],
    validation: tuple[Problem, ...] = (),
    test: tuple[Problem, ...] = (),
    *,
    seed: int,
) -> NumberTask:
    """A task of the parts given; a part that is missing is held out of train.

    A hash of the question decides, so a problem stays in its part when others come or go.
    """
    for_test = 0.0 if test else HELD_OUT
    for_validation = 0.0 if validation else VALIDATION if test else HELD_OUT
    places = [(hash_fraction(f"held-out/{seed}/{normalized(p.question)}"), p) for p in train]
    return NumberTask(
        train=tuple(p for place, p in places if place >= for_test + for_validation),
        validation=validation
        or tuple(p for place, p in places if for_test <= place < for_test + for_validation),
        test=test or tuple(p for place, p in places if place < for_test),
    )


def _problem(row: Any, columns: Mapping[str, str], stem: str) -> Problem:
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, Mapping):
        raise BadRow("not an object", 'a row is an object like {"question": "6 * 12?", "answer": "72"}')
    question = _text(row, columns.get("question", "question"))
    answer = _text(row, columns.get("answer", "answer"), number=True)
    steps, _, gold = answer.rpartition("####")  # GSM8K: the steps, then the number
    gold = gold.strip()
    if parse_number(gold) is None:
        raise BadRow(
            f"answer {gold[:SHOWN]!r} is not one number",
            "other answers need a task of your own: --task.name ./my_task.py",
        )
    return Problem(
        id=_id(row, columns) or f"{stem}-{short_hash(normalized(question))}",
        question=question,
        gold=gold,
        solution=steps.strip() or str(row.get(columns.get("solution", "solution")) or ""),
    )


def _text(row: Mapping[str, Any], column: str, number: bool = False) -> str:
    value = row.get(column)
    if value is None:
        raise BadRow(
            f"{column!r} is null" if column in row else f"no {column!r}",
            f"it has {', '.join(map(repr, row)) or 'nothing'}; name yours under [task]: "
            'columns = {question = "…", answer = "…"}',
        )
    if number and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadRow(f"{column!r} is not text", f"{column!r} must be text{' or a number' if number else ''}")
    if not value.strip():
        raise BadRow(f"{column!r} is blank", "fill it in, or remove the row")
    if any("\ud800" <= c <= "\udfff" for c in value):  # JSON can say it, UTF-8 and tokenizers can't
        raise BadRow(f"{column!r} holds half a character", "a \\ud… escape needs its other half")
    return value.strip()


def _id(row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    if "id" in columns and row.get(columns["id"]) is None:
        raise BadRow(f"no {columns['id']!r}", "fill it in, or leave the id column out")
    value = row.get(columns.get("id", "id"))
    return "" if value is None else str(value)


def _claim(name: str, number: int, ids: dict[str, int]) -> None:
    first = ids.setdefault(name, number)
    if first != number:
        raise BadRow(f"the id {name!r} again, first used on {first}", "give each problem an id of its own")


def _check_equal(problem: Problem, first: Problem, number: int, unit: str) -> None:
    if parse_number(problem.gold) != parse_number(first.gold):
        raise BadRow(
            f"the question of {unit} {number} with another answer",
            "keep the right one of two answers to a question",
        )


def _report(table: Table, bad: Mapping[int, BadRow]) -> UsageError:
    first = [f"{table.unit} {number} ({why.reason})" for number, why in list(bad.items())[:REPORTED]]
    more = f" and {len(bad) - REPORTED} more" if len(bad) > REPORTED else ""
    count = f"1 bad {table.unit}" if len(bad) == 1 else f"{len(bad)} bad {table.unit}s"
    remedies: Sequence[str] = list(dict.fromkeys(why.remedy for why in bad.values()))
    return UsageError(f"{table.name}: {count}: {', '.join(first)}{more}", "; ".join(remedies[:3]))


def short_hash(text: str) -> str:
    """12 hex digits of a text, for ids: the same on every machine."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
