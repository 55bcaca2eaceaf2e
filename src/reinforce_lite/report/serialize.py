"""What the page holds of a completion, and the encoding of its data: JSON that is inert inside HTML."""

import json
import math
from typing import Any

from reinforce_lite.runlog.records import Record

MAX_TEXT = 6_000
"""Characters of a text that are shown: all, or the beginning and the end of a longer one."""
OVERHEAD = 40
"""Upper bound of the bytes around a completion or a question: its step, its split, brackets."""


def completion(line: Record) -> Record:
    """What the page shows of a line of rollouts.jsonl or eval_rollouts.jsonl."""
    shown = {key: round_float(line[key]) for key in ("reward", "advantage", "strict", "lenient", "tokens")}
    shown |= {"extracted": text(line["answer"]), "reason": text(line["reason"])}
    shown["second_opinion"] = line.get("second_opinion")
    shown |= {"text": text(line["completion"]), "truncated": line["truncated"], "hits": hits(line)}
    return shown | ({"fault": text(line["fault"])} if line.get("fault") else {})


def question(line: Record) -> Record:
    """What the page holds once for all completions of a question."""
    return {"question": text(line["question"]), "gold": text(line["gold"])}


def hits(line: Record) -> dict[str, list[str]]:
    """A line's reflection words by list, without repetitions."""
    return {name: list(dict.fromkeys(words)) for name, words in line.get("reflection", {}).items()}


def completion_bytes(line: Record) -> int:
    """Upper bound of the bytes that a line's completion takes in the page."""
    return len(to_json(completion(line))) + OVERHEAD


def question_bytes(line: Record) -> int:
    """Upper bound of the bytes that a line's question takes in the page."""
    return len(to_json(question(line))) + OVERHEAD


def text(value: Any) -> str | None:
    """A value as clipped text, None unchanged: a user's task may have a number for a gold."""
    return None if value is None else clip(str(value))


def clip(text: str) -> str:
    """A text of at most about MAX_TEXT characters, with a note of how many are omitted from its middle.

    >>> clip("a" * 6001)[2990:3040]
    'aaaaaaaaaa\\n[… 1 characters omitted …]\\naaaaaaaaaaaa'
    """
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters omitted …]\n{text[-half:]}"


def to_json(value: Any) -> str:
    """JSON in plain ASCII, without <, > and &, so that an HTML parser cannot end or misread it.

    Lone surrogates and U+2028 become escapes too.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def round_float(value: Any) -> Any:
    """A float with five digits, None if it is not finite; any other value unchanged."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None
