"""Text to number to verdict, strict and lenient. Pure, exact and linear in the text's length.

Strict is what training pays for: one or more <answer> blocks outside the thinking, all holding
the same one number, equal to the gold. Lenient is the last number anywhere. A gain in strict
alone is format learning, so both are always reported and never mixed.

    >>> grade("<think>8 * 9 = 72</think><answer>$72</answer>", "72", mode="strict")
    Verdict(correct=True, answer='$72', reason='right')
    >>> grade("<answer>71</answer> or <answer>72</answer>", "72", mode="strict").reason
    'two different answer blocks'

Left out on purpose: words for numbers ("seventy-two"), arithmetic inside a block ("8 * 9"),
and units ("72 million" reads as 72).
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Literal

from reinforce_lite.errors import UsageError
from reinforce_lite.types import Verdict

MAX_DIGITS = 1_000  # of one number; a million nines cost a glance, not a bignum
MAX_EXPONENT = 1_000
SHOWN = 80  # characters of an answer kept in a verdict

_TAG = re.compile(r"<(/?)(think|answer)>")

# Nothing after the first digit can fail, so the search never goes back: linear time.
# A sign counts only where it can't be an operator: "10-7" is 10 and 7, "x = -7" is -7.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])[-−+])?[$€£]?"
    r"(?:(?P<whole>[0-9][0-9,]*)(?P<point>\.[0-9]+)?|(?P<bare>\.[0-9]+))"
    r"(?:[eE](?P<exponent>[-+]?[0-9]+))?"
    r"(?:/(?P<below>[0-9]+))?"
)
_GROUPED = re.compile(r"[0-9]{1,3}(,[0-9]{3})+")


@dataclass(frozen=True, slots=True)
class Blocks:
    """The answer blocks of a response."""

    texts: list[str]
    """Of each closed block outside the thinking."""
    in_thinking: bool
    """A block was closed inside the thinking."""
    unclosed: bool
    """The last block outside the thinking was begun and not closed."""


def grade(completion: str, gold: str | int | float, mode: Literal["strict", "lenient"]) -> Verdict:
    """Judge the assistant's whole response, the begun part included, against the gold answer.

    Raises UsageError when `gold` is not one number, ValueError for another mode.
    """
    value = parse_number(str(gold))
    if value is None:
        raise UsageError(f"the gold answer {str(gold)[:SHOWN]!r} is not one number")
    if mode == "strict":
        return _grade_strict(completion, value)
    if mode == "lenient":
        return _grade_lenient(completion, value)
    raise ValueError(f"mode is 'strict' or 'lenient', not {mode!r}")


def _grade_strict(response: str, gold: Fraction) -> Verdict:
    blocks = find_blocks(response)
    if not blocks.texts:
        return Verdict(False, None, _why_none(blocks))
    values: set[Fraction] = set()
    for text in blocks.texts:
        value, reason = _one_number(text)
        if value is None:
            return Verdict(False, text.strip()[:SHOWN], reason)
        values.add(value)
        if len(values) > 1:
            return Verdict(False, text.strip()[:SHOWN], "two different answer blocks")
    return _compare(values.pop(), gold, blocks.texts[-1])


def _grade_lenient(response: str, gold: Fraction) -> Verdict:
    last = None
    for last in _NUMBER.finditer(response):  # noqa: B007 -- only the last one is wanted
        pass
    if last is None:
        return Verdict(False, None, "no number")
    value = _value(last)
    if value is None:  # "1,2,3" is a list: its last number counts
        value = _value(_NUMBER.search(last[0].rpartition(",")[2]))
    if value is None:
        return Verdict(False, last[0][:SHOWN], "a number that can't be read")
    return _compare(value, gold, last[0])


def _compare(value: Fraction, gold: Fraction, text: str) -> Verdict:
    return Verdict(value == gold, text.strip()[:SHOWN], "right" if value == gold else "another number")


def _why_none(blocks: Blocks) -> str:
    if blocks.unclosed:
        return "answer block not closed"
    if blocks.in_thinking:
        return "answer block only inside the thinking"
    return "no answer block outside the thinking"


def find_blocks(response: str) -> Blocks:
    """The <answer> blocks of a response, in one pass over its tags.

    An unclosed <think> reaches to the end. A block that a think tag cuts through is no block.
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
    return Blocks(texts, in_thinking, unclosed=start is not None and not thinking)


def single_answer(response: str) -> tuple[str | None, str]:
    """The one text that all answer blocks hold, for tasks with a scorer of their own, and why if none."""
    blocks = find_blocks(response)
    if not blocks.texts:
        return None, _why_none(blocks)
    texts = {text.strip() for text in blocks.texts}
    if len(texts) > 1:
        return None, "two different answer blocks"
    return texts.pop(), ""


def parse_number(text: str) -> Fraction | None:
    """The one number that a text holds, exactly; None when it holds none, several or an unreadable one.

    >>> [str(parse_number(t)) for t in ("1,234", "72 eggs", "−7", "1/2", "50%", "3 or 4")]
    ['1234', '72', '-7', '1/2', '50', 'None']
    """
    return _one_number(text)[0]


def is_number(text: str) -> bool:
    """Whether a text is one number that can be read, and nothing else.

    >>> [is_number(t) for t in ("1,234", " -7 ", "$0.50", "72 eggs", "3 or 4", "")]
    [True, True, True, False, False, False]
    """
    return _NUMBER.fullmatch(text.strip()) is not None and parse_number(text) is not None


def _one_number(text: str) -> tuple[Fraction | None, str]:
    if any(c.isnumeric() for c in text if not c.isascii()):
        return None, "digits that are not plain 0-9"
    found = list(islice(_NUMBER.finditer(text), 2))
    if not found:
        return None, "no number in the answer block" if text.strip() else "empty answer block"
    if len(found) > 1:
        return None, "more than one number in the answer block"
    value = _value(found[0])
    return value, "" if value is not None else "a number that can't be read"


def _value(match: re.Match[str] | None) -> Fraction | None:
    """The number matched, or None: bad commas, too many digits, too large an exponent, division by 0."""
    if match is None or len(match[0]) > MAX_DIGITS:
        return None
    whole = (match["whole"] or "").rstrip(",")
    if "," in whole and not _GROUPED.fullmatch(whole):
        return None
    exponent, below = int(match["exponent"] or 0), int(match["below"] or 1)
    if abs(exponent) > MAX_EXPONENT or below == 0:
        return None
    digits = whole.replace(",", "") + (match["point"] or match["bare"] or "")
    value = Fraction(digits) * Fraction(10) ** exponent / below
    return -value if match["sign"] in ("-", "−") else value
