"""Response to extracted answer to verdict, strict and lenient: exact, and linear in the text's length.

Strict is what training rewards: one or more <answer> blocks outside the thinking, all holding the
same single number, equal to the gold. Lenient is the last number anywhere in the response. A gain
in strict alone is format learning, so both are always reported and never mixed.

    >>> grade("<think>8 * 9 = 72</think><answer>$72</answer>", "72", mode="strict")
    Verdict(correct=True, answer='$72', reason='right')
    >>> grade("<answer>71</answer> or <answer>72</answer>", "72", mode="strict").reason
    'two different answer blocks'

Omitted on purpose: number words ("seventy-two"), arithmetic inside a block ("8 * 9"), and units
("72 million" reads as 72).
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Literal

from reinforce_lite.errors import UsageError
from reinforce_lite.types import Verdict

MAX_NUMBER_LENGTH = 1_000  # characters; a longer number is refused before any big-integer arithmetic
MAX_EXPONENT = 1_000
MAX_SHOWN = 80  # characters of an extracted answer that a verdict keeps

_TAG = re.compile(r"<(/?)(think|answer)>")

# Everything after the first digit is optional, so a match never backtracks: linear time.
# A sign counts only where it can't be an operator: "10-7" is 10 and 7, "x = -7" is -7.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])[-−+])?[$€£]?"
    r"(?:(?P<integer>[0-9][0-9,]*)(?P<decimals>\.[0-9]+)?|(?P<bare_decimals>\.[0-9]+))"
    r"(?:[eE](?P<exponent>[-+]?[0-9]+))?"
    r"(?:/(?P<denominator>[0-9]+))?"
)
_GROUPED_INTEGER = re.compile(r"[0-9]{1,3}(,[0-9]{3})+")


@dataclass(frozen=True, slots=True)
class AnswerBlocks:
    """The <answer> blocks of a response."""

    texts: list[str]
    """The text of each closed block outside the thinking."""
    in_thinking: bool
    """Whether a block closes inside the thinking."""
    unclosed: bool
    """Whether the last block outside the thinking opens and does not close."""


def grade(completion: str, gold: str | int | float, mode: Literal["strict", "lenient"]) -> Verdict:
    """Grade a whole response against the gold; `completion` includes the prefill.

    Raises UsageError when `gold` is not one number, ValueError for another mode.
    """
    gold_value = parse_number(str(gold))
    if gold_value is None:
        raise UsageError(f"the gold answer {str(gold)[:MAX_SHOWN]!r} is not one number")
    if mode == "strict":
        return _grade_strict(completion, gold_value)
    if mode == "lenient":
        return _grade_lenient(completion, gold_value)
    raise ValueError(f"mode is 'strict' or 'lenient', not {mode!r}")


def _grade_strict(response: str, gold: Fraction) -> Verdict:
    blocks = find_answer_blocks(response)
    if not blocks.texts:
        return Verdict(False, None, _missing_reason(blocks))
    values: set[Fraction] = set()
    for text in blocks.texts:
        value, reason = _read_number(text)
        if value is None:
            return Verdict(False, text.strip()[:MAX_SHOWN], reason)
        values.add(value)
        if len(values) > 1:
            return Verdict(False, text.strip()[:MAX_SHOWN], "two different answer blocks")
    return _compare(values.pop(), gold, blocks.texts[-1])


def _grade_lenient(response: str, gold: Fraction) -> Verdict:
    last = None
    for last in _NUMBER.finditer(response):  # noqa: B007 -- only the last match counts
        pass
    if last is None:
        return Verdict(False, None, "no number")
    value = _value(last)
    if value is None:  # "1,2,3" is a list: its last number counts
        value = _value(_NUMBER.search(last[0].rpartition(",")[2]))
    if value is None:
        return Verdict(False, last[0][:MAX_SHOWN], "a number that can't be read")
    return _compare(value, gold, last[0])


def _compare(value: Fraction, gold: Fraction, text: str) -> Verdict:
    return Verdict(value == gold, text.strip()[:MAX_SHOWN], "right" if value == gold else "another number")


def _missing_reason(blocks: AnswerBlocks) -> str:
    if blocks.unclosed:
        return "answer block not closed"
    if blocks.in_thinking:
        return "answer block only inside the thinking"
    return "no answer block outside the thinking"


def find_answer_blocks(response: str) -> AnswerBlocks:
    """The <answer> blocks of a response, in one pass over its tags.

    An unclosed <think> reaches to the end. A block with a think tag inside does not count.
    """
    texts: list[str] = []
    start: int | None = None
    thinking = in_thinking = False
    for tag in _TAG.finditer(response):
        closes, name = tag[1] == "/", tag[2]
        if name == "think":
            if thinking == closes:  # a stray </think>, or a <think> inside a <think>, changes nothing
                thinking, start = not closes, None
        elif not closes:
            start = tag.end() if start is None else start
        elif start is not None:
            if thinking:
                in_thinking = True
            else:
                texts.append(response[start : tag.start()])
            start = None
    return AnswerBlocks(texts, in_thinking, unclosed=start is not None and not thinking)


def extract_answer(response: str) -> tuple[str | None, str]:
    """(extracted answer, ""): the one text that all answer blocks hold; or (None, the reason).

    For tasks with a scorer of their own, whose answers need not be numbers.
    """
    blocks = find_answer_blocks(response)
    if not blocks.texts:
        return None, _missing_reason(blocks)
    texts = {text.strip() for text in blocks.texts}
    if len(texts) > 1:
        return None, "two different answer blocks"
    return texts.pop(), ""


def parse_number(text: str) -> Fraction | None:
    """The one number that a text holds, exactly; None when it holds none, several or an unreadable one.

    >>> [str(parse_number(t)) for t in ("1,234", "72 eggs", "−7", "1/2", "50%", "3 or 4")]
    ['1234', '72', '-7', '1/2', '50', 'None']
    """
    return _read_number(text)[0]


def is_number(text: str) -> bool:
    """Whether a text is one readable number and nothing else.

    >>> [is_number(t) for t in ("1,234", " -7 ", "$0.50", "72 eggs", "3 or 4", "")]
    [True, True, True, False, False, False]
    """
    return _NUMBER.fullmatch(text.strip()) is not None and parse_number(text) is not None


def _read_number(text: str) -> tuple[Fraction | None, str]:
    """(the one number in a block's text, ""), or (None, the reason)."""
    if any(c.isnumeric() for c in text if not c.isascii()):
        return None, "digits that are not plain 0-9"
    matches = list(islice(_NUMBER.finditer(text), 2))
    if not matches:
        return None, "no number in the answer block" if text.strip() else "empty answer block"
    if len(matches) > 1:
        return None, "more than one number in the answer block"
    value = _value(matches[0])
    return value, "" if value is not None else "a number that can't be read"


def _value(match: re.Match[str] | None) -> Fraction | None:
    """The matched number; None for misplaced commas, excessive length or exponent, and division by 0."""
    if match is None or len(match[0]) > MAX_NUMBER_LENGTH:
        return None
    integer = (match["integer"] or "").rstrip(",")
    if "," in integer and not _GROUPED_INTEGER.fullmatch(integer):
        return None
    exponent, denominator = int(match["exponent"] or 0), int(match["denominator"] or 1)
    if abs(exponent) > MAX_EXPONENT or denominator == 0:
        return None
    digits = integer.replace(",", "") + (match["decimals"] or match["bare_decimals"] or "")
    value = Fraction(digits) * Fraction(10) ** exponent / denominator
    return -value if match["sign"] in ("-", "−") else value
