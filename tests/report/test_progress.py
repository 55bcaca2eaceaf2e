"""The trend of a run without a result: what is claimed of it, and what is not."""

from pathlib import Path
from typing import Any

import pytest

from helpers import run_files as runs
from helpers.run_files import completion, step, summary_of
from reinforce_lite.runlog.records import Record

QUESTIONS = 40


def sentence_and_notes(
    path: Path, shares: list[int], reward: float = 1.0, config: str = "", **fields: Any
) -> list[str]:
    """Of a run with 40 questions a step, one completion each, of which `shares[i]` are right in step i + 1."""
    rollouts: list[Record] = [
        completion(at, f"{at}-{i}", i < right, reward=reward * (i < right), **fields)
        for at, right in enumerate(shares, 1)
        for i in range(QUESTIONS)
    ]
    run = runs.write(path, [step(at) for at in range(1, len(shares) + 1)], rollouts, planned=30)
    text = (run.path / "config.toml").read_text(encoding="utf-8")
    (run.path / "config.toml").write_text(text.replace("[rollout]", f"[rollout]\n{config}"), encoding="utf-8")
    result = summary_of(run)["result"]
    return [result["sentence"], *result["notes"]]


def test_a_rise_is_claimed_with_its_interval(tmp_path: Path) -> None:
    """20% of 80 questions, then 50% of 80. By hand: 0.3 ± 1.96 sqrt((0.16 + 0.25) / 79) = 0.3 ± 0.1412."""
    sentence, note = sentence_and_notes(tmp_path / "a", [8, 8, 20, 20])
    assert sentence == (
        "No result yet, after 4 of 30 steps. Training accuracy was 20.0% over the first 2 steps and 50.0% over the "
        "last, a rise, more than chance explains."
    )
    assert note.endswith(
        "steps: +30.0 points, 95% interval +15.9 points to +44.1 points, from 80 and 80 questions."
    )


def test_a_fall_is_claimed_too(tmp_path: Path) -> None:
    assert "a fall, more than chance explains" in sentence_and_notes(tmp_path / "a", [20, 8])[0]


def test_a_change_within_its_interval_is_no_trend(tmp_path: Path) -> None:
    """0.1 ± 1.96 sqrt((0.16 + 0.21) / 39) = 0.1 ± 0.191"""
    sentence, note = sentence_and_notes(tmp_path / "a", [8, 12])
    assert "over the first step and 30.0% over the last, not more than chance explains." in sentence
    assert "interval −9.1 points to +29.1 points" in note


def test_completions_of_one_question_are_no_evidence_of_their_own(tmp_path: Path) -> None:
    """Two questions a step with 20 equal completions each: 40 completions, but two draws, too few to tell."""
    rollouts = [
        completion(at, f"{at}-{q}", right, sample)
        for at, right in ((1, False), (2, True))
        for q in range(2)
        for sample in range(20)
    ]
    sentence = summary_of(runs.write(tmp_path / "a", [step(1), step(2)], rollouts))["result"]["sentence"]
    assert "So far training accuracy is 50.0% over 4 questions, too early to tell a trend." in sentence


def test_graded_rewards_have_a_trend_of_their_own(tmp_path: Path) -> None:
    """The reward is 0.5 for a right completion: from 0.1 to 0.25."""
    sentence, note = sentence_and_notes(tmp_path / "a", [8, 20], reward=0.5)
    assert "Mean reward was 0.1 over the first step and 0.25 over the last, a rise" in sentence
    assert ": +0.15, 95%" in note


def test_completions_whose_reward_failed_do_not_count(tmp_path: Path) -> None:
    """Nor does a question all of whose rewards failed."""
    failed = [completion(1, "q", False, i, reward=0.5, fault="no") for i in range(2)]
    lines = [completion(1, "p", False, 0, reward=0.5, fault="no"), completion(1, "p", True, 1)]
    run = runs.write(tmp_path / "a", [step(1)], [*lines, *failed])
    assert "training accuracy is 100.0% over 1 question" in summary_of(run)["result"]["sentence"]
    run = runs.write(tmp_path / "b", [step(1)], failed)
    assert "accuracy" not in summary_of(run)["result"]["sentence"]


def test_adaptive_selection_has_no_trend(tmp_path: Path) -> None:
    sentence, note = sentence_and_notes(tmp_path / "a", [8, 20], config='selection = "adaptive"')
    assert sentence == "No result yet, after 2 of 30 steps."
    assert "adaptive selection" in note


@pytest.mark.parametrize("n", [1, 25])
def test_windows_are_halves_and_at_most_ten_steps(n: int, tmp_path: Path) -> None:
    sentence = sentence_and_notes(tmp_path / "a", [8] * n)[0]
    expected = {1: "20.0% over 40 questions, too early", 25: "over the first 10 steps"}
    assert expected[n] in sentence
