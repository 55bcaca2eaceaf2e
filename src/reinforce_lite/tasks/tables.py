"""Table rows to number problems, with one report of everything that is wrong in them.

Shared by `jsonl`, `hub` and `gsm8k`: which values are accepted, and how a split is held out. Golds
that are not a number and nothing else need a task of the user's own, which has its own reward.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from reinforce_lite.errors import UsageError
from reinforce_lite.tasks.base import NumberTask, normalize_question, short_hash
from reinforce_lite.tasks.grading import MAX_SHOWN
from reinforce_lite.tasks.numbers import ROUNDED_DECIMALS, UnreadableError, read_gold, write_gold
from reinforce_lite.types import AnswerFormat, Problem
from reinforce_lite.utils.seeding import hash_fraction
from reinforce_lite.utils.text import did_you_mean

logger = logging.getLogger(__name__)

COLUMNS = ("question", "answer", "solution", "id")
MAX_REPORTED_ROWS = 10
MAX_REPORTED_REMEDIES = 3
VALIDATION_FRACTION = 0.06  # of train, where only the validation split is missing
HELD_OUT_FRACTION = 0.1  # of train, for each missing split, where the test split is missing

_BRACES = re.compile(r"\{([^{}]+)\}")


class BadRowError(Exception):
    """Why a row can't be used, and how to fix it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as read, before any check."""

    name: str
    """For messages: a file or a split."""
    stem: str
    """Prefix of the ids of rows without one."""
    rows: Iterable[tuple[int, Any]]
    """(number, row) pairs; a row that can't be read is the BadRow that says why."""
    unit: str = "line"
    """What the number counts."""


def read_problems(table: Table, columns: Mapping[str, str]) -> tuple[Problem, ...]:
    """The table's problems in their order, each question once; warns of repeated ones.

    `columns` maps names of COLUMNS to the table's own, the question's also to several: "{Body} {Question}".
    Raises one UsageError for all bad rows.
    """
    check_columns(columns)
    by_question: dict[str, tuple[int, Problem]] = {}
    numbers_by_id: dict[str, int] = {}
    bad: dict[int, BadRowError] = {}
    repeated: list[int] = []
    for number, row in table.rows:
        try:
            problem = _parse_row(row, columns, table.stem)
            question = normalize_question(problem.question)
            if question in by_question:
                _check_same_gold(problem, *by_question[question], table.unit)
                repeated.append(number)
            else:
                _check_new_id(problem.id, number, numbers_by_id, table.unit)
                by_question[question] = number, problem
        except BadRowError as error:
            bad[number] = error
    if bad:
        raise _bad_rows_error(table, bad)
    if not by_question:
        raise UsageError(f"{table.name} holds no problems", "each row is one question with its answer")
    if repeated:
        logger.warning(
            "%s: %d rows repeat an earlier question and its answer, and are dropped; the first is %s %d",
            *(table.name, len(repeated), table.unit, repeated[0]),
        )
    problems = tuple(problem for _, problem in by_question.values())
    _warn_of_rounded_golds(table, problems)
    return problems


