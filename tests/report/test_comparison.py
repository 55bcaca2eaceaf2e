"""Several runs compared: the settings that differ, and accuracy on the same test problems."""

from pathlib import Path
from typing import Any

import pytest

from helpers import run_files as runs
from helpers.run_files import eval_completions, step
from reinforce_lite.report.build import build_report
from reinforce_lite.report.comparison import build_comparison, differing_settings
from reinforce_lite.runlog.records import Record

F, T = False, True


def compared(tmp_path: Path, *afters: list[bool], **fields: Any) -> list[Record]:
    """The differences of runs with these test verdicts after step 1; without any, the run is unfinished."""
    reports = []
    for i, after in enumerate(afters):
        evaluations = [eval_completions(0, [F] * 8), *([eval_completions(1, after)] if after else [])]
        reports.append(build_report(runs.write(tmp_path / f"run{i}", [step(1)], evaluations=evaluations)))
    differences: list[Record] = build_comparison([report.compared for report in reports])["differences"]
    return differences


def test_difference_is_paired_by_problem(tmp_path: Path) -> None:
    """6 of 8 problems are right in the second alone, one in the first alone: 50% and 12.5% of accuracy are not enough
    to tell. McNemar: 2 (1 + 7) / 2^7. Interval: 7/10 - 2/10 ± 1.95996 sqrt((0.9 - 0.25) / 10) = 0.5 ± 0.4997."""
    [difference] = compared(tmp_path, [T, *[F] * 7], [F, *[T] * 6, F])
    assert difference.pop("interval") == pytest.approx((0.0003, 0.9997), abs=1e-4)
    assert difference == {
        "first": "run0",
        "other": "run1",
        "n": 8,
        "change": 5 / 8,
        "only_first": 1,
        "only_other": 6,
        "p": 0.125,
        "chance": "not more than chance explains",
    }


def test_each_run_is_compared_with_the_first_measured_one(tmp_path: Path) -> None:
    found = compared(tmp_path, [], [T] * 8, [F] * 8, [T] * 8)
    assert [(d["first"], d["other"], d["change"]) for d in found] == [
        ("run1", "run2", -1),
        ("run1", "run3", 0),
    ]
    assert found[0]["chance"] == "more than chance explains"


def test_only_common_problems_are_compared(tmp_path: Path) -> None:
    """The ids are the same, the questions are not, but for the first."""
    names = ("same", *"abcdefg")
    questions = [[f"{name}{i if name != 'same' else ''}" for name in names] for i in (1, 2)]
    reports = [
        build_report(
            runs.write(
                tmp_path / str(i),
                [step(1)],
                evaluations=[eval_completions(at, [T] * 8, question=asked) for at in (0, 1)],
            )
        ).compared
        for i, asked in enumerate(questions)
    ]
    assert build_comparison(reports)["differences"][0]["n"] == 1
    other = reports[1]._replace(verdicts={("1", "another"): True})
    assert build_comparison([reports[0], other])["differences"] == [{"first": "0", "other": "1", "n": 0}]


def test_settings_that_differ(tmp_path: Path) -> None:
    first = {"train": {"seed": 0, "steps": 9}, "task": {"name": "gsm8k"}, "log": {"trackers": []}}
    second = {
        "train": {"seed": 1, "steps": 9},
        "task": {"name": "gsm8k", "level": 2},
        "log": {"trackers": ["wandb"]},
    }
    assert differing_settings([first, second, first]) == [
        {"name": "train.seed", "values": ["0", "1", "0"]},
        {"name": "log.trackers", "values": ["[]", '["wandb"]', "[]"]},
        {"name": "task.level", "values": ["–", "2", "–"]},
    ]
    assert differing_settings([first, first]) == []


def test_a_long_setting_is_shortened_and_still_compared() -> None:
    texts = [{"prompt": {"system": "x" * 200 + end}} for end in "ab"]
    [setting] = differing_settings(texts)
    assert setting["name"] == "prompt.system"
    assert [len(value) for value in setting["values"]] == [80, 80]
