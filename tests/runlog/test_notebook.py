"""What a notebook shows of a run, by hand; nothing that others wrote acts on the page."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from helpers import run_files as runs
from helpers.run_files import ONE_RIGHT, SEVEN_RIGHT, step
from reinforce_lite.errors import UsageError
from reinforce_lite.runlog.notebook import run_html
from reinforce_lite.runlog.run import Run

EVIL = "</b><script>alert(1)</script>\x1b[31m\u202e"


def accuracy(strict: float, **others: Any) -> dict[str, Any]:
    return {"strict": strict, "strict_interval": [0.2, 0.345], "lenient": None, "n": 200} | others


def parsed(html: str) -> ET.Element:
    """Fails where it is not well-formed."""
    return ET.fromstring(html)  # noqa: S314 -- our own


def cells(html: str) -> list[list[str]]:
    """The texts of a table, by row."""
    return [["".join(cell.itertext()) for cell in row] for row in parsed(html).iter("tr")]


def test_accuracy_before_and_after() -> None:
    second = {"second_opinion": 0.5, "second_opinion_interval": [0.4, 0.6]}
    html = run_html("mine", {"before": accuracy(0.275, **second), "after": accuracy(0.61, **second)}, [])
    assert cells(html) == [
        ["accuracy on test problems", "before (n = 200)", "after (n = 200)"],
        ["strict", "27.5% (20–35%)", "61.0% (20–35%)"],
        ["second opinion", "50.0% (40–60%)", "50.0% (40–60%)"],
    ]
    lenient = {"lenient": 0.3, "lenient_interval": [0.2, 0.4]}
    assert cells(run_html("mine", {"before": accuracy(0.275, **lenient)}, []))[1:] == [
        ["strict", "27.5% (20–35%)"],
        ["lenient", "30.0% (20–40%)"],
    ]


def points(html: str) -> list[tuple[float, float]]:
    (line,) = re.findall(r'<polyline points="(.*?)"', html)
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.split())]


def test_curve_by_hand() -> None:
    """480 pixels from the first step to the last, right of 40; 100 pixels from 1 down to 0, below 20."""
    html = run_html("mine", {}, [(1, 0.0), (2, 0.5), (5, 1.0)])
    assert points(html) == [(40, 120), (160, 70), (520, 20)]
    assert "<circle" not in html
    assert "not ended" in html
    assert {"step 1", "step 5", "0%", "100%"} <= set(parsed(html).itertext())
    single = run_html("mine", {}, [(3, 0.25)])
    assert points(single) == [(40, 95)]
    assert '<circle cx="40.0" cy="95.0"' in single
    assert "<svg" not in run_html("mine", {}, [])


def test_names_are_harmless() -> None:
    html = run_html(EVIL, {}, [(1, 0.5)], f"../{EVIL}/report.html")
    parsed(html)
    assert "<script" not in html
    assert not {"\x1b", "\u202e"} & set(html)
    assert 'href="../%3C/b%3E%3Cscript%3E' in html


def test_a_run_shows_its_files(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.finished(in_tmp / "runs" / "a", (ONE_RIGHT, SEVEN_RIGHT))
    figures = {key: accuracy(0.125) for key in ("before", "after")}
    run.write_json("summary", {"steps": 2, "stopped": "steps", "evals": figures})
    run.write("report.html", "")
    (in_tmp / "notebooks").mkdir()
    monkeypatch.chdir("notebooks")  # a notebook's links start at its own folder, the current one
    html = run._repr_html_()
    assert ': 2 steps, <a href="../runs/a/report.html">report</a>' in html
    assert cells(html)[1] == ["strict", "12.5% (20–35%)", "12.5% (20–35%)"]
    assert len(points(html)) == 2


def test_curve_of_a_metric(tmp_path: Path) -> None:
    lines = [step(1, entropy=0.3), step(2, entropy=None), step(3, entropy=0.1, **{"accuracy/strict": 0.75})]
    run = runs.write(tmp_path / "a", lines)
    assert run.curve() == [(1, 0.5), (2, 0.5), (3, 0.75)]
    assert run.curve("entropy") == [(1, 0.3), (3, 0.1)]
    assert run.curve("completions/repetition_ratio") == []  # not in these lines
    with pytest.raises(UsageError) as caught:
        run.curve("acuracy/strict")
    assert caught.value.remedy == "did you mean 'accuracy/strict'?"
    assert Run(tmp_path / "none").curve() == []
