"""Completions as the page holds them."""

from pathlib import Path
from typing import Any

import pytest

from helpers import run_files as runs
from helpers.run_files import completion, eval_completions, step
from reinforce_lite.report import serialize
from reinforce_lite.report.build import build_report
from reinforce_lite.report.write import write_report

F, T = False, True


def test_clip_keeps_beginning_and_end() -> None:
    assert serialize.clip("a" * 6000) == "a" * 6000
    assert serialize.clip("a" * 3000 + "b" * 10 + "c" * 3000) == (
        "a" * 3000 + "\n[… 10 characters omitted …]\n" + "c" * 3000
    )


@pytest.mark.parametrize("value", [72, None])
def test_text_fields_may_be_numbers_or_none(value: int | None, tmp_path: Path) -> None:
    """A user's task may have written golds that are not text."""
    fields: dict[str, Any] = {
        "gold": value,
        "answer": value,
        "reason": value,
        "completion": "It is 71. Wait, 72.",
    }
    run = runs.write(
        tmp_path / "a",
        [step(1)],
        [completion(1, "p", **fields)],
        [eval_completions(at, [T], **fields) for at in (0, 1)],
    )
    write_report([run], tmp_path / "report.html")
    details, text = build_report(run).details, None if value is None else str(value)
    for key in ("groups", "eval_history", "excerpts"):
        assert details[key][0]["gold"] == text
    shown = details["groups"][0]["completions"][0]
    assert (shown["extracted"], shown["reason"]) == (text, text)
    assert details["excerpts"][0]["kind"] == ("right" if value is None else "corrected")