def _warn_of_rounded_golds(table: Table, problems: Iterable[Problem]) -> None:
    rounded = [p for p in problems if read_gold(p.gold).rounded_to is not None]
    if rounded:
        logger.warning(
            "%s: %d golds have %d or more decimals, the first is %s: an answer may differ by one in the last",
            *(table.name, len(rounded), ROUNDED_DECIMALS, rounded[0].gold),
        )


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuse a key that is never read. Raises UsageError."""
    for key in columns:
        if key not in COLUMNS:
            raise UsageError(
                f"task.columns: there is no key {key!r}",
                did_you_mean(key, COLUMNS, f"known are {', '.join(COLUMNS)}"),
            )


def split_train(
    train: tuple[Problem, ...],
    validation: tuple[Problem, ...] = (),
    test: tuple[Problem, ...] = (),
    *,
    seed: int,
    answer_format: AnswerFormat = "tags",
) -> NumberTask:
    """A task of the given splits; a missing validation or test split is held out of train.

    A hash of the question decides, so a problem stays in its split when other problems come or go.
    """
    test_end = 0.0 if test else HELD_OUT_FRACTION
    validation_end = test_end + (0.0 if validation else VALIDATION_FRACTION if test else HELD_OUT_FRACTION)
    fractions = [(hash_fraction(f"held-out/{seed}/{normalize_question(p.question)}"), p) for p in train]
    return NumberTask(
        train=tuple(p for fraction, p in fractions if fraction >= validation_end),
        validation=validation
        or tuple(p for fraction, p in fractions if test_end <= fraction < validation_end),
        test=test or tuple(p for fraction, p in fractions if fraction < test_end),
        answer_format=answer_format,
    )


def _parse_row(row: Any, columns: Mapping[str, str], stem: str) -> Problem:
    if isinstance(row, BadRowError):
        raise row
    if not isinstance(row, Mapping):
        raise BadRowError("not an object", 'a row is an object like {"question": "6 * 12?", "answer": "72"}')
    question = _read_question(row, columns.get("question", "question"))
    answer = _read_text(row, columns.get("answer", "answer"), allow_number=True)
    steps, _, gold = answer.rpartition("####")  # GSM8K: the steps, then the gold
    gold = gold.strip()
    try:
        read_gold(gold)
    except UnreadableError as error:
        raise BadRowError(
            f"answer {gold[:MAX_SHOWN]!r} is not a plain number: {error}",
            "leave out words and units; other answers need a task of your own: --task.name ./my_task.py",
        ) from None
    return Problem(
        id=_read_id(row, columns) or f"{stem}-{short_hash(normalize_question(question))}",
        question=question,
        gold=gold,
        solution=steps.strip() or str(row.get(columns.get("solution", "solution")) or ""),
    )


def _read_question(row: Mapping[str, Any], columns: str) -> str:
    """The text of a column, or of several where `columns` has their names in braces."""
    if not _BRACES.search(columns):
        return _read_text(row, columns)
    return _BRACES.sub(lambda column: _read_text(row, column[1]), columns)


def _read_text(row: Mapping[str, Any], column: str, allow_number: bool = False) -> str:
    value = row.get(column)
    if value is None:
        raise BadRowError(
            f"{column!r} is null" if column in row else f"no {column!r}",
            f"it has {', '.join(map(repr, row)) or 'nothing'}; name yours under [task]: "
            'columns = {question = "…", answer = "…"}',
        )
    if allow_number and isinstance(value, float):
        return write_gold(value)
    if allow_number and not isinstance(value, bool) and isinstance(value, Real):  # numpy's scalars are Real
        return str(value)
    if not isinstance(value, str):
        kinds = "text or a number" if allow_number else "text"
        raise BadRowError(f"{column!r} is not text", f"{column!r} must be {kinds}")
    if not value.strip():
        raise BadRowError(f"{column!r} is blank", "fill it in, or remove the row")
    if any("\ud800" <= c <= "\udfff" for c in value):  # valid in JSON, not in UTF-8 or for a tokenizer
        raise BadRowError(f"{column!r} holds half a character", "a \\ud… escape needs its other half")
    return value.strip()


def _read_id(row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    value = row.get(columns.get("id", "id"))
    if value is None and "id" in columns:
        raise BadRowError(f"no {columns['id']!r}", "fill it in, or remove id from task.columns")
    return "" if value is None else str(value)


def _check_new_id(row_id: str, number: int, numbers_by_id: dict[str, int], unit: str) -> None:
    first = numbers_by_id.setdefault(row_id, number)
    if first != number:
        raise BadRowError(
            f"the id {row_id!r} again, first used on {unit} {first}", "give each problem an id of its own"
        )


def _check_same_gold(problem: Problem, first_number: int, first: Problem, unit: str) -> None:
    if read_gold(problem.gold).value != read_gold(first.gold).value:
        raise BadRowError(
            f"the question of {unit} {first_number} with another answer",
            "keep the right one of two answers to a question",
        )


def _bad_rows_error(table: Table, bad: Mapping[int, BadRowError]) -> UsageError:
    rows = [f"{table.unit} {number} ({error.reason})" for number, error in bad.items()]
    more = f" and {len(bad) - MAX_REPORTED_ROWS} more" if len(bad) > MAX_REPORTED_ROWS else ""
    count = f"1 bad {table.unit}" if len(bad) == 1 else f"{len(bad)} bad {table.unit}s"
    remedies = list(dict.fromkeys(error.remedy for error in bad.values()))
    return UsageError(
        f"{table.name}: {count}: {', '.join(rows[:MAX_REPORTED_ROWS])}{more}",
        "; ".join(remedies[:MAX_REPORTED_REMEDIES]),
    )
