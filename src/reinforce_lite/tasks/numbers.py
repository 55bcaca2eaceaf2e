r"""Text to number: the one reader for golds and extracted answers; `running_text.py` finds numbers in prose.

    read_number("72 eggs")     a number, perhaps with its unit: what the strict verdict reads
    read_gold(r"\frac{1}{2}")  a number and nothing else: what a data set's golds must be

Values are exact. Surroundings that do not change the value are removed: `$...$`, `\boxed{}`, `**`,
currencies, percent and degree signs, a final full stop or comma, and unit words after a space, in `\text{}`
or its variants, `\mathrm{}` or `\mbox{}`, or in brackets. Anything else, such as `\sqrt{72}`, `72\pi`,
`x < 72`, `72 million`, `0,125` or a sign in words, makes a number unreadable: it is read right or refused.
Time is linear in the text's length: a text longer than MAX_TEXT is refused unread, and the patterns are
possessive, so they don't backtrack.

Omitted on purpose: number words, arithmetic, roots, decimal commas, lists, and the comparison of units.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_TEXT = 2_000  # characters; a longer text is no number with its unit
MAX_NUMBER = 1_000  # characters; a longer number is refused before any big-integer arithmetic
MAX_EXPONENT = 1_000
ROUNDED_DECIMALS = 6  # a gold with as many decimals is itself rounded

# Words that change the number before them. Other words are units.
_CHANGING = re.compile(
    r"zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen"
    r"|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|(?:hundred|thousand"
    r"|(?:m|b|tr)illion|milliard|lakh|crore|dozen|half|third|quarter|fourth|fifth|sixth|seventh|eighth|ninth"
    r"|tenth|eleventh|twelfth|(?:thir|four|fif|six|seven|eigh|nine)teenth|(?:twen|thir|for|fif|six|seven"
    r"|eigh|nine)tieth|hundredth|thousandth|(?:m|b|tr)illionth)s?|halves|score|gross|thou|mil|mio|mn|bn|tn"
    r"|doz|plus|minus|negative|mln|mrd|milli?on(?:en|es)|billones|tens|twice|halved|doubled|tripled|wrong"
    r"|divided|multiplied|squared|cubed|factorial|root|sqrt|pi|mod|modulo|remainder"
    r"|log|ln|infinity|or|not|nor|least|most|am|pm|noon|midnight|(?:quadr|quint|sext)illion(?:th)?s?|zillions?"
    r"|grand|lacs?|myriads?|mille|tausend|dutzend|incorrect|false|repeating|recurring",
    re.IGNORECASE,
)
_UNIT_LETTERS = frozenset("aAmgshlLNJVWCF")  # "72 m" is a length, "72 a month" English; "72 x" is a product

# Patterns; `running_text.py` uses those without an underscore.
LETTER = "A-Za-zÀ-ÖØ-öø-ÿ"  # "72 万" is 720,000: words of other scripts are not read
DEGREE = r"(?:(?:°|\^\s*(?:\\circ|\{\s*\\circ\s*\}))(?:\s?[CF](?![A-Za-z]))?)"
_SPACE = r"(?:\s|\\[ ,;:!]|~)"
_GROUP = r"(?:,\\!|,|\{,\}|[\u00a0\u2009\u202f])[0-9]{3}"  # of thousands
_INTEGER = rf"(?:[1-9][0-9]{{0,2}}(?:{_GROUP})++(?![0-9])|[0-9]++)"
_LATEX_FRACTION = (
    r"\\[dtc]?frac\s*(?:\{\s*(?P<minus>[-−]?)\s*(?P<top>[0-9]++)\s*\}|(?P<top_digit>[0-9]))\s*"
    r"(?:\{\s*(?P<bottom>[0-9]++)\s*\}|(?P<bottom_digit>[0-9]))"
)
NUMBER = re.compile(
    rf"(?:(?P<whole>{_INTEGER}){_SPACE}*+)?"
    rf"(?:{_LATEX_FRACTION}|(?P<numerator>{_INTEGER})[ ]?/[ ]?(?P<denominator>{_INTEGER}))"
    rf"|(?:(?P<integer>{_INTEGER})(?P<decimals>\.[0-9]++)?+|(?<![^\W_])(?P<bare_decimals>\.[0-9]++))"
    r"(?:[eE](?P<exponent>[-+]?[0-9]++))?+"
)
CODE = r"(?:USD|EUR|GBP|INR|CAD|AUD|JPY|CNY|Rs\b\.?)"
_CURRENCY = rf"(?:(?:US|A|C)?\$|\\\$|[€£¥₹₩₽¢]|{CODE})"
GLUE = rf"(?:{_SPACE}|[{{}}]|{_CURRENCY})"  # all that may stand between a sign and its number
LATEX_BOX = r"\\(?:boxed|(?:text|math)(?:bf|it|rm|sf|tt)?)\s*\{"  # it changes a number's look only
TEXT_BOX = r"\\(?:text(?:bf|it|rm|sf|tt)?|mathrm|mbox)\s*\{"  # around a unit
SIGN = rf"(?P<sign>[-−]|\+(?!\s)|){GLUE}*+"  # a plus with a space after it adds
_BEFORE = re.compile(rf"(?:{GLUE}|\*\*|{LATEX_BOX}|\\[(\[])*+{SIGN}")
_SUPERSCRIPT = r"(?:\^(?:[23]|\{[23]\})|[²³])?+"
_UNIT = (
    rf"(?<=[\s.~,;:!])[{LETTER}]++(?:[-'’/][{LETTER}]++)*+{_SUPERSCRIPT}\.?"
    rf"|(?<![0-9])\([{LETTER}\s.,'’/-]*+\)|{TEXT_BOX}[{LETTER}\s.,'’/()-]*+\}}{_SUPERSCRIPT}"
)
_CLOSING = r"\*\*|\}|\\[)\]]|\s|\$"
_AFTER = re.compile(rf"(?:{_SPACE}|{_CLOSING}|{_CURRENCY}|\\?%|{DEGREE}|{_UNIT})*+[.,]?(?:{_CLOSING})*+")
_NO_WORD = re.compile(rf"\\[A-Za-z]+|{CODE}|{DEGREE}")
# a.m. and p.m. become words: single letters could be units.
_CLOCK = re.compile(r"\b([ap])\.(m)\b", re.IGNORECASE)
WORD = re.compile(rf"[{LETTER}]+")


@dataclass(frozen=True, slots=True)
class Number:
    """A number that was read."""

    value: Fraction
    text: str
    """As written, with its minus sign."""
    is_division: bool
    """Written as a fraction, such as 360/5."""
    rounded_to: Fraction | None
    """One unit of the last decimal where there are six or more, so that the number is itself rounded."""


class UnreadableError(Exception):
    """Why a text holds no number; `text` is the number that can't be read, where there is one."""

    def __init__(self, reason: str, text: str | None = None) -> None:
        super().__init__(reason)
        self.text = text


