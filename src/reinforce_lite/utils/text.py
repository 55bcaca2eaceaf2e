"""Numbers and texts as a person reads them in a terminal."""

import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

BARS = "▁▂▃▄▅▆▇█"


def harmless(text: str) -> str:
    """Escape every character that could control a terminal; newlines and tabs stay.

    >>> harmless("a\\x1b[2J")
    'a\\\\u001b[2J'
    """

    def escape(c: str) -> str:
        is_control = unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t"
        return f"\\u{ord(c):04x}" if is_control else c

    return "".join(map(escape, text))


def shorten(text: str, limit: int = 240) -> str:
    """A text as one harmless line of at most `limit` characters; an ellipsis marks a cut."""
    line = " ".join(harmless(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Values between 0 and 1 as a line of at most `width` bars, each the mean of neighbours.

    >>> sparkline([0, 0.5, 1])
    '▁▅█'
    """
    size = max(1, -(-len(values) // width))
    means = [sum(part) / len(part) for part in (values[i : i + size] for i in range(0, len(values), size))]
    return "".join(BARS[round(min(1.0, max(0.0, v)) * (len(BARS) - 1))] for v in means)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The remedy for an unknown name: the nearest known one, or `otherwise` when none is near.

    >>> did_you_mean("wordmth", ["gsm8k", "wordmath"])
    "did you mean 'wordmath'?"
    """
    nearest = get_close_matches(name, known, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else otherwise


def one_line_error(error: BaseException, limit: int = 300) -> str:
    """An exception as "TypeName: message" in one line of at most `limit` characters.

    >>> one_line_error(ValueError("first\\nsecond"))
    'ValueError: first second'
    """
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}".removesuffix(": ")[:limit]


def percent(fraction: float | None) -> str:
    """A fraction as a percentage; a dash for None.

    >>> percent(0.125)
    '12.5%'
    """
    return "–" if fraction is None else f"{fraction:.1%}"


def interval(bounds: Sequence[float]) -> str:
    """A confidence interval of a fraction, in whole percent.

    >>> interval((0.1, 0.255))
    '(10–26%)'
    """
    return f"({100 * bounds[0]:.0f}–{100 * bounds[1]:.0f}%)"


def duration(seconds: float) -> str:
    """Seconds in the two largest units that fit.

    >>> duration(3725)
    '1 h 2 min'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
