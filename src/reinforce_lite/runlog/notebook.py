"""What a notebook shows of a run: accuracy before and after, the curve, the link to the report.

HTML and SVG without scripts, styles or colours of its own, so that it fits a light and a dark notebook.
Everything else is in the report.
"""

from collections.abc import Mapping, Sequence
from html import escape
from os import fsencode
from typing import Any
from urllib.parse import quote

from reinforce_lite.evaluation.statistics import constant_hint, control_verdict
from reinforce_lite.utils.text import harmless, interval, percent

WIDTH, HEIGHT, LEFT, BELOW = 480, 100, 40, 20
"""Pixels of the curve, and of the room for the labels on its left and below."""


def run_html(
    name: str, evals: Mapping[str, Any], curve: Sequence[tuple[int, float]], report: str = ""
) -> str:
    """A run: the `evals` of its summary, its curve of shares, and the path of its report if it has one."""
    link = f', <a href="{escape(quote(fsencode(report)))}">report</a>' if report else ""
    steps = f"{curve[-1][0] if curve else 0} steps"
    parts = [f"<p><b>{_text(name)}</b>: {steps}{link}</p>", _table(evals), _curve(curve)]
    return f"<div>{''.join(parts)}</div>"


def _table(evals: Mapping[str, Any]) -> str:
    """Accuracy on the test problems, as far as measured."""
    moments = [moment for moment in ("before", "after") if moment in evals]
    if not moments:
        return "<p>not evaluated, or not ended yet</p>"
    rows = [["accuracy on test problems", *(f"{moment} (n = {evals[moment]['n']})" for moment in moments)]]
    for kind in ("strict", control_verdict(evals[moments[0]].get("lenient"))):
        cells = [_accuracy(evals[moment], kind) for moment in moments]
        rows += [[kind.replace("_", " "), *cells]] if any(cells) else []
    lines = ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    table = f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
    constant = constant_hint(evals[moments[-1]])
    return f"{table}<p>{_text(constant)}</p>" if constant else table


def _accuracy(figures: Mapping[str, Any], kind: str) -> str:
    share = figures.get(kind)
    return "" if share is None else f"{percent(share)} {interval(figures[f'{kind}_interval'])}"


def _curve(curve: Sequence[tuple[int, float]]) -> str:
    """A line over the steps, from 0 at the bottom to 1 at the top; a dot for a single step."""
    if not curve:
        return ""
    first, last = curve[0][0], curve[-1][0]
    across = WIDTH / max(1, last - first)
    points = [(LEFT + (step - first) * across, BELOW + HEIGHT * (1 - share)) for step, share in curve]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    labels = [
        (LEFT, BELOW - 8, "start", "accuracy (strict) of the completions sampled in training"),
        (LEFT - 4, BELOW + 10, "end", "100%"),
        (LEFT - 4, BELOW + HEIGHT, "end", "0%"),
        (LEFT, 2 * BELOW + HEIGHT - 4, "start", f"step {first}"),
        (LEFT + WIDTH, 2 * BELOW + HEIGHT - 4, "end", f"step {last}"),
    ]
    texts = [f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>' for x, y, anchor, text in labels]
    dot = f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/>' if len(points) == 1 else ""
    return (
        f'<svg width="{LEFT + WIDTH + 4}" height="{2 * BELOW + HEIGHT}" fill="currentColor" font-size="11">'
        f'<path d="M{LEFT} {BELOW}v{HEIGHT}h{WIDTH}" fill="none" stroke="currentColor" opacity="0.4"/>'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/>{dot}'
        f"{''.join(texts)}</svg>"
    )


def _text(text: str) -> str:
    return escape(harmless(text))
