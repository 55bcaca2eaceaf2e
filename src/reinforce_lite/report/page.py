"""The page: the template with its style and scripts inlined, and the data as inert JSON.

No text of a model or a user becomes HTML: the template escapes what it prints, the scripts only set text, and
the Content-Security-Policy allows only the style and script whose hashes it names, and no network request.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment

from reinforce_lite.evaluation.statistics import VERDICTS, format_p
from reinforce_lite.report import curves, serialize
from reinforce_lite.report.build import RunReport
from reinforce_lite.report.comparison import build_comparison
from reinforce_lite.runlog.records import Record
from reinforce_lite.utils.secrets import mask_all
from reinforce_lite.utils.text import harmless, interval, percent, points

SUMMARY_KEYS = ("name", "audit", "reflection", "costs", "completions")
"""What the scripts read of a run's summary; the template reads the rest."""
SCRIPTS = (
    "dom.js",
    "chart.js",
    "curves.js",
    "audit.js",
    "advantages.js",
    "completions.js",
    "reflection.js",
    "costs.js",
    "main.js",
)


def render(reports: Sequence[RunReport]) -> str:
    """The HTML of one run or several."""
    style, script = _asset("style.css"), "".join(map(_asset, SCRIPTS))
    runs = mask_all([report.summary for report in reports])
    drawn = {
        "charts": curves.charts([report.details["curves"] for report in reports]),
        "runs": [{key: r.summary[key] for key in SUMMARY_KEYS} | r.details for r in reports],
    }
    page: str = _template().render(
        runs=runs,
        comparison=mask_all(build_comparison([report.compared for report in reports])),
        verdicts=_verdicts([summary["result"] for summary in runs]),
        style=style,
        script=script,
        policy=_content_security_policy(style, script),
        data=serialize.to_json(mask_all(drawn)),
    )
    return page.encode("utf-8", "replace").decode()  # a name from a file system may hold a lone surrogate


def _verdicts(results: Sequence[Record]) -> list[str]:
    """The verdicts that the comparison has columns for: those of any run, and a second opinion only if it
    differs from lenient."""
    evals = [e for r in results for e in (r["before"], r["after"]) if e]
    redundant = all(e["second_opinion"] in (e["lenient"], None) for e in evals)
    names = VERDICTS[: 2 if redundant else 3]
    return [name for name in names if any(e[name] is not None for e in evals)]


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "points": points,
        "p": format_p,
        "position": lambda share: f"{100 * share:.2f}%",
        "harmless": harmless,
        "words": lambda name: name.replace("_", " "),
        "unbroken": _unbroken,
    }
    return environment.from_string(_asset("page.html"))


def _unbroken(text: str) -> str:
    """Keep each p-value on one line: with no-break spaces and hyphens."""
    return re.sub("p [=<] [0-9.e-]+", lambda m: m[0].replace(" ", "\u00a0").replace("-", "\u2011"), text)


@cache
def _asset(name: str) -> str:
    return (files("reinforce_lite") / "report" / "static" / name).read_text(encoding="utf-8")


def _content_security_policy(style: str, script: str) -> str:
    """Allow these two texts to act, and nothing to be fetched."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
