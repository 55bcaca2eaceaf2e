"""A run's figures in words: each sentence has the numbers that the files have."""

import json
from pathlib import Path

import pytest

from helpers import run_files as runs
from reinforce_lite.runlog.diagnosis import diagnose
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.summary import summarize


def write(folder: Path, steps: int, **changes: object) -> Run:
    lines = [runs.step(n, **changes) for n in range(1, steps + 1)]
    completions = [runs.completion(n, "p") for n in range(1, max(1, steps) + 1)]
    return runs.write(folder, lines, completions)


def test_a_healthy_run(tmp_path: Path) -> None:
    diagnosis = diagnose(write(tmp_path / "a", 20))
    text = " ".join(diagnosis.figures)
    assert "20 of 20 steps" in text
    assert "from 0.50 over the first 10 steps to 0.50" in text
    assert "25% of the last groups" in text
    assert "20 tokens on average; 0% are cut" in text
    assert "40% sampling, 50% updating, 10% in the reward" in text
    assert "3.0 GB" in text
    assert diagnosis.problems == []


def test_completions_that_repeat_themselves_are_told_from_those_at_the_limit(tmp_path: Path) -> None:
    shares = {"completions/clipped_ratio": 0.5, "completions/repetition_ratio": 0.2}
    text = " ".join(diagnose(write(tmp_path / "a", 20, **shares)).figures)
    assert "30% are cut at the limit, 20% where they repeat themselves" in text


def test_a_run_without_signal_is_told_so_by_the_rules_of_health(tmp_path: Path) -> None:
    run = write(tmp_path / "a", 12, frac_reward_zero_std=0.9, **{"accuracy/strict": 0.02})
    (problem,) = diagnose(run).problems
    assert "no signal" in problem
    assert "90%" in problem


def test_warm_start_is_told_by_itself(tmp_path: Path) -> None:
    lines = [runs.step(n, warm_start=n < 5, updated=n != 2, frac_reward_zero_std=0.9) for n in range(1, 7)]
    run = runs.write(tmp_path / "a", lines, [runs.completion(n, "p") for n in range(1, 7)])
    text = " ".join(diagnose(run).figures)
    assert (
        "4 of the steps were a warm start, which learns from right completions alone (50.0% of those sampled); 1 of"
        in text
    )
    assert "In 90% of the last groups" in text
    only_warm = runs.write(tmp_path / "b", lines[:3], [runs.completion(n, "p") for n in range(1, 4)])
    assert "last groups" not in " ".join(diagnose(only_warm).figures)


def test_with_refill_the_last_groups_are_counted_not_the_steps(tmp_path: Path) -> None:
    """6 of 8 groups and 1 of 2: 70% of ten."""
    groups = enumerate([(8, 0.75), (2, 0.5)], 1)
    lines = [
        runs.step(n, questions_asked=asked, frac_reward_zero_std=silent) for n, (asked, silent) in groups
    ]
    run = runs.write(tmp_path / "a", lines, [runs.completion(n, "p") for n in (1, 2)])
    assert "In 70% of the last groups" in " ".join(diagnose(run).figures)


def test_a_reward_that_failed_is_a_problem(tmp_path: Path) -> None:
    (problem,) = diagnose(write(tmp_path / "a", 3, reward_faults=2)).problems
    assert "6 completions" in problem


@pytest.mark.parametrize("left", [0, 2])
def test_lines_that_were_lost_are_told(tmp_path: Path, left: int) -> None:
    steps = [runs.step(n) for n in range(1, 5)]
    run = runs.write(tmp_path / "a", steps, [runs.completion(n, "p") for n in range(1, 5)], stopped="steps")
    lines = (run.path / "steps.jsonl").read_text().splitlines(keepends=True)
    (run.path / "steps.jsonl").write_text("".join(reversed(lines[:left])))
    found = diagnose(run)
    assert found.figures[0].startswith("4 of 4 steps")
    assert any(f"lacks {4 - left} of the 4 steps" in problem for problem in found.problems)