def read_number(text: str) -> Number:
    r"""The number that a text is, apart from its unit and other surroundings. Raises UnreadableError.

    >>> [str(read_number(t).value) for t in ("1,234", "72 eggs", "- 7", r"\frac12", "5 1/2", "50%", "Rs.72")]
    ['1234', '72', '-7', '1/2', '11/2', '50', '72']
    """
    return _read(text)[0]


def read_gold(text: str) -> Number:
    """The number that a gold is. Units are not compared, so it has none. Raises UnreadableError."""
    number, words = _read(text)
    if words:
        raise UnreadableError(f"the word {words[0]!r}")
    return number


def write_gold(gold: object) -> str:
    """A gold as text. A float is the decimal that was meant: 0.1 + 0.2 is 0.3.

    >>> write_gold(0.1 + 0.2), write_gold(72.0), write_gold(9007199254740991.0), write_gold("1/2")
    ('0.3', '72', '9007199254740991', '1/2')
    """
    if not isinstance(gold, float):
        return str(gold)
    return str(int(gold)) if gold.is_integer() and abs(gold) < 2**53 else f"{gold:.15g}"


def is_number(text: str) -> bool:
    """Whether a text can be a gold: one readable number and nothing else.

    >>> [is_number(t) for t in ("1,234", " -7 ", "$0.50", "72 eggs", "3 or 4", "")]
    [True, True, True, False, False, False]
    """
    try:
        read_gold(text)
    except UnreadableError:
        return False
    return True


def changes_number(words: list[str]) -> str | None:
    """The first of the words after a number that may change it, if any."""
    return next(
        (w for w in words if _CHANGING.fullmatch(w) or (len(w) == 1 and w not in _UNIT_LETTERS)), None
    )


def parse_match(match: re.Match[str], sign: str) -> Number:
    """The value of a match of NUMBER after a sign, which may be empty.

    Raises UnreadableError for excess length or exponent, division by 0, and a mixed number such as 5 7/2.
    """
    unreadable = UnreadableError("a number that can't be read", match[0])
    if len(match[0]) > MAX_NUMBER:
        raise unreadable
    is_division, rounded_to = match["integer"] is None and match["bare_decimals"] is None, None
    if is_division:
        top = _int(match["numerator"] or match["top"] or match["top_digit"])
        bottom = _int(match["denominator"] or match["bottom"] or match["bottom_digit"])
        is_mixed, signs = match["whole"] is not None, bool(sign) + bool(match["minus"])
        if bottom == 0 or signs > 1 or (is_mixed and (top >= bottom or match["minus"])):
            raise unreadable
        value = _int(match["whole"] or "0") + Fraction(top, bottom)
    else:
        decimals, exponent = match["decimals"] or match["bare_decimals"] or ".", int(match["exponent"] or 0)
        if abs(exponent) > MAX_EXPONENT:
            raise unreadable
        unit = Fraction(10) ** (exponent + 1 - len(decimals))
        value = _int((match["integer"] or "") + decimals) * unit
        rounded_to = unit if len(decimals) > ROUNDED_DECIMALS else None
    negative = (match["minus"] or sign) in ("-", "−")
    text = "-" * bool(negative and not match["minus"]) + match[0]
    return Number(-value if negative else value, text, is_division, rounded_to)


def _read(text: str) -> tuple[Number, list[str]]:
    """The number that a text is, and the words after it."""
    text = text.strip()
    match = NUMBER.search(text) if len(text) <= MAX_TEXT else None
    if match is None:
        raise UnreadableError(_why_unreadable(text))
    before, after = _BEFORE.fullmatch(text, 0, match.start()), _AFTER.fullmatch(text, match.end())
    if before is None or after is None:
        several = NUMBER.search(text, match.end())
        raise UnreadableError("more than one number" if several else _why_unreadable(text))
    words = WORD.findall(_CLOCK.sub(r"\1\2", _NO_WORD.sub(" ", after[0])))
    if word := changes_number(words):
        raise UnreadableError(f"a word that changes the number, {word!r},")
    return parse_match(match, before["sign"]), words


def _why_unreadable(text: str) -> str:
    if len(text) > MAX_TEXT:
        return "too long a text"
    if any(c.isnumeric() and c not in "²³" for c in text if not c.isascii()):
        return "digits that are not plain 0-9"
    return "something that may change the number" if any(map(str.isdecimal, text)) else "no number"


def _int(digits: str) -> int:
    """The integer without its separators."""
    return int(re.sub(r"[^0-9]", "", digits))
