"""The aha moment, measured: keyword lists, matched as whole words in what the model wrote.

"awaiting", "whatsoever" and "rechecked" are not hits, and neither is a part of a hyphenated word.
Case does not matter, a curly apostrophe and a non-breaking hyphen count as plain ones, and a phrase
may span a line break. The question, the worked examples and the prefill are not the model's words:
pass the completion alone.

A hit is no proof of reflection: untrained models use these words too, and often end wrong. So a
rate means something only next to the untrained model's on the same prompts and seeds.

Sources: list A is oat-zero's (https://github.com/sail-sg/oat-zero), list B is Dr. GRPO's
(Liu et al. 2025, https://arxiv.org/abs/2503.20783), list C is ours.
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
PLAIN = str.maketrans({"’": "'", "‑": "-"})  # one character for one, so that offsets stay valid


def keyword_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Any of the words, in text translated by PLAIN; of two that start alike the first in `words` matches."""
    alternatives = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in words)
    return re.compile(rf"(?<![\w-])(?:{alternatives})(?![\w-])", re.IGNORECASE)


_PATTERNS = {name: keyword_pattern(words) for name, words in REFLECTION_LISTS.items()}


def find_reflections(text: str) -> dict[str, list[str]]:
    """The hits of every list, in lower case and in order.

    >>> find_reflections("Wait, let me check: awaiting nothing.")
    {'a': [], 'b': [], 'c': ['wait', 'let me check']}
    """
    plain = text.translate(PLAIN)
    return {
        name: [" ".join(word.lower().split()) for word in pattern.findall(plain)]
        for name, pattern in _PATTERNS.items()
    }


def reflection_rates(texts: Sequence[str]) -> dict[str, float]:
    """For each list the share of texts with at least one hit, a fraction of 1; 0 without texts."""
    hits = [find_reflections(text) for text in texts]
    return {name: sum(bool(words[name]) for words in hits) / max(1, len(texts)) for name in REFLECTION_LISTS}
