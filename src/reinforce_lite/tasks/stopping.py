"""Where a completion ends: at the first stop string that its text reaches. Text only, no token ids.

    stop_index("so 72</answer> and more", ["</answer>"])  14
    stop_index("#### 72\nmore", [HASH_LINE])              8

The engines ask after each token, so `start` says how much of the text is known to hold no stop.
"""

import re
from collections.abc import Mapping, Sequence

from reinforce_lite.types import AnswerFormat

HASH_LINE = "####...\n"
"""A stop that is reached at the end of a line `#### 72`, with anything but blanks in place of the dots."""

DEFAULT_STOPS: Mapping[AnswerFormat, tuple[str, ...]] = {
    "tags": ("</answer>",),
    "boxed": (),
    "hash": (HASH_LINE,),
}
"""What stops a completion in each answer format."""

_HASH_LINE = re.compile(r"^####(?!#)[^\S\n]*+\S[^\n]*+\n", re.MULTILINE)


def stop_index(text: str, stops: Sequence[str], start: int = 0) -> int | None:
    """How many characters of a text to keep: up to the end of the stop that ends first, which is kept.

    None where the text reaches no stop. Stops are not empty; each but HASH_LINE is looked for as it is. The
    first `start` characters of the text hold no whole stop: an earlier call has looked.
    """
    ends = (_line_end(text, start) if stop == HASH_LINE else _end(text, stop, start) for stop in stops)
    return min((end for end in ends if end is not None), default=None)


def _end(text: str, stop: str, start: int) -> int | None:
    found = text.find(stop, max(0, start - len(stop) + 1))
    return None if found < 0 else found + len(stop)


def _line_end(text: str, start: int) -> int | None:
    if text.find("\n", start) < 0:  # no new line has ended; a long one is not read again for every token
        return None
    match = _HASH_LINE.search(text, text.rfind("\n", 0, start) + 1)
    return match.end() if match else None
