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

from reinforce_lite.report import curves, result, serialize
from reinforce_lite.report.build import RunReport
from reinforce_lite.runlog.run import Line
from reinforce_lite.utils.text import harmless, interval, percent

READ = ("name", "aha", "cost", "answers")
"""What the scripts read of a run's numbers; the template reads the others."""
SCRIPTS = ("dom.js", "chart.js", "curves.js", "answers.js", "aha.js", "costs.js", "main.js")


def render(made: Sequence[RunReport]) -> str:
    """The HTML of one run or several."""
    style, script = _asset("style.css"), "".join(map(_asset, SCRIPTS))
    runs = [numbers for numbers, _ in made]
    page: str = _template().render(
        runs=runs,
        verdicts=_verdicts([numbers["result"] for numbers in runs]),
        style=style,
        script=script,
        policy=_policy(style, script),
        data=serialize.encode(_data(made)),
    )
    return page.encode("utf-8", "replace").decode()  # a name from a file system may hold half a character


def _data(made: Sequence[RunReport]) -> dict[str, Any]:
    """What the scripts draw."""
    charts = curves.charts([beside["curves"] for _, beside in made])
    return {"charts": charts, "runs": [{key: n[key] for key in READ} | beside for n, beside in made]}


def _verdicts(results: Sequence[Line]) -> list[str]:
    """What the comparison has columns for: the verdicts that a run has, a second opinion only where it is
    not lenient once more."""
    found = [each for r in results for each in (r["before"], r["after"]) if each]
    again = all(each["second_opinion"] in (each["lenient"], None) for each in found)
    names = result.VERDICTS[: 2 if again else 3]
    return [name for name in names if any(each[name] is not None for each in found)]


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "p": result.p_value,
        "place": lambda share: f"{100 * share:.2f}%",
        "harmless": harmless,
        "words": lambda name: name.replace("_", " "),
        "tight": lambda text: text.replace("p = ", "p\u00a0=\u00a0"),
    }
    return environment.from_string(_asset("page.html"))


@cache
def _asset(name: str) -> str:
    return (files("reinforce_lite") / "report" / "static" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """The Content-Security-Policy: these two texts may act, and nothing may be fetched."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
