"""An answer as the page holds it, and how the page's data is written: inert wherever it stands in HTML."""

import json
import math
from typing import Any

from reinforce_lite.runlog import Line

LONGEST = 6_000
"""Characters of an answer that are shown; of a longer one the beginning and the end."""


def card(line: Line) -> Line:
    """What the page shows of a line of rollouts.jsonl or eval_rollouts.jsonl."""
    keys = ("answer", "reason", "reward", "advantage", "strict", "lenient", "tokens")
    shown = {key: short(line[key]) for key in keys}
    shown |= {"text": clip(line["completion"]), "cut": line["truncated"], "hits": line.get("reflection", {})}
    return shown | ({"fault": line["fault"]} if line.get("fault") else {})


def cost(line: Line) -> int:
    """About how many bytes a line's card takes in the page."""
    return len(encode(clip(line["completion"]))) + 180


def question_cost(line: Line) -> int:
    """About how many bytes a line's question takes, which stands in the page once for all its answers."""
    return len(encode(clip(line["question"]) + clip(line["gold"]))) + 80


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
