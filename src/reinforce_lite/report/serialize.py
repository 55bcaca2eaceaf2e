"""What the page holds of a completion, and the encoding of its data: JSON that is inert inside HTML."""

import math
from typing import Any

from reinforce_lite.runlog.records import Record, hits
from reinforce_lite.utils import finite

MAX_TEXT = 6_000
"""Characters of a text that are shown: all, or the beginning and the end of a longer one."""
OVERHEAD = 40
"""Upper bound of the bytes around a completion or a question: its step, its split, brackets."""


def completion(line: Record) -> Record:
    """What the page shows of a line of rollouts.jsonl or eval_rollouts.jsonl."""
    shown = {key: round_float(line[key]) for key in ("reward", "advantage", "strict", "lenient", "tokens")}
    shown |= {"extracted": text(line["answer"]), "reason": text(line["reason"])}
    shown["second_opinion"] = line.get("second_opinion")
    shown |= {"text": text(line["completion"]), "truncated": line["truncated"], "hits": unique_hits(line)}
    return shown | ({"fault": text(line["fault"])} if line.get("fault") else {})


def question(line: Record) -> Record:
    """What the page holds once for all completions of a question."""
    return {"question": text(line["question"]), "gold": text(line["gold"])}


def unique_hits(line: Record) -> dict[str, list[str]]:
    """A line's reflection words by list, without repetitions."""
    return {name: list(dict.fromkeys(words)) for name, words in hits(line).items()}


def page_bytes(shown: Record) -> int:
    """Upper bound of the bytes that a completion or a question takes in the page."""
    return len(to_json(shown)) + OVERHEAD


def text(value: Any) -> str | None:
    """A value as text of at most about MAX_TEXT characters, None unchanged.

    The text may be a number: a user's task may have such golds. In place of what is omitted from the middle
    of a long one stands its length.

    >>> text("a" * 6001)[2990:3040]
    'aaaaaaaaaa\\n[… 1 characters omitted …]\\naaaaaaaaaaaa'
    """
    whole, half = str(value), MAX_TEXT // 2
    if value is None or len(whole) <= MAX_TEXT:
        return None if value is None else whole
    return f"{whole[:half]}\n[… {len(whole) - 2 * half} characters omitted …]\n{whole[-half:]}"


def to_json(value: Any) -> str:
    """JSON in plain ASCII, without <, > and &, so that an HTML parser cannot end or misread it.

    Lone surrogates and U+2028 become escapes too.
    """
    text = finite.to_json(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def round_float(value: Any) -> Any:
    """A float with five digits, None if it is not finite; any other value unchanged."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None
