"""An answer as the page holds it, and how the page's data is written: inert wherever it stands in HTML."""

import json
import math
from typing import Any

from reinforce_lite.runlog.run import Line

LONGEST = 6_000
"""Characters of a text that are shown; of a longer one the beginning and the end."""
AROUND = 40
"""Bytes that stand around a card or a question, at most: its step, its split, brackets."""


def card(line: Line) -> Line:
    """What the page shows of a line of rollouts.jsonl or eval_rollouts.jsonl."""
    shown = {key: short(line[key]) for key in ("reward", "advantage", "strict", "lenient", "tokens")}
    shown |= {key: text(line[key]) for key in ("answer", "reason")}
    shown["second_opinion"] = line.get("second_opinion")
    shown |= {"text": text(line["completion"]), "cut": line["truncated"], "hits": hits(line)}
    return shown | ({"fault": text(line["fault"])} if line.get("fault") else {})


def question(line: Line) -> Line:
    """What stands once for all answers to a question."""
    return {"question": text(line["question"]), "gold": text(line["gold"])}


def hits(line: Line) -> dict[str, list[str]]:
    """A line's reflection words by list, each once."""
    return {name: list(dict.fromkeys(words)) for name, words in line.get("reflection", {}).items()}


def cost(line: Line) -> int:
    """How many bytes a line's card takes in the page, at most."""
    return len(encode(card(line))) + AROUND


def question_cost(line: Line) -> int:
    """How many bytes a line's question takes in the page, at most."""
    return len(encode(question(line))) + AROUND


def text(value: Any) -> str | None:
    """What should be text, clipped: in the files of a task given as an object a gold may be a number."""
    return None if value is None else clip(str(value))


def clip(text: str) -> str:
    """A text of at most about LONGEST characters; what was left out of its middle is counted.

    >>> clip("a" * 6001)[2990:3040]
    'aaaaaaaaaa\\n[… 1 characters left out …]\\naaaaaaaaaaa'
    """
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"


def encode(value: Any) -> str:
    """JSON in plain ASCII that no HTML parser can end or mistake: half emoji and U+2028 are escapes too."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def short(value: Any) -> Any:
    """Floats with five digits, None for what is not finite; anything that is no float as it is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None
