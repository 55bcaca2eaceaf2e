"""The page of promises: up to date, and each promise has a test."""

import runpy

from helpers.paths import ROOT

SCRIPT = runpy.run_path(str(ROOT / "docs" / "reliability.py"))


def test_page_is_what_its_script_writes() -> None:
    assert SCRIPT["PAGE"].read_text(encoding="utf-8") == SCRIPT["page"](), "run docs/reliability.py"


def test_every_promise_has_a_test_and_every_marked_test_a_promise() -> None:
    rows = SCRIPT["rows"]()
    assert rows == list(range(1, len(rows) + 1))
    assert sorted(SCRIPT["tests_by_row"]()) == rows
