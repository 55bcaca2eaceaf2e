"""The aha moment, measured: published keyword lists, counted as whole words.

A hit is no proof of reflection: untrained models use these words too, and often end wrong. So a
rate means something only beside the untrained model's on the same prompts and seeds.

Sources: list A is oat-zero's, list B is Dr. GRPO's, list C is ours.
"""

import re

_A = (
    *("recheck", "rethink", "reevaluate", "re-evaluate", "reevaluation", "re-examine", "reexamine"),
    *("try again", "check again", "think again", "go over the steps"),
)
LISTS: dict[str, tuple[str, ...]] = {
    "a": _A,
    "b": (
        *(word for word in _A if word != "try again"),
        *("reassess", "reconsider", "reanalyze", "double-check", "verify again"),
    ),
    "c": ("wait", "however", "this doesn't make sense", "let me check"),
}
_PATTERNS = {
    name: re.compile(r"(?<![\w-])(?:" + "|".join(map(re.escape, words)) + r")(?![\w-])", re.IGNORECASE)
    for name, words in LISTS.items()
}


def hits(text: str) -> dict[str, list[str]]:
    """The words found, lower case and in order, by list; lists without a hit are left out.

    >>> hits("Wait, let me check: awaiting nothing.")
    {'c': ['wait', 'let me check']}
    """
    plain = text.replace("’", "'")
    found = {name: [m[0].lower() for m in pattern.finditer(plain)] for name, pattern in _PATTERNS.items()}
    return {name: words for name, words in found.items() if words}


def rates(texts: list[str]) -> dict[str, float]:
    """For each list the share of texts with at least one hit."""
    found = [hits(text) for text in texts]
    return {name: sum(name in f for f in found) / max(1, len(texts)) for name in LISTS}
