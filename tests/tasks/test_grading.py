"""Verdicts by hand in each answer format; then what must hold for any text."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforce_lite.errors import UsageError
from reinforce_lite.tasks.grading import extract_answer, grade
from reinforce_lite.types import AnswerFormat

FORMATS: tuple[AnswerFormat, ...] = ("tags", "boxed", "hash")


def strict(text: str, gold: str = "72", answer_format: AnswerFormat = "tags") -> bool:
    return grade(text, gold, mode="strict", answer_format=answer_format).correct


def lenient(text: str, gold: str = "72", answer_format: AnswerFormat = "tags") -> bool:
    return grade(text, gold, mode="lenient", answer_format=answer_format).correct


def block(text: str) -> str:
    return f"<think>some steps</think>\n<answer>{text}</answer>"


WRITE: dict[AnswerFormat, Callable[[str], str]] = {
    "tags": lambda text: f"<answer>{text}</answer>",
    "boxed": lambda text: f"\\boxed{{{text}}}",
    "hash": lambda text: f"\n#### {text}\n",
}
"""An answer in each format."""


@pytest.mark.case(24)
@pytest.mark.parametrize("answer_format", FORMATS)
@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("72", "72", True),
        ("72.", "72", True),
        ("$72", "72", True),
        ("72.00", "72", True),
        (" 72 eggs", "72", True),
        ("**72**", "72", True),
        (r"\boxed{72}", "72", True),
        (r"\mathbf{72}", "72", True),
        (r"\textbf{72}", "72", True),
        ("72 (thousand)", "72", False),
        ("72 m²", "72", True),
        ("Rs.72", "72", True),
        ("1,234", "1234", True),
        ("1\u00a0234", "1234", True),
        ("1234", "1,234", True),
        ("-7", "-7", True),
        ("−7", "-7", True),
        ("- 7", "-7", True),
        (r"-\$7", "-7", True),
        ("-$7", "-7", True),
        ("$-7", "-7", True),
        ("-7", "7", False),
        ("−7", "7", False),
        ("- 7", "7", False),
        (r"-\$7", "7", False),
        ("–7", "7", False),
        ("–7", "-7", False),
        ("minus 7", "7", False),
        ("minus 7", "-7", False),
        ("7", "-7", False),
        ("1/2", "0.5", True),
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac12", "0.5", True),
        (r"\frac12", "12", False),
        ("1/2", r"\frac{1}{2}", True),
        ("0.5", r"\frac12", True),
        (".5", "0.5", True),
        ("50%", "50", True),
        ("7.2e1", "72", True),
        ("360/5", "72", False),
        (r"\frac{360}{5}", "72", False),
        ("360/5", "360/5", True),
        (r"\sqrt{72}", "72", False),
        (r"72\pi", "72", False),
        ("x < 72", "72", False),
        ("72 million", "72", False),
        ("0,125", "125", False),
        ("0,5", "5", False),
        ("1/0", "0", False),
        ("", "72", False),
        ("NaN", "72", False),
        ("inf", "72", False),
        ("٧٢", "72", False),
        ("72²", "72", False),
        ("7２", "7", False),
        ("71 or 72", "72", False),
        ("71-72", "72", False),
        ("8 * 9 = 72", "72", False),
        ("1,2345", "12345", False),
        ("71", "72", False),
        ("0.33333", "0.333333", False),
        ("0.333332", "0.333333", True),  # six decimals: itself rounded
        ("0.333331", "0.333333", False),
        ("1/3", "0.333333", True),
        ("0.33334", "0.33333", False),  # five: exact
    ],
)
def test_strict_reads_one_number_from_an_answer(
    text: str, gold: str, right: bool, answer_format: AnswerFormat
) -> None:
    assert strict(WRITE[answer_format](text), gold, answer_format) is right


@pytest.mark.case(24)
@pytest.mark.parametrize("answer_format", FORMATS)
@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("{71}{72}", False),
        ("{72}{71}", False),
        ("{72} so {72.0}", True),
        ("{}{72}", True),
        ("{72}{ }", True),
        ("{}", False),
        ("<think>{72}</think>", False),
        ("<think>{71}</think>{72}", True),
        ("<think>never closed {72}", False),
        ("<think>a</think><think>b</think>{72}", True),
        ("</think>{72}", True),
        ("{72}{144/2}", False),
        ("{144/2}{72}", False),
        ("{72} and 5 more words about 99 things", True),
        ("72", False),
    ],
)
def test_strict_wants_one_answer_outside_the_thinking(
    response: str, right: bool, answer_format: AnswerFormat
) -> None:
    written = response
    for text in ("71", "72.0", "72", "144/2", " ", ""):
        written = written.replace(f"{{{text}}}", WRITE[answer_format](text))
    assert strict(written, answer_format=answer_format) is right


@pytest.mark.case(24)
@pytest.mark.parametrize(
    ("answer_format", "response", "right"),
    [
        ("tags", "<answer>72</answer><answer>73", True),
        ("tags", "<answer>72", False),
        ("tags", "72</answer>", False),
        ("tags", "<answer>7<think>2</think></answer>", False),
        ("tags", "<answer><think>a</think>72</answer>", False),
        ("tags", "<think>a<answer>7</think>2</answer>", False),
        ("tags", "<answer>71<answer>72</answer>", False),
        ("tags", r"\boxed{72}", False),
        ("tags", "#### 72", False),
        ("boxed", r"so $\boxed{72}$.", True),
        ("boxed", r"\boxed{\text{$72$ eggs}}", True),
        ("boxed", r"\boxed{\frac{144}{2}}", False),
        ("boxed", r"\boxed{\boxed{72}}", True),
        ("boxed", r"\boxed{{{{{72}}}}}", True),
        ("boxed", r"\boxed{72} and \boxed{7", True),
        ("boxed", r"\boxed{72} and \boxed{7 or \boxed{71}", False),
        ("boxed", r"\boxed{72", False),
        ("boxed", r"-\boxed{72}", False),
        ("boxed", r"\boxed{<think>}72</think>}", False),
        ("boxed", r"\boxed{\{72\}}", False),
        ("boxed", "<answer>72</answer>", False),
        ("hash", "8 * 9 = 72\n#### 72", True),
        ("hash", "#### 72\r\nand so on", True),
        ("hash", "####72", True),
        ("hash", "so\n  #### 72", True),
        ("hash", "**#### 72**", True),
        ("hash", "**#### 71**\n#### 72", False),
        ("hash", "so #### 72", False),
        ("hash", "##### 72", False),
        ("hash", "#### 72\n##### Notes", True),
        ("hash", "#### Step 1\n72\n#### 72", False),
        ("hash", "<answer>72</answer>", False),
    ],
)
def test_strict_knows_the_answers_of_each_format(
    answer_format: AnswerFormat, response: str, right: bool
) -> None:
    assert strict(response, answer_format=answer_format) is right


@pytest.mark.case(24)
@pytest.mark.parametrize("answer_format", FORMATS)
def test_strict_counts_the_prefill(answer_format: AnswerFormat) -> None:
    """With a think tag opened by the prefill, an answer before its end is thinking."""
    prefill, answer = "Let me think step by step.\n<think>", WRITE[answer_format]("72")
    assert strict(answer, answer_format=answer_format)
    assert not strict(prefill + answer, answer_format=answer_format)
    assert strict(f"{prefill}{answer}</think>{answer}", answer_format=answer_format)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (block("72"), "right"),
        (block("71"), "another number"),
        (block("360/5"), "a fraction where the gold is an integer"),
        ("no tags, 72", "no answer block outside the thinking"),
        ("<think><answer>72</answer></think>", "answer block only inside the thinking"),
        ("<answer>72", "answer block not closed"),
        (block(" "), "empty answer block"),
        (block("many"), "no number in the answer block"),
        (block("7 2"), "more than one number in the answer block"),
        (block("٧٢"), "digits that are not plain 0-9 in the answer block"),
        (block("9" * 1100), "a number that can't be read in the answer block"),
        (block("71") + block("72"), "two different answer blocks"),
        ("".join(block(f"72.{'0' * n}1") for n in range(2)), "two different answer blocks"),
        ("".join(block(f"72.{'0' * n}") for n in range(1, 150)), "more than 100 different answer blocks"),
    ],
)
def test_strict_gives_a_reason(response: str, reason: str) -> None:
    assert grade(response, "72", mode="strict").reason == reason


def test_strict_names_the_format_in_its_reason() -> None:
    for answer_format, name in (("boxed", r"\boxed{}"), ("hash", "#### line")):
        for response in ("72", WRITE[answer_format]("many"), f"<think>{WRITE[answer_format]('72')}"):  # type: ignore[index]
            assert name in grade(response, "72", "strict", answer_format).reason  # type: ignore[arg-type]
    assert "not closed" in grade(r"\boxed{72", "72", "strict", "boxed").reason


@pytest.mark.case(24)
@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        # the last answer block, closed or not, thinking included
        ("<answer>72</answer> or rather 71", "72", True),
        ("<answer>72", "72", True),
        ("<think><answer>72</answer> hm, 71", "72", True),
        ("<answer>72</answer><answer>71</answer>", "71", False),
        ("<answer>The answer is 72.</answer>", "72", True),
        (r"<answer>71</answer> \boxed{72}", "71", False),
        # one that holds no readable number is passed over
        (r"<answer>71 or 72</answer> \boxed{72} 5", "72", True),
        (r"<answer></answer> \boxed{72} 5", "72", True),
        # the last box
        (r"\boxed{18} more to reach 72 a month", "18", False),
        (r"\boxed{71} no, \boxed{72} of 99", "72", True),
        ("\\boxed{72}\n#### 71", "72", True),
        (r"\boxed{71} no, \boxed{72", "72", True),
        (r"\boxed{a}, so 72", "72", True),
        # the last line of four hashes
        ("#### 72\nI hope that these 5 steps help", "72", True),
        ("#### Step 1\n8 * 9 = 72", "72", True),
        # the last number
        ("so 8 * 9 = 72", "72", True),
        ("72 and then 5", "5", False),
        ("the total is -72", "-72", False),
        ("choose from 70,71,72", "72", False),
        ("<think>72", "72", True),
        ("٧٢", None, False),
        ("none", None, False),
        (block(r"\sqrt{72}"), "72", False),
        (block(r"72\pi"), "72", False),
        (block("x < 72"), "72", False),
        (block("72 million"), "72", False),
        (block("360/5"), "360/5", False),
        ("x" + "9" * 5000, "9" * 80, False),
    ],
)
def test_lenient_reads_the_first_readable_of_four_places(
    response: str, answer: str | None, right: bool
) -> None:
    verdict = grade(response, "72", mode="lenient")
    assert (verdict.correct, verdict.answer) == (right, answer)


def test_what_is_strict_in_one_format_is_lenient_in_another() -> None:
    for written in FORMATS:
        for asked in FORMATS:
            response = "We have 5 hens." + WRITE[written]("72") + "in 3 weeks"
            assert strict(response, answer_format=asked) is (written == asked)
            assert lenient(response, answer_format=asked)


@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_grade_refuses_a_gold_that_is_not_a_number_and_nothing_else(mode: str) -> None:
    for gold in ("", "many", "1 or 2", "NaN", "72 eggs", r"2\pi", "0,125", float("inf")):
        with pytest.raises(UsageError, match="not a plain number"):
            grade(block("72"), gold, mode=mode)  # type: ignore[arg-type]
    for gold in (72, 72.0, "72", r"\boxed{72}"):
        assert grade(block("72"), gold, mode=mode).correct  # type: ignore[arg-type]


def test_grade_refuses_another_mode_or_format() -> None:
    for mode, answer_format in (("loose", "tags"), ("strict", "xml")):
        with pytest.raises(ValueError, match="mode"):
            grade("", "1", mode, answer_format)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("response", "value"),
    [
        (r"$-\boxed{72}$", "-72"),
        (r"$- \boxed{72}$", "-72"),
        (r"$-\,\boxed{72}$", "-72"),
        (r"$-\$\boxed{72}$", "-72"),
        (r"so -{\boxed{72}}", "-72"),
        (r"x = - \boxed{72}", "-72"),
        (r"\( - \boxed{72} \)", "-72"),
        (r"x =  - \boxed{72}", "-72"),
        (r"x =\; - \boxed{72}", "-72"),
        (r"$$- \boxed{72}$$", "-72"),
        (r"so $3 + 4 = 72$ - \boxed{72}", "72"),
        (r"as $x$ — \boxed{72}", "72"),
        (r"- \boxed{72}", "72"),  # an item of a list
        (r"100 - \boxed{72}", "72"),  # or a difference
        (r"$100 - \boxed{72}$", "72"),
        ("a dash -\n\\boxed{72}", "72"),
        (r"$–\,\boxed{72}$", None),  # a dash that is no minus can't be read
    ],
)
def test_a_minus_before_a_box_is_read_or_refused(response: str, value: str | None) -> None:
    for gold in ("72", "-72"):
        for mode in ("strict", "lenient"):
            assert grade(response, gold, mode, "boxed").correct == (gold == value), (gold, mode)


def test_a_gold_that_is_a_float_is_the_decimal_that_was_meant() -> None:
    assert grade("<answer>0.3</answer>", 0.1 + 0.2, "strict").correct
    assert not grade("<answer>0.30000000000000004</answer>", 0.1 + 0.2, "strict").correct
    assert not grade("<answer>9007199254740990</answer>", 9007199254740991.0, "strict").correct


HOSTILE = [
    *(
        "9",
        "<answer>",
        "<answer>1</answer>",
        "<answer></answer>",
        "\\boxed{",
        "\\boxed{1}",
        "\\boxed{{}}",
        "$- \\boxed{1}",
        "-\\,",
        "{",
    ),
    *(
        "{}",
        "$",
        "####",
        "####\n",
        "#### 1\n",
        " ",
        "-",
        ",",
        "234,",
        ".",
        "1/",
        "e1",
        "\\frac{",
        "\\frac{1}{",
    ),
    *("<think>", "</think>", "<think></think>", "<think>1</think>1", "<think><answer>1</answer></think>1"),
    *("<", "=", "\n", "1 ", "1\n", "word ", "x^2 ", "\\text{", "(a ", "<b>", "\\", "²", "٧", "- ", "minus "),
]


AROUND = ("{}", "1{}2", "<answer>{}", "<answer>{}</answer>", "\\boxed{{{}}}", "#### {}")


def seconds(text: str, answer_format: AnswerFormat) -> float:
    """Processor time of a lenient verdict, which asks strict first."""
    start = time.process_time()
    assert not lenient(text, "72", answer_format)
    return time.process_time() - start


def is_quick(text: str, answer_format: AnswerFormat, limit: float) -> bool:
    """Whether it takes less than `limit` in one of three tries: a pause of the garbage collector may hit one."""
    return any(seconds(text, answer_format) < limit for _ in range(3))


@pytest.mark.case(23)
@pytest.mark.parametrize("answer_format", FORMATS)
@pytest.mark.parametrize("piece", HOSTILE, ids=map(ascii, HOSTILE))
def test_grade_takes_linear_time(piece: str, answer_format: AnswerFormat) -> None:
    """A quadratic pattern takes minutes here. A megabyte takes a tenth of a second at most."""
    assert is_quick(piece * (1_000_000 // len(piece)), answer_format, limit=1)
    for around in AROUND:
        assert is_quick(around.format(piece * (100_000 // len(piece))), answer_format, limit=0.1), around


@pytest.mark.parametrize("answer_format", FORMATS)
@pytest.mark.parametrize(
    "piece", ["<answer>1</answer>", "\\boxed{1}", "####\n", "<think></think>", "\\boxed{{}}"]
)
def test_grade_takes_twice_the_time_for_twice_the_text(piece: str, answer_format: AnswerFormat) -> None:
    text = piece * (400_000 // len(piece))
    short, long = (min(seconds(t, answer_format) for _ in range(3)) for t in (text, text * 2))
    assert long < 2.5 * short + 0.02


@pytest.mark.case(23)
def test_grade_reads_a_megabyte_of_the_same_answer() -> None:
    for answer_format in FORMATS:
        answer = WRITE[answer_format]("72")
        assert strict(answer * (1_000_000 // len(answer)), answer_format=answer_format)


@pytest.mark.case(23)
@pytest.mark.parametrize("text", ["1e999999999", "1e-999999999", "9" * 1_000_000, "1/" + "3" * 1_000_000])
def test_grade_refuses_numbers_that_would_fill_the_memory(text: str) -> None:
    for mode in ("strict", "lenient"):
        assert not grade(block(text), "72", mode).correct


ANSWERS = [WRITE[name](text) for name in FORMATS for text in ("72", "71", "")]
PIECES = st.sampled_from(
    [
        *(
            "<think>",
            "</think>",
            "<answer>",
            "</answer>",
            "\\boxed{",
            "}",
            "{",
            "\n#### ",
            "\n",
            " ",
            ". ",
            "-",
            "–",
        ),
        *(
            "72",
            "71",
            "72.0",
            "1,234",
            "72 eggs",
            "$72$",
            r"\frac{144}{2}",
            "-72",
            "the answer is ",
            " = ",
            "٧٢",
        ),
        *("million", "x", "²", "/", ",", "%", "**", *ANSWERS),
    ]
)
RESPONSES = st.lists(PIECES, max_size=12).map("".join)


@pytest.mark.parametrize(
    ("answer_format", "response"),
    [
        ("tags", "<answer>72</answer><answer>71"),
        ("tags", "<answer>72</answer><think><answer>71</answer></think>"),
        ("boxed", r"\boxed{72} <answer>71</answer>"),
        ("hash", "#### 72\n<answer>71"),
    ],
)
def test_lenient_is_right_where_only_strict_reads_the_right_number(
    answer_format: AnswerFormat, response: str
) -> None:
    assert strict(response, answer_format=answer_format)
    assert lenient(response, answer_format=answer_format)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", *ANSWERS]), max_size=5).map("".join) | RESPONSES,
    st.sampled_from(FORMATS),
    st.sampled_from(["72", "71", "-72", "1234", "0.5"]),
)
def test_strict_right_implies_lenient_right(response: str, answer_format: AnswerFormat, gold: str) -> None:
    assert lenient(response, gold, answer_format) or not strict(response, gold, answer_format)


@given(RESPONSES | st.text(max_size=200), st.sampled_from(FORMATS))
def test_grade_accepts_any_text(text: str, answer_format: AnswerFormat) -> None:
    for mode in ("strict", "lenient"):
        verdict = grade(text, "72", mode, answer_format)
        assert verdict.correct == (verdict.reason == "right")


@given(st.integers(-(10**30), 10**30), st.sampled_from(FORMATS))
def test_grade_tells_a_number_from_the_next_one(value: int, answer_format: AnswerFormat) -> None:
    response = WRITE[answer_format](str(value))
    assert strict(response, f"{value:,}", answer_format)
    assert not lenient(response, str(value + 1), answer_format)


@pytest.mark.parametrize("answer_format", FORMATS)
def test_extract_answer_is_the_text_of_all_answers(answer_format: AnswerFormat) -> None:
    paris, rome, blank = (WRITE[answer_format](text) for text in (" Paris ", "Rome", " "))
    assert extract_answer(paris + paris, answer_format) == ("Paris", "")
    assert extract_answer(blank + paris + blank, answer_format) == ("Paris", "")
    assert extract_answer(blank, answer_format) == ("", "")
    assert extract_answer(f"<think>{rome}</think>{paris}", answer_format) == ("Paris", "")
    answer, reason = extract_answer(paris + rome, answer_format)
    assert (answer, reason[:13]) == (None, "two different")
    assert extract_answer("Paris", answer_format)[0] is None
