r"""The last number of a running text, for the lenient verdict.

    read_last_number("so 8 * 9 = 72.")  72
    read_last_number("so 8 * 9")        unreadable: 9 is an operand

A number's clause begins after a word, punctuation, an equals sign, a tag, the ">>" of a calculator
annotation, or a line's end. Between there and the number only a sign and surroundings may stand, and nothing
after it may change it. Otherwise it is unreadable; no earlier number is taken for it. Only MAX_CLAUSE
characters before a number are read, so time is linear in the text's length.
"""

import re

from reinforce_lite.tasks.numbers import (
    CODE,
    DEGREE,
    GLUE,
    LATEX_BOX,
    LETTER,
    NUMBER,
    SIGN,
    TEXT_BOX,
    WORD,
    Number,
    UnreadableError,
    changes_number,
    parse_match,
)

MAX_CLAUSE = 200  # characters: of a number, and before it, where its clause must begin
_MAX_TAIL = 16  # characters of a number after its last digit: a fraction's closing brace

_CHANGING_BEFORE = re.compile(
    r"(?:\b(?:minus|negative|plus|times|twice|half|not|sqrt|log|less|over|than|at (?:least|most)"
    r"|(?:divided|multiplied) by|added to|subtracted from|out of|(?:half|thirds?|quarters?|root|power) of)"
    r"|n['’]t)[*\"'”’]*\s*$",
    re.IGNORECASE,
)
_BULLET = re.compile(r"\s*[-−]\s")  # a sign at a line's start: an item of a list, or a negative number
_OPERATORS = frozenset("^_=*/+-−<>≤≥≠≈±∓×÷·⋅√π∞!\\{.,;:?")  # punctuation that _STOP does not take

_CLAUSE_START = re.compile(
    rf"(?<![\w\\'’-])(?!{CODE})(?:[aAI]|[^\W\d_](?:[^\W\d_]|['’-])++(?<=[^\W\d_]))[*\"'”’]*\s+"  # a word
    r"|(?<!Rs)[.,;!?]\s+|(?<![0-9])(?<![0-9]\s):|(?:(?<![<>=!~])|(?<=[A-Za-z]>))=(?![<>])|[→⇒]"
    r"|(?<![-−–—])(?<![-−–—]\s)(?:>>|</?[A-Za-z]+>)"
    r"|[\w.,;:!?)\]}*|$%>\"']\s*\n\s*"
)
_BEFORE = re.compile(rf"(?:{GLUE}|\*\*\*?|\*(?=\S)|[(\[\"'“‘`]|{LATEX_BOX}|\\[(\[])*+{SIGN}")
_LETTERS_EXPONENT = re.compile(rf"(?:[{LETTER}]|{TEXT_BOX}[^{{}}]*\}})\^\{{?$")  # as in cm^2
_CLOSERS = re.compile(
    rf"(?:[*$€£¥¢}})\]\"'’”`]|\\[$)\]%]|%|{DEGREE}|[^\S\n]++(?:[$}}\])%]|\\[)\]%]|{DEGREE}))*+"
)
_GAP = re.compile(rf"(?:[^\S\n]|\\[ ,;:!]|~|{TEXT_BOX})*+")
_STOP = re.compile(
    r"\Z|\n|\.(?![.0-9])|[,;:?](?!\w)|</?[A-Za-z][^<>\s]{0,20}>|<\||>>|\\\\|\\end\b|\((?<=\s\()"
)
_WORDS = re.compile(rf"[{LETTER}]++(?:[ '’-][{LETTER}]++){{0,2}}")


def read_last_number(text: str) -> Number:
    """The last number of a text. Raises UnreadableError where there is none or it can't be read."""
    last_digit = max(map(text.rfind, "0123456789"))
    numbers = _find_numbers(text, max(0, last_digit - MAX_CLAUSE), last_digit + _MAX_TAIL)
    if last_digit < 0 or not numbers:
        raise UnreadableError("no number")
    return _read(text, numbers[-1])


def _find_numbers(text: str, start: int, end: int) -> list[re.Match[str]]:
    """The numbers between two positions, without the exponents of letters."""
    matches = NUMBER.finditer(text, start, end)
    return [m for m in matches if not _LETTERS_EXPONENT.search(text, max(0, m.start() - 50), m.start())]


def _read(text: str, match: re.Match[str]) -> Number:
    """The matched number with its sign. Raises UnreadableError where the text around it may change it."""
    unreadable = UnreadableError("a number that can't be read", match[0])
    window = max(0, match.start() - MAX_CLAUSE)
    last = None
    for last in _CLAUSE_START.finditer(text, window, match.start()):  # noqa: B007 -- only the last one counts
        pass
    if last is None and window > 0:
        raise unreadable
    start = last.end() if last else 0
    before = _BEFORE.fullmatch(text, start, match.start())
    in_list = last is not None and last[0].startswith(",")
    ends_tuple = in_list and text.startswith((")", "]", "}"), match.end())  # "(1, 72)" is a point
    if before is None or ends_tuple or _CHANGING_BEFORE.search(text, window, start):
        raise unreadable
    line = text.rfind("\n", window, match.start()) + 1
    if _BULLET.fullmatch(text, line, before.end("sign") + 1):
        raise unreadable
    if _is_changed_after(text, match.end()):
        raise unreadable
    return parse_match(match, before["sign"])


def _is_changed_after(text: str, end: int) -> bool:
    """Whether what follows a number that ends here may change it."""
    closed = _end(_CLOSERS, text, end)
    gap = _end(_GAP, text, closed)
    if _STOP.match(text, closed) or _STOP.match(text, gap):
        in_brackets = _WORDS.match(text, gap + 1) if text[gap : gap + 1] == "(" else None
        return in_brackets is not None and changes_number(WORD.findall(in_brackets[0])) is not None
    if words := _WORDS.match(text, gap):
        return gap == closed or changes_number(WORD.findall(words[0])) is not None
    return text[gap] in _OPERATORS or text[gap] == "(" or text[gap].isalnum()


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Where a match that may be empty ends."""
    match = pattern.match(text, start)
    return match.end() if match else start