def test_a_run_that_has_just_started(tmp_path: Path) -> None:
    run = write(tmp_path / "a", 0)
    (run.path / "summary.json").unlink(missing_ok=True)
    diagnosis = diagnose(run)
    assert "0 of" in diagnosis.figures[0]
    assert "--resume" in diagnosis.next


def test_a_run_whose_numbers_were_not_finite_is_not_resumed(tmp_path: Path) -> None:
    run = write(tmp_path / "a", 3)
    run.write_json("summary", {"steps": 3, "stopped": "not finite"})
    assert "lower update.learning_rate" in diagnose(run).next


@pytest.mark.parametrize(("constant", "told"), [(0.52, False), (0.54, True)])
def test_accuracy_that_one_answer_would_reach_is_told(constant: float, told: bool, tmp_path: Path) -> None:
    """7 of 8 are right after, 52.9% at the lower end of Wilson's interval."""
    lines = [runs.step(n) for n in (1, 2)]
    evaluations = [runs.eval_completions(0, runs.ONE_RIGHT), runs.eval_completions(2, runs.SEVEN_RIGHT)]
    run = runs.write(tmp_path / "a", lines, [runs.completion(n, "p") for n in (1, 2)], evaluations, "steps")
    evals = [json.dumps(line | {"best_constant": constant}) + "\n" for line in run.evals]
    (run.path / "evals.jsonl").write_text("".join(evals))
    text = " ".join(diagnose(run).figures)
    assert (f"Giving one and the same answer to every question would reach {constant:.1%}" in text) == told


def test_a_run_whose_evaluations_were_damaged_is_summarized(tmp_path: Path) -> None:
    """Without the lines on validation no step is the best; without a verdict after it, none is compared."""
    before = runs.eval_completions(0, runs.ONE_RIGHT)
    after = runs.eval_completions(1, runs.SEVEN_RIGHT, lenient=None)
    run = runs.write(tmp_path / "a", [runs.step(1)], [runs.completion(1, "p")], [before, after], "steps")
    assert summarize(run, run.config, 1)["best_step"] is None
    assert "12.5% (2–47%) of 8 test problems are right (lenient)" in " ".join(diagnose(run).figures)
    assert runs.summary_of(run)["result"]["other"] is None


def test_an_evaluation_that_lost_completions_is_not_compared(tmp_path: Path) -> None:
    """Of eight completions after training three are left, all right as before."""
    evaluations = [runs.eval_completions(0, runs.ONE_RIGHT), runs.eval_completions(1, runs.SEVEN_RIGHT)]
    run = runs.write(tmp_path / "a", [runs.step(1)], [runs.completion(1, "p")], evaluations, "steps")
    p = summarize(run, run.config, 1)["evals"]["paired_p"]
    assert p["strict"] == runs.summary_of(run)["result"]["p"]["strict"] == pytest.approx(0.03125)
    assert diagnose(run).problems == []
    file = run.path / "eval_rollouts.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:11]))
    assert summarize(run, run.config, 1)["evals"]["paired_p"] == dict.fromkeys(p)
    assert runs.summary_of(run)["result"]["p"]["strict"] is None
    assert "chance" not in " ".join(diagnose(run).figures)
    (problem,) = diagnose(run).problems
    assert "lacks completions of 1 of the 2 evaluations" in problem


def test_a_damaged_line_does_not_hide_what_a_run_reached(tmp_path: Path) -> None:
    lines, rollouts = [runs.step(n) for n in (1, 2, 3)], [runs.completion(n, "p") for n in (1, 2, 3)]
    evaluations = [runs.eval_completions(0, runs.ONE_RIGHT), runs.eval_completions(3, runs.SEVEN_RIGHT)]
    run = runs.write(tmp_path / "a", lines, rollouts, evaluations, "steps")
    file = run.path / "steps.jsonl"
    first, _, last = file.read_text().splitlines(keepends=True)
    file.write_text(f"{first}{{broken\n{last}")
    text = " ".join(diagnose(run).figures)
    assert "3 of 3 steps" in text
    assert "87.5%" in text  # seven of eight after the last step
