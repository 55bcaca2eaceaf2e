"""Which completions a page shows: spread over steps and outcomes, bounded in number and bytes."""

from pathlib import Path
from random import Random
from typing import Any

import pytest

from helpers import run_files as runs
from helpers.run_files import completion, eval_completions, step
from reinforce_lite.report import selection, serialize
from reinforce_lite.report.build import build_report
from reinforce_lite.runlog.records import Record

F, T = False, True


def problem_of(item: Record) -> str:
    """The problem of a group or of a held-out question."""
    return str(item["question"]).removeprefix("What is ").removesuffix("?")


def group(at: int, problem: str, **changes: Any) -> list[Record]:
    return [completion(at, problem, changes.pop("right", F), 0, **changes), completion(at, problem, F, 1)]


def test_selection_is_everything_that_fits(tmp_path: Path) -> None:
    rollouts = [line for at in (1, 2) for q in ("p", "q") for line in group(at, q)]
    summary, details, _ = build_report(runs.write(tmp_path / "a", [step(1), step(2)], rollouts))
    assert (summary["completions"]["training"], summary["completions"]["training_shown"]) == (8, 8)
    assert [(g["step"], problem_of(g), len(g["completions"])) for g in details["groups"]] == [
        (1, "p", 2),
        (1, "q", 2),
        (2, "p", 2),
        (2, "q", 2),
    ]


def test_selection_is_spread_over_steps_and_most_interesting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for 6 groups of 2: one of each of 4 steps, the most interesting of the first and the last;
    then a random one of the first and of the last."""
    monkeypatch.setattr(selection, "MAX_TRAINING", 12)
    monkeypatch.setattr(Random, "randrange", lambda _, n: n - 1)
    rollouts = []
    for at in (1, 2, 3, 4):
        rollouts += group(at, f"plain-{at}") + group(at, f"truncated-{at}", truncated=True)
        rollouts += group(at, f"mixed-{at}", right=T)
        if at == 4:
            rollouts += group(at, "hit-4", completion="Wait.")
    run = runs.write(tmp_path / "a", [step(n) for n in (1, 2, 3, 4)], rollouts)
    summary, details, _ = build_report(run)
    assert [problem_of(g) for g in details["groups"]] == [
        *("plain-1", "mixed-1", "plain-2", "plain-3", "plain-4", "hit-4"),
    ]
    assert (summary["completions"]["training_shown"], summary["completions"]["training"]) == (12, 26)
    assert (summary["completions"]["steps_shown"], summary["completions"]["steps"]) == (4, 4)


def test_selection_has_ordinary_groups_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one group of each of 200 steps: 100 start with the one interesting group of their 10. The others
    start with a random one, which is the interesting one 10 times on average (standard deviation 3)."""
    monkeypatch.setattr(selection, "MAX_TRAINING", 1600)
    groups = [
        selection.GroupStats(i, i // 10, 8, 1, (i % 10 == 3, False, False), 0.0, 0.0) for i in range(2000)
    ]
    selected = selection.select_groups(groups)
    assert len({index // 10 for index in selected}) == len(selected) == 200
    assert 100 <= sum(index % 10 == 3 for index in selected) < 125
    assert selection.select_groups(groups) == selected  # a report that is rewritten shows the same groups


def test_spread_order_starts_with_first_and_last() -> None:
    assert selection.spread_order(9)[:5] == [0, 8, 4, 2, 6]
    assert sorted(selection.spread_order(10)) == list(range(10))
    assert selection.spread_order(1) == [0]
    assert selection.spread_order(0) == []


def test_problem_sampled_twice_in_a_step_makes_two_groups(tmp_path: Path) -> None:
    rollouts = [completion(1, "p", F, s) for s in (0, 1)] * 2
    assert len(build_report(runs.write(tmp_path / "a", [step(1)], rollouts)).details["groups"]) == 2


def test_selection_of_questions_is_balanced_over_outcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for three problems of two completions: one each of 2 gained, 1 lost and 4 still wrong."""
    monkeypatch.setattr(selection, "MAX_EVALUATION", 6)
    run = runs.finished(tmp_path / "a", ([F, F, T, F, F, F, F], [T, T, F, F, F, F, F]))
    summary, details, _ = build_report(run)
    assert [problem_of(q) for q in details["eval_history"]] == ["test-0", "test-2", "test-3"]
    assert [[(a["step"], a["strict"]) for a in q["completions"]] for q in details["eval_history"]] == [
        [(0, F), (2, T)],
        [(0, T), (2, F)],
        [(0, F), (2, F)],
    ]
    assert (summary["completions"]["questions_shown"], summary["completions"]["questions"]) == (3, 7)


def test_selection_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An é takes 6 bytes in the page: a completion of 1,000 about 6,200, a question of 1,000 about 6,100."""
    monkeypatch.setattr(selection, "MAX_BYTES", 40_000)
    rollouts = [completion(n, f"p{n}", completion="é" * 1000, question="é" * 1000) for n in range(1, 10)]
    run = runs.write(tmp_path / "a", [step(n) for n in range(1, 10)], rollouts)
    assert [g["step"] for g in build_report(run).details["groups"]] == [1, 5, 9]


def test_selection_counts_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """512 times "wait" and an answer of 100 kB: the selection stays within its bytes."""
    monkeypatch.setattr(selection, "MAX_BYTES", 150_000)
    long: dict[str, Any] = {
        "completion": "wait " * 512,
        "answer": "9" * 100_000,
        "reason": "é" * 100_000,
        "fault": "x" * 100_000,
    }
    long |= {"question": "q" * 100_000, "gold": "g" * 100_000}
    rollouts = [completion(n, f"p{n}", n % 2 == 0, **long) for n in range(1, 9)]
    evaluations = [
        eval_completions(at, [F] * 8, split, **long) for at in (0, 8) for split in ("test", "validation")
    ]
    run = runs.write(tmp_path / "a", [step(n) for n in range(1, 9)], rollouts, evaluations)
    details = build_report(run).details
    assert details["groups"][0]["completions"][0]["hits"] == {"c": ["wait"]}
    for key in ("groups", "eval_history"):
        assert 100_000 < len(serialize.to_json(details[key])) <= 150_000
    for excerpt in details["excerpts"]:
        assert len(serialize.to_json(excerpt)) < 3 * 6_100 + 1_000


def test_selection_leaves_room_for_test_questions(tmp_path: Path) -> None:
    """101 evaluations: a validation question costs 101 of 2,000 completions, and all get at most half of these.

    Of 200 test questions one is gained; it must be shown.
    """
    validations = [eval_completions(at, [at > 0] * 40, "validation", completion="Wait.") for at in range(101)]
    tests = [eval_completions(0, [F] * 200), eval_completions(100, [F] * 199 + [T])]
    summary, details, _ = build_report(
        runs.write(tmp_path / "a", [step(100)], evaluations=validations[:1] + tests + validations[1:])
    )
    splits = [q["split"] for q in details["eval_history"]]
    assert (splits.count("validation"), splits.count("test")) == (9, 200)
    assert "test-199" in map(problem_of, details["eval_history"])
    assert summary["completions"]["questions"] == 240
