r"""Response to extracted answer to verdict, strict and lenient: exact, and linear in the text's length.

Strict is what training rewards: one or more answers in the task's format, outside the thinking, that are all
the same number, equal to the gold. Lenient asks for no format. A gain in strict alone is format learning, so
both are always reported and never mixed. The formats, and their answers:

    tags   <answer>72</answer>
    boxed  \boxed{72}
    hash   a line #### 72

    >>> grade("<think>8 * 9 = 72</think><answer>$72</answer>", "72", mode="strict")
    Verdict(correct=True, answer='$72', reason='right')
    >>> grade("<answer>71</answer> or <answer>72</answer>", "72", mode="strict").reason
    'two different answer blocks'
    >>> grade("<answer>It is \\boxed{72}", "72", mode="lenient").correct
    True

How a number is read is in `numbers.py` and, for lenient, `running_text.py`.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Literal

from reinforce_lite.errors import UsageError
from reinforce_lite.tasks.numbers import Number, UnreadableError, read_gold, read_number, write_gold
from reinforce_lite.tasks.running_text import read_last_number
from reinforce_lite.types import AnswerFormat, Verdict

MAX_SHOWN = 80  # characters of an extracted answer that a verdict keeps
MAX_SPELLINGS = 100  # different texts of one response's answers that are read
MAX_NESTING = 8  # of braces in a \boxed{}

_NAMES: dict[AnswerFormat, str] = {"tags": "answer block", "boxed": "\\boxed{}", "hash": "#### line"}
OPENINGS: dict[AnswerFormat, str] = {"tags": "<answer>", "boxed": "\\boxed{", "hash": "####"}
"""How an answer begins in each format."""


def _box_pattern() -> re.Pattern[str]:
    """A box, and its content if it closes.

    A pattern can't count braces, so each depth is spelled out. It is possessive, so it takes linear time.
    """
    content = r"(?:[^{}\\]++|\\.)*+"
    for _ in range(MAX_NESTING):
        content = rf"(?:[^{{}}\\]++|\\.|\{{{content}\}})*+"
    return re.compile(rf"\\boxed\{{(?:({content})\}})?+", re.DOTALL)


_BOX = _box_pattern()
_MAX_BEFORE = 20  # characters before a box in which its sign may be
_TIGHT = r"\\[,;:!]|~|\{|\\\$"  # may stand between the sign and the box
_SPACES = r"(?:[^\S\n]|\\[ ,;:!])"
# With a space between them, as in a list or in "5 - \boxed{72}", a dash is a sign only where a number begins:
# after an opening $, a bracket or a relation.
_DASH = re.compile(
    rf"(?:(?P<near>[-−–—])(?:{_TIGHT})*+"
    rf"|(?:(?<![^\s(\[{{=])\$\$?|[=(\[]|\\(?:approx|implies|to)){_SPACES}*+(?P<far>[-−–—])(?:{_TIGHT}|{_SPACES})++)\Z"
)
# An unclosed <think> reaches to the end; a stray </think> is text.
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_HASH_LINE = re.compile(r"^[ \t]*+(?:\*\*)?####(?!#)(.*)", re.MULTILINE)  # indented or bold too


def grade(
    completion: str,
    gold: str | int | float,
    mode: Literal["strict", "lenient"],
    answer_format: AnswerFormat = "tags",
) -> Verdict:
    """Grade a whole response against the gold; `completion` includes the prefill.

    Lenient takes the first of these that holds one readable number: the last answer block, closed or not,
    thinking included; the last \\boxed{}; the last #### line; the last number of the response. What is right
    by strict is right by lenient too, because lenient asks strict first.

    Raises UsageError when `gold` is not a number and nothing else, ValueError for another mode or format.
    """
    if mode not in ("strict", "lenient") or answer_format not in _NAMES:
        raise ValueError(f"no mode {mode!r} or no answer format {answer_format!r}")
    written = write_gold(gold)
    try:
        gold_number = read_gold(written)
    except UnreadableError as error:
        raise UsageError(f"the gold {written[:MAX_SHOWN]!r} is not a plain number: {error}") from None
    strict = _grade_strict(completion, gold_number, answer_format)
    return strict if mode == "strict" or strict.correct else _grade_lenient(completion, gold_number)


def extract_answer(response: str, answer_format: AnswerFormat = "tags") -> tuple[str | None, str]:
    """(extracted answer, ""): the one text that all answers in the format hold; or (None, the reason).

    For tasks with a scorer of their own, whose answers need not be numbers.
    """
    found = None
    for text in _find_answers(response, answer_format):
        if text and found and text != found:
            return None, f"two different {_NAMES[answer_format]}s"
        found = text or found or ""
    return (None, _missing_reason(response, answer_format)) if found is None else (found, "")


def _grade_strict(response: str, gold: Number, answer_format: AnswerFormat) -> Verdict:
    name = _NAMES[answer_format]
    numbers: dict[str, Number] = {}
    found = False
    for text in _find_answers(response, answer_format):
        found = True
        if not text or text in numbers:  # a blank answer is ignored when another is filled
            continue
        try:
            number = read_number(text)
        except UnreadableError as error:
            return Verdict(False, text[:MAX_SHOWN], f"{error} in the {name}")
        if numbers and number.value != next(iter(numbers.values())).value:
            return Verdict(False, text[:MAX_SHOWN], f"two different {name}s")
        numbers[text] = number
        if len(numbers) > MAX_SPELLINGS:
            return Verdict(False, text[:MAX_SHOWN], f"more than {MAX_SPELLINGS} different {name}s")
    if not numbers:
        reason = f"empty {name}" if found else _missing_reason(response, answer_format)
        return Verdict(False, "" if found else None, reason)
    verdicts = [_compare(number, gold, text) for text, number in numbers.items()]
    return next((verdict for verdict in verdicts if not verdict.correct), verdicts[-1])


def _grade_lenient(response: str, gold: Number) -> Verdict:
    for text in _find_last_answers(response):
        with suppress(UnreadableError):
            number = read_number(text)
            return _compare(number, gold, number.text)
    try:
        number = read_last_number(response)
    except UnreadableError as error:
        return Verdict(False, error.text and error.text[:MAX_SHOWN], str(error))
    return _compare(number, gold, number.text)


def _compare(number: Number, gold: Number, text: str) -> Verdict:
    """Equality; a gold with six or more decimals is itself rounded, so its last decimal may differ by one."""
    right = abs(number.value - gold.value) <= (gold.rounded_to or 0)
    # The last step of 360/5 would never be learned if it were paid for.
    undone = number.is_division and not gold.is_division and gold.value.denominator == 1
    reason = "a fraction where the gold is an integer" if undone else "right" if right else "another number"
    return Verdict(right and not undone, text[:MAX_SHOWN], reason)


def _find_answers(response: str, answer_format: AnswerFormat) -> Iterator[str]:
    """The answers in a format outside the thinking, without surrounding whitespace."""
    find, opening = _FINDERS[answer_format], OPENINGS[answer_format]
    parts = (part for part in _THINKING.split(response) if opening in part)
    return (text.strip() for part in parts for text in find(part))


def _missing_reason(response: str, answer_format: AnswerFormat) -> str:
    name, opening = _NAMES[answer_format], OPENINGS[answer_format]
    if answer_format != "hash" and any(opening in part for part in _THINKING.split(response)):
        return f"{name} not closed"
    in_thinking = next(_FINDERS[answer_format](response), None) is not None
    return f"{name} only inside the thinking" if in_thinking else f"no {name} outside the thinking"


def _find_blocks(text: str) -> Iterator[str]:
    end = 0
    while (start := text.find("<answer>", end)) >= 0 and (close := text.find("</answer>", start)) >= 0:
        yield text[start + len("<answer>") : close]
        end = close + len("</answer>")


def _find_boxes(text: str, start: int = 0) -> Iterator[str]:
    """The contents of the outermost boxes from `start` on, each after the dash that is its number's sign.

    A box that does not close reaches to the end; it is ignored if nothing there could have closed it.
    """
    for box in _BOX.finditer(text, start):
        dash = _DASH.search(text, max(0, box.start() - _MAX_BEFORE), box.start())
        sign = (dash["near"] or dash["far"]) if dash else ""
        if box[1] is None:
            rest = text[box.end() :]
            if "}" in rest:
                yield sign + rest
            return
        yield sign + box[1]


def _find_hash_lines(text: str) -> Iterator[str]:
    return (match[1] for match in _HASH_LINE.finditer(text))


def _find_last_answers(text: str) -> Iterator[str]:
    """The last answer of each format, thinking included, the block closed or not."""
    if (start := text.rfind("<answer>")) >= 0:
        yield text[start + len("<answer>") :].partition("</answer>")[0]
    if (start := text.rfind("\\boxed{")) >= 0:
        yield from _find_boxes(text, start)
    yield from _HASH_LINE.findall(text)[-1:]


_FINDERS: dict[AnswerFormat, Callable[[str], Iterator[str]]] = {
    "tags": _find_blocks,
    "boxed": _find_boxes,
    "hash": _find_hash_lines,
}
