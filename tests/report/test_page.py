"""The page as HTML: its text is inert, it fetches nothing."""

import json
import re
from pathlib import Path

import pytest

from helpers import run_files as runs
from helpers.run_files import HOSTILE, ONE_RIGHT, SEVEN_RIGHT, hostile, step
from reinforce_lite.report.write import write_report


@pytest.mark.case(26)
def test_page_text_is_never_html(tmp_path: Path) -> None:
    write_report([hostile(tmp_path / "<b>a")], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2  # the data and our own
    assert page.count("</script") == 2
    assert "<img" not in page
    assert "<b>a" not in page
    assert "onerror=window.__hit=1" in page  # it is there, as JSON
    embedded = re.search(r'<script type="application/json" id="data">(.+?)</script>', page, re.DOTALL)
    assert embedded is not None
    assert embedded[1].isascii()
    assert not set("<>&") & set(embedded[1])
    shown = json.loads(embedded[1])["runs"][0]["groups"][0]["completions"][0]
    assert (shown["text"], shown["extracted"], shown["fault"]) == (f"Wait {HOSTILE}", HOSTILE, HOSTILE)


@pytest.mark.case(26)
def test_page_may_fetch_nothing(tmp_path: Path) -> None:
    write_report([runs.finished(tmp_path / "a", (ONE_RIGHT, SEVEN_RIGHT))], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1]
    assert "unsafe" not in policy[1]
    assert not re.search(r'(?:src|href)="(?!#)', page)


def test_page_shows_warnings_of_a_run_in_progress(tmp_path: Path) -> None:
    """Ten steps that earn 0.9 and ten that earn 0.1."""
    lines = [step(n, reward=0.9 if n <= 10 else 0.1) for n in range(1, 21)]
    run = runs.write(tmp_path / "a", lines)
    assert not run.summary
    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<p class="warning">the reward collapsed: 0.90 over steps 1 to 10, 0.10 over the last 10' in page
