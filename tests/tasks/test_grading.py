"""Verdicts by hand; then what must hold for any text."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforce_lite.errors import UsageError
from reinforce_lite.tasks.grading import extract_answer, find_answer_blocks, grade, is_number, parse_number


def strict(text: str, gold: str = "72") -> bool:
    return grade(text, gold, mode="strict").correct


def block(text: str) -> str:
    return f"<think>some steps</think>\n<answer>{text}</answer>"


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("72", "72", True),
        ("72.", "72", True),
        ("$72", "72", True),
        ("72.00", "72", True),
        (" 72 eggs", "72", True),
        ("1,234", "1234", True),
        ("1234", "1,234", True),
        ("-7", "-7", True),
        ("−7", "-7", True),
        ("-7", "7", False),
        ("−7", "7", False),
        ("7", "-7", False),
        ("-$7", "-7", True),
        ("$-7", "-7", True),
        ("1/2", "0.5", True),
        (".5", "0.5", True),
        ("1/0", "0", False),
        ("50%", "50", True),
        ("7.2e1", "72", True),
        ("", "72", False),
        ("  \n", "72", False),
        ("NaN", "72", False),
        ("inf", "72", False),
        ("٧٢", "72", False),
        ("72²", "72", False),
        ("7２", "7", False),
        ("71 or 72", "72", False),
        ("71-72", "72", False),
        ("8 * 9 = 72", "72", False),
        ("7,2", "72", False),
        ("72,", "72", True),
        ("1,2345", "12345", False),
        ("71", "72", False),
    ],
)
def test_strict_reads_one_number_from_a_block(text: str, gold: str, right: bool) -> None:
    assert grade(block(text), gold, mode="strict").correct is right


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("<answer>71</answer><answer>72</answer>", False),
        ("<answer>72</answer><answer>71</answer>", False),
        ("<answer>72</answer> so <answer>72.0</answer>", True),
        ("<answer>72</answer><answer></answer>", False),
        ("<think><answer>72</answer></think>", False),
        ("<think><answer>71</answer></think><answer>72</answer>", True),
        ("<think>never closed <answer>72</answer>", False),
        ("<think>a</think><think>b</think><answer>72</answer>", True),
        ("<answer>72</answer> and 5 more words about 99 things", True),
        ("<answer>72</answer><answer>73", True),
        ("<answer>72", False),
        ("72</answer>", False),
        ("72", False),
        ("<answer>7<think>2</think></answer>", False),
        ("<answer><think>a</think>72</answer>", False),
        ("<think>a<answer>7</think>2</answer>", False),
        ("<answer>71<answer>72</answer>", False),
    ],
)
def test_strict_wants_one_answer_outside_the_thinking(response: str, right: bool) -> None:
    assert strict(response) is right


def test_strict_counts_the_prefill() -> None:
    """With a think tag opened by the prefill, a block before its end is thinking."""
    prefill, completion = "Let me think step by step.\n<think>", "72 <answer>72</answer>"
    assert strict(completion)
    assert not strict(prefill + completion)
    assert strict(prefill + completion + "</think><answer>72</answer>")


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (block("72"), "right"),
        (block("71"), "another number"),
        ("no tags, 72", "no answer block outside the thinking"),
        ("<think><answer>72</answer></think>", "answer block only inside the thinking"),
        ("<answer>72", "answer block not closed"),
        (block(" "), "empty answer block"),
        (block("many"), "no number in the answer block"),
        (block("7 2"), "more than one number in the answer block"),
        (block("٧٢"), "digits that are not plain 0-9"),
        (block("9" * 2000), "a number that can't be read"),
        (block("71") + block("72"), "two different answer blocks"),
    ],
)
def test_strict_gives_a_reason(response: str, reason: str) -> None:
    assert grade(response, "72", mode="strict").reason == reason


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("so 8 * 9 = 72", "72", True),
        ("so 8 * 9 = 72. Done", "72", True),
        ("72 and then 5", "5", False),
        ("80-72", "72", True),
        ("the total is -72", "-72", False),
        ("choose from 70,71,72", "70,71,72", True),
        ("<think>72", "72", True),
        ("٧٢", None, False),
        ("none", None, False),
        ("x" + "9" * 5000, "9" * 80, False),
    ],
)
def test_lenient_reads_the_last_number(response: str, answer: str | None, right: bool) -> None:
    verdict = grade(response, "72", mode="lenient")
    assert (verdict.correct, verdict.answer) == (right, answer)


def test_grade_refuses_a_gold_that_is_not_one_number() -> None:
    for gold in ("", "many", "1 or 2", "NaN"):
        with pytest.raises(UsageError, match="not one number"):
            grade(block("72"), gold, mode="strict")
    assert grade(block("72"), 72, mode="strict").correct
    assert grade(block("72"), 72.0, mode="lenient").correct
    with pytest.raises(ValueError, match="mode"):
        grade("", "1", mode="loose")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" * 130_000,
        "<answer>1</answer>" * 60_000,
        "<think>" * 150_000,
        "<" * 1_000_000,
        block("9" * 1_000_000),
        block("1e999999999"),
        block("1e-999999999"),
        block("234," * 250_000 + "2345"),
        block("1/" * 500_000),
        block("-" * 1_000_000),
        block("." * 1_000_000),
        block("1" + "e1" * 500_000),
    ],
    ids=range(12),
)
@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_grade_takes_linear_time(text: str, mode: str) -> None:
    """Quadratic time would take minutes here, so a generous limit is not a benchmark."""
    start = time.perf_counter()
    assert not grade(text, "72", mode=mode).correct  # type: ignore[arg-type]
    assert time.perf_counter() - start < 5


@given(st.text(alphabet="<>/answerthink 0123456789.,-−$%eE²٧\n", max_size=200))
def test_grade_accepts_any_text(text: str) -> None:
    for mode in ("strict", "lenient"):
        verdict = grade(text, "72", mode=mode)
        assert verdict.correct == (verdict.reason == "right")


@given(st.fractions(max_denominator=10**6))
def test_parse_number_reads_its_own_text(value: Fraction) -> None:
    assert parse_number(str(value)) == value
    assert grade(block(str(value)), str(value), mode="strict").correct
    assert not grade(block(str(value + 1)), str(value), mode="strict").correct


@given(st.integers(-(10**30), 10**30))
def test_parse_number_reads_thousands_separators(value: int) -> None:
    assert parse_number(f"{value:,}") == value


def test_extract_answer_is_the_text_of_all_blocks() -> None:
    assert extract_answer("<answer> Paris </answer><answer>Paris</answer>") == ("Paris", "")
    assert extract_answer("<answer>Paris</answer><answer>Rome</answer>") == (
        None,
        "two different answer blocks",
    )
    assert extract_answer("Paris")[0] is None
    assert find_answer_blocks("<answer>a</answer>b<answer>c").texts == ["a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("72", True),
        (" -7 ", True),
        ("1,234", True),
        ("1/2", True),
        ("$0.50", True),
        ("72 eggs", False),
        ("A2", False),
        ("1,23", False),  # misplaced comma
        ("3 or 4", False),
        ("[72]", False),
        ("٧٢", False),
        ("1e999999999", False),
        ("", False),
    ],
)
def test_is_number(text: str, expected: bool) -> None:
    assert is_number(text) == expected
