"""Numbers and texts as a person reads them in a terminal."""

import unicodedata
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from difflib import get_close_matches

from reinforce_lite.utils.secrets import mask

BARS = "▁▂▃▄▅▆▇█"


def harmless(text: str) -> str:
    """Mask secrets and escape every character that could control a terminal; newlines and tabs stay.

    >>> harmless("a\\x1b[2J")
    'a\\\\u001b[2J'
    """

    def escape(c: str) -> str:
        is_control = unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t"
        return f"\\u{ord(c):04x}" if is_control else c

    return "".join(map(escape, mask(text)))


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each half of a character (a lone surrogate): UTF-8 has no bytes for it.

    >>> whole_characters("half \ud83d"), whole_characters("whole \ud83d\ude00")
    ('half \ufffd', 'whole 😀')
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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


def as_sentence(text: str) -> str:
    """Text as a sentence of its own.

    >>> as_sentence("the reward collapsed")
    'The reward collapsed.'
    """
    return f"{text[:1].upper()}{text[1:]}."


def one_line_error(error: BaseException, limit: int = 300) -> str:
    """An exception as "TypeName: message" in one line of at most `limit` characters, secrets masked.

    >>> one_line_error(ValueError("first\\nsecond"))
    'ValueError: first second'
    """
    message = " ".join(mask(str(error)).split())  # masked before it is cut: half a secret matches nothing
    return f"{type(error).__name__}: {message}".removesuffix(": ")[:limit]


def rounded(value: float, digits: int = 1) -> Decimal:
    """A number with so many decimals, halves away from zero as in the report (`toFixed` of JavaScript).

    >>> rounded(56.25), f"{56.25:.1f}"
    (Decimal('56.3'), '56.2')
    """
    return Decimal(value).quantize(Decimal(10) ** -digits, ROUND_HALF_UP)


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as a percentage; a dash for None.

    >>> percent(0.125)
    '12.5%'
    """
    return "–" if fraction is None else f"{rounded(100 * fraction, digits)}%"


def points(change: float) -> str:
    """A change of a fraction, in percentage points with a sign.

    >>> points(-0.125)
    '−12.5'
    """
    return f"{rounded(100 * change):+}".replace("-", "−")


def interval(bounds: Sequence[float]) -> str:
    """A confidence interval of a fraction, in whole percent.

    >>> interval((0.1, 0.255))
    '(10–26%)'
    """
    return f"({rounded(100 * bounds[0], 0)}–{percent(bounds[1], 0)})"


def duration(seconds: float) -> str:
    """Seconds in the two largest units that fit.

    >>> duration(3725)
    '1 h 2 min'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
