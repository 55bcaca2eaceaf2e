"""The page itself: the template with its style and scripts in it, and the data as inert JSON.

Nothing that a model or a user wrote becomes HTML: the template escapes what it prints, scripts set text
alone, and the content policy lets run only the scripts whose hash it names and lets nothing be fetched.
"""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment

from reinforce_lite.report import cards, curves, result
from reinforce_lite.report.parts import Part
from reinforce_lite.wording import harmless

SCRIPTS = ("dom.js", "chart.js", "curves.js", "answers.js", "aha.js", "costs.js", "main.js")


def render(made: Sequence[Part]) -> str:
    """The HTML of one run or several."""
    style, script = _asset("style.css"), "".join(map(_asset, SCRIPTS))
    page: str = _template().render(
        runs=[numbers for numbers, _ in made],
        style=style,
        script=script,
        policy=_policy(style, script),
        data=cards.encode({"charts": curves.CHARTS, "runs": [{**n, **beside} for n, beside in made]}),
    )
    return page.encode("utf-8", "replace").decode()  # a name from a file system may hold half a character


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": result.percent,
        "p": result.p_value,
        "place": lambda share: f"{100 * share:.2f}%",
        "harmless": harmless,
        "words": lambda name: name.replace("_", " "),
        "tight": lambda text: text.replace("p = ", "p\u00a0=\u00a0"),
    }
    return environment.from_string(_asset("page.html"))


@cache
def _asset(name: str) -> str:
    return (files("reinforce_lite") / "report" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """The Content-Security-Policy: these two texts may act, and nothing may be fetched."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
