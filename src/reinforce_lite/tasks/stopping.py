"""Where a completion ends: at the first stop that its text reaches. Text only, no token ids.

    stop_end("so 72</answer> and more", ["</answer>"])  14
    stop_end("#### 72\\nmore", [HASH_LINE])              8

A stop counts wherever it is, also inside the thinking, as in other programs that sample.
"""

import re
from collections.abc import Mapping, Sequence

from reinforce_lite.types import AnswerFormat

HASH_LINE = "####...\n"
"""A stop that is reached at the end of a line `#### 72`: in place of the dots is anything with a digit."""

DEFAULT_STOPS: Mapping[AnswerFormat, tuple[str, ...]] = {
    "tags": ("</answer>",),
    "boxed": (),
    "hash": (HASH_LINE,),
}
"""What stops a completion in each answer format."""

FINISHED_LINE = re.compile(r"^[ \t]*+(?:\*\*)?####(?!#)[^\n0-9]*+[0-9][^\n]*+\n", re.MULTILINE)
"""Matches a line that reaches HASH_LINE."""


def stop_end(text: str, stops: Sequence[str]) -> int | None:
    """How many characters of a text to keep: up to the end of the stop that ends first, which is kept.

    None where the text reaches no stop. Stops are not empty; each but HASH_LINE is looked for as it is.
    """
    ends = (_line_end(text) if stop == HASH_LINE else _end(text, stop) for stop in stops)
    return min((end for end in ends if end is not None), default=None)


def _end(text: str, stop: str) -> int | None:
    found = text.find(stop)
    return None if found < 0 else found + len(stop)


def _line_end(text: str) -> int | None:
    match = FINISHED_LINE.search(text)
    return match.end() if match else None
