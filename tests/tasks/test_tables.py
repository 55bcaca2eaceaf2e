"""Rows to problems: what a row may be, and the report of bad ones. They are read from JSON lines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tasks import load, load_error, only_problem, sums, write_rows
from reinforce_lite.errors import UsageError
from reinforce_lite.tasks.tables import Table, read_problems
from reinforce_lite.types import Problem

HASH_DIGITS = 12


@pytest.mark.case(18)
@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("72", "72"),
        (72, "72"),
        (72.5, "72.5"),
        (72.0, "72"),
        (0.1 + 0.2, "0.3"),
        (1e22, "1e+22"),
        ("$1,234", "$1,234"),
        ("-7", "-7"),
        ("- 8", "- 8"),
        (r"\frac12", r"\frac12"),
        ("Half of 48 is 24.\n48 + 24 = 72\n#### 72", "72"),
    ],
)
def test_read_problems_accepts_numbers_and_number_texts(tmp_path: Path, answer: Any, gold: str) -> None:
    assert only_problem(tmp_path, {"question": "?", "answer": answer}).gold == gold


def test_read_problems_takes_the_steps_before_the_last_mark_as_solution(tmp_path: Path) -> None:
    row = {"question": " How many? ", "answer": "a #### b\n48 + 24 = 72\n#### 72 "}
    problem = only_problem(tmp_path, row)
    assert (problem.question, problem.gold) == ("How many?", "72")
    assert problem.solution == "a #### b\n48 + 24 = 72"


def test_read_problems_uses_columns_of_other_names(tmp_path: Path) -> None:
    row = {"problem": "How many?", "gold": 3, "how": "1 + 2 = 3", "key": 17, "answer": "not this one"}
    columns = {"question": "problem", "answer": "gold", "solution": "how", "id": "key"}
    assert only_problem(tmp_path, row, columns=columns) == Problem("17", "How many?", "3", "1 + 2 = 3")


def test_read_problems_joins_columns_into_the_question(tmp_path: Path) -> None:
    row = {"Body": " Ana has 3 pens. ", "Question": "How many?", "Answer": 3.0}
    columns = {"question": "{Body} {Question}", "answer": "Answer"}
    assert only_problem(tmp_path, row, columns=columns).question == "Ana has 3 pens. How many?"
    columns["question"] = "Context: {Body}\n{Question}"
    assert only_problem(tmp_path, row, columns=columns).question == "Context: Ana has 3 pens.\nHow many?"
    path = write_rows(tmp_path / "bad.jsonl", [row, row | {"Body": None}, {"Question": "?", "Answer": 1}])
    cause = load_error("jsonl", path=str(path), columns=columns).cause
    assert "line 2 ('Body' is null), line 3 (no 'Body')" in cause


def test_read_problems_takes_braces_in_a_row_as_text(tmp_path: Path) -> None:
    row = {"a": "f = {b}", "b": "?", "answer": 1}
    assert only_problem(tmp_path, row, columns={"question": "{a} {b}"}).question == "f = {b} ?"


@pytest.mark.parametrize(
    ("answer", "gold"), [(np.int64(72), "72"), (np.float32(0.1), "0.1"), (np.float64(-2.5), "-2.5")]
)
def test_read_problems_accepts_numpys_numbers(answer: Any, gold: str) -> None:
    (problem,) = read_problems(Table("t", "t", [(0, {"question": "?", "answer": answer})]), {})
    assert problem.gold == gold
    with pytest.raises(UsageError, match="'answer' is not text"):
        read_problems(Table("t", "t", [(0, {"question": "?", "answer": np.True_})]), {})


def test_read_problems_makes_ids_from_the_id_column_or_a_hash_of_the_question(tmp_path: Path) -> None:
    assert only_problem(tmp_path, {"question": "?", "answer": "1", "id": "a7"}).id == "a7"
    hashed = only_problem(tmp_path, {"question": "?", "answer": "1", "id": None}).id
    assert hashed.startswith("one-")
    assert len(hashed) == len("one-") + HASH_DIGITS
    assert only_problem(tmp_path, {"question": "?", "answer": "2"}).id == hashed
    assert only_problem(tmp_path, {"question": "??", "answer": "1"}).id != hashed


@pytest.mark.case(18)
def test_read_problems_keeps_a_repeated_question_once_and_counts_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, Any] | str] = [
        {"question": "How many eggs?", "answer": "72"},
        "",
        {"question": "How  many eggs? ", "answer": "72.0"},
        {"question": "How many eggs?", "answer": "72"},
    ]
    assert only_problem(tmp_path, *rows).gold == "72"
    assert "one.jsonl: 2 rows" in caplog.text
    assert "line 3" in caplog.text
    caplog.clear()
    assert only_problem(tmp_path, rows[0]).gold == "72"
    assert not caplog.text


BAD_ROWS: list[tuple[Any, str]] = [
    ('{"question": "?", "answer"', "not JSON"),
    ("[" * 100_000, "not JSON"),
    ('{"question": "?", "answer": ' + "9" * 5_000 + "}", "not JSON"),
    ("[1, 2]", "not an object"),
    ('"text"', "not an object"),
    ({"answer": "1"}, "no 'question'"),
    ({"question": "?"}, "no 'answer'"),
    ({"question": None, "answer": "1"}, "'question' is null"),
    ({"question": "?", "answer": None}, "'answer' is null"),
    ({"question": " \n", "answer": "1"}, "'question' is blank"),
    ({"question": "?", "answer": ""}, "'answer' is blank"),
    ({"question": 5, "answer": "1"}, "'question' is not text"),
    ({"question": "?", "answer": True}, "'answer' is not text"),
    ({"question": "?", "answer": [1]}, "'answer' is not text"),
    ({"question": "cut \ud83d", "answer": "1"}, "'question' holds half a character"),
    ({"question": "?", "answer": "blue"}, "answer 'blue' is not a plain number: no number"),
    ({"question": "?", "answer": "3 or 4"}, "answer '3 or 4' is not a plain number: more than one number"),
    ({"question": "?", "answer": "12 ####"}, "answer '' is not a plain number: no number"),
    ({"question": "?", "answer": "72 eggs"}, "answer '72 eggs' is not a plain number: the word 'eggs'"),
    (
        {"question": "?", "answer": r"2\pi"},
        r"answer '2\\pi' is not a plain number: something that may change the number",
    ),
    ({"question": "?", "answer": "1/0"}, "answer '1/0' is not a plain number: a number that can't be read"),
    ({"question": "?", "answer": float("nan")}, "answer 'nan' is not a plain number: no number"),
    ({"question": "?", "answer": float("inf")}, "answer 'inf' is not a plain number: no number"),
]


@pytest.mark.case(18)
@pytest.mark.parametrize(
    ("row", "reason"), BAD_ROWS, ids=[f"{i}-{reason[:20]}" for i, (_, reason) in enumerate(BAD_ROWS)]
)
def test_read_problems_reports_a_bad_line_by_number(tmp_path: Path, row: Any, reason: str) -> None:
    path = write_rows(tmp_path / "bad.jsonl", [*sums(2), "", row, *sums(2, 2)])
    error = load_error("jsonl", path=str(path))
    assert error.cause == f"{path}: 1 bad line: line 4 ({reason})"
    assert error.remedy


@pytest.mark.case(19)
@pytest.mark.case(18)
def test_read_problems_reports_all_bad_lines_together_and_names_ten(tmp_path: Path) -> None:
    rows: list[dict[str, Any] | str] = [*sums(3), *["oops"] * 11, {"question": "?", "answer": "blue"}]
    path = write_rows(tmp_path / "bad.jsonl", rows)
    error = load_error("jsonl", path=str(path))
    first_ten = ", ".join(f"line {n} (not JSON)" for n in range(4, 14))
    assert error.cause == f"{path}: 12 bad lines: {first_ten} and 2 more"
    assert "JSON object" in error.remedy
    assert "my_task.py" in error.remedy  # for the gold that is not a number


@pytest.mark.case(18)
def test_read_problems_refuses_a_question_with_two_golds(tmp_path: Path) -> None:
    rows = [*sums(2), {"question": "How much is 0  and 1?", "answer": "7"}]
    cause = load_error("jsonl", path=str(write_rows(tmp_path / "two.jsonl", rows))).cause
    assert "1 bad line: line 3 (" in cause
    assert "line 1 " in cause


def test_read_problems_counts_rounded_golds_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    golds = ["0.33333", "0.333333", "1/3", "2.6666667"]
    rows = [{"question": f"question {gold}", "answer": gold} for gold in golds]
    load("jsonl", path=str(write_rows(tmp_path / "rounded.jsonl", rows)))
    (record,) = caplog.records
    assert "rounded.jsonl: 2 golds" in record.getMessage()
    assert "0.333333" in record.getMessage()
    caplog.clear()
    load("jsonl", path=str(write_rows(tmp_path / "exact.jsonl", sums(3))))
    assert not caplog.records


def test_read_problems_refuses_an_id_for_two_questions(tmp_path: Path) -> None:
    rows = [{"question": question, "answer": "1", "id": 5} for question in ("a", "b")]
    error = load_error("jsonl", path=str(write_rows(tmp_path / "ids.jsonl", rows)))
    assert error.cause.endswith("line 2 (the id '5' again, first used on line 1)")


def test_read_problems_lists_the_columns_where_one_is_missing(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "cols.jsonl", [{"problem": "?", "gold": "1"}])
    error = load_error("jsonl", path=str(path), columns={"answer": "gold"})
    assert error.cause.endswith("line 1 (no 'question')")
    assert error.remedy.startswith("it has 'problem', 'gold'")
    misspelt = load_error("jsonl", path=str(path), columns={"anser": "gold"})
    assert misspelt.remedy == "did you mean 'answer'?"
    assert "no 'key'" in load_error("jsonl", path=str(write_rows(path, sums(1))), columns={"id": "key"}).cause
