"""The aha moment, measured: published keyword lists, counted as whole words in what the model wrote.

Whole words: "awaiting", "whatsoever" and "rechecked" are no hits, and neither are parts of words joined by
a hyphen. Case does not count, a curly apostrophe and a hyphen that forbids a line break are plain ones,
and a phrase may run over a line break. The question, worked examples and a
turn begun for the model are not its words: `rates` and `hits` are given the completion alone.

A hit is no proof of reflection: untrained models use these words too, and often end wrong. So a
rate means something only beside the untrained model's on the same prompts and seeds.

Sources: list A is oat-zero's, list B is Dr. GRPO's, list C is ours.
"""

import re
from collections.abc import Sequence

_A = (
    *("recheck", "rethink", "reevaluate", "re-evaluate", "reevaluation", "re-examine", "reexamine"),
    *("try again", "check again", "think again", "go over the steps"),
)
REFLECTION_LISTS: dict[str, tuple[str, ...]] = {
    "a": _A,
    "b": (
        *(word for word in _A if word != "try again"),
        *("reassess", "reconsider", "reanalyze", "double-check", "verify again"),
    ),
    "c": ("wait", "however", "this doesn't make sense", "let me check"),
}
PLAIN = str.maketrans({"’": "'", "‑": "-"})  # one character for one, so that places stay


def keyword_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Any of the words, in text translated by PLAIN; of two that begin alike the one that stands first."""
    either = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in words)
    return re.compile(rf"(?<![\w-])(?:{either})(?![\w-])", re.IGNORECASE)


_PATTERNS = {name: keyword_pattern(words) for name, words in REFLECTION_LISTS.items()}


def find_reflections(text: str) -> dict[str, list[str]]:
    """The words found, lower case and in order, by list; lists without a hit are left out.

    >>> hits("Wait, let me check: awaiting nothing.")
    {'c': ['wait', 'let me check']}
    """
    plain = text.translate(PLAIN)
    found = {name: [_said(m) for m in each.finditer(plain)] for name, each in _PATTERNS.items()}
    return {name: words for name, words in found.items() if words}


def reflection_rates(texts: list[str]) -> dict[str, float]:
    """For each list the share of texts with at least one hit."""
    found = [find_reflections(text) for text in texts]
    return {name: sum(name in f for f in found) / max(1, len(texts)) for name in REFLECTION_LISTS}


def _said(match: re.Match[str]) -> str:
    return " ".join(match[0].lower().split())
