"""The result in a sentence: what counts as a gain, and what an unfinished run says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers import run_files as runs
from helpers.run_files import ONE_RIGHT, SEVEN_RIGHT, eval_completions, step, summary_of
from reinforce_lite.evaluation.statistics import format_p
from reinforce_lite.report.write import write_report

F, T = False, True


CLAIMS = {
    "better": "a gain, more than chance explains",
    "format": "perhaps only in format",
    "same": "training: not more than chance explains",
    "worse": "a loss, more than chance explains",
}


def figures_of(sentence: str) -> list[str]:
    """The percentages and p-values of a sentence, in order."""
    return re.findall(r"[\d.]+%|p = [\d.e-]*\d", sentence)


@pytest.mark.parametrize(
    ("strict", "lenient", "kind", "figures"),
    [
        (
            (ONE_RIGHT, SEVEN_RIGHT),
            None,
            "better",
            ["87.5%", "12.5%"],
        ),
        (
            (ONE_RIGHT, SEVEN_RIGHT),
            ([T] * 6 + [F] * 2, SEVEN_RIGHT),  # 1 gained, 0 lost: p = 2 x 1/2, at most 1
            "format",
            ["87.5%", "12.5%", "75.0%", "87.5%"],
        ),
        (
            (ONE_RIGHT, SEVEN_RIGHT),
            ([None] * 8, [None] * 8),
            "better",
            ["87.5%", "12.5%"],
        ),
        (
            (ONE_RIGHT, [T, T] + [F] * 6),
            None,
            "same",
            ["25.0%", "12.5%"],
        ),
        (
            (SEVEN_RIGHT, ONE_RIGHT),
            None,
            "worse",
            ["12.5%", "87.5%"],
        ),
    ],
)
def test_result_is_judged_by_paired_p_values(
    strict: tuple[list[bool], list[bool]],
    lenient: tuple[list[Any], list[Any]] | None,
    kind: str,
    figures: list[str],
    tmp_path: Path,
) -> None:
    result = summary_of(runs.finished(tmp_path / "a", strict, lenient))["result"]
    assert result["kind"] == kind
    assert figures_of(result["sentence"]) == figures
    assert result["sentence"].startswith("After 2 steps, smollm2-135m solves ")
    assert "of 8 test problems" in result["sentence"]
    assert CLAIMS[kind] in result["sentence"]


def test_p_values_are_small_print(tmp_path: Path) -> None:
    """6 of 8 gained, p = 2/2^6, of lenient 1 of 8: p = 1. Of too few problems, the print says what to do."""
    lenient = ([T] * 6 + [F] * 2, SEVEN_RIGHT)
    result = summary_of(runs.finished(tmp_path / "a", (ONE_RIGHT, SEVEN_RIGHT), lenient))["result"]
    assert "p =" not in result["sentence"]
    [note] = result["notes"]
    assert "strict p = 0.031, lenient p = 1." in note
    [_, hint] = summary_of(runs.finished(tmp_path / "b", (ONE_RIGHT, [T, T] + [F] * 6)))["result"]["notes"]
    assert hint == "n = 8 is small: --eval.n 200 tells more."


def test_strict_gain_with_a_lenient_loss_is_format(tmp_path: Path) -> None:
    """A lenient change beyond chance must be a rise to count as skill."""
    run = runs.finished(tmp_path / "a", (ONE_RIGHT, SEVEN_RIGHT), (SEVEN_RIGHT, ONE_RIGHT))
    assert summary_of(run)["result"]["kind"] == "format"


@pytest.mark.parametrize(("constant", "kind"), [(0.52, "better"), (0.54, "constant"), (0.95, "constant")])
def test_gain_that_one_answer_would_bring_too_is_told(constant: float, kind: str, tmp_path: Path) -> None:
    """7 of 8 are right after, 52.9% at the lower end of Wilson's interval."""
    run = runs.finished(tmp_path / "a", (ONE_RIGHT, SEVEN_RIGHT))
    lines = [json.dumps(line | {"best_constant": constant}) + "\n" for line in run.evals]
    (run.path / "evals.jsonl").write_text("".join(lines))
    result = summary_of(run)["result"]
    assert result["kind"] == kind
    assert (f"would reach {constant:.1%}" in result["sentence"]) == (kind == "constant")


def test_accuracy_without_a_gain_is_compared_with_one_answer_in_the_small_print(tmp_path: Path) -> None:
    run = runs.finished(tmp_path / "a", (ONE_RIGHT, [T, T] + [F] * 6))
    lines = [json.dumps(line | {"best_constant": 0.3}) + "\n" for line in run.evals]
    (run.path / "evals.jsonl").write_text("".join(lines))
    result = summary_of(run)["result"]
    assert result["kind"] == "same"
    assert "would reach 30.0%" in result["notes"][-1]


def test_second_opinion_replaces_a_missing_lenient_verdict(tmp_path: Path) -> None:
    """Strict gains 6 of 8; all of the 7 problems with a second opinion are gained: p = 2/2^7 = 0.016."""
    none: list[Any] = [None] * 8
    evaluations = [
        eval_completions(0, ONE_RIGHT, lenient=none, second_opinion=[None] + [F] * 7),
        eval_completions(2, SEVEN_RIGHT, lenient=none, second_opinion=[None] + [T] * 7),
    ]
    run = runs.write(tmp_path / "a", [step(1), step(2)], evaluations=evaluations, stopped="steps")
    result = summary_of(run)["result"]
    assert result["other"] == "second_opinion"
    assert result["kind"] == "better"
    assert "and not in format alone" in result["sentence"]
    assert "strict p = 0.031, second opinion p = 0.016" in result["notes"][0]


def test_warm_start_is_in_the_sentence(tmp_path: Path) -> None:
    evaluations = [eval_completions(0, ONE_RIGHT), eval_completions(2, SEVEN_RIGHT)]
    run = runs.write(tmp_path / "a", [step(1, warm_start=True), step(2)], evaluations=evaluations)
    sentence = summary_of(run)["result"]["sentence"]
    assert sentence.startswith("After 2 steps (1 of warm start), smollm2-135m solves 87.5% of 8")


def test_p_value_is_never_zero() -> None:
    assert format_p(3.2e-80) == "p = 3.2e-80"
    assert format_p(0.0) == "p < 1e-99"


def test_outcomes_are_counted(tmp_path: Path) -> None:
    result = summary_of(runs.finished(tmp_path / "a", ([T, T, F, F, F], [T, F, T, T, F])))["result"]
    assert result["changes"] == {"gained": 2, "lost": 1, "still_right": 1, "still_wrong": 1}


def test_unfinished_run_tells_its_validation_and_how_to_continue(tmp_path: Path) -> None:
    run = runs.write(
        tmp_path / "a",
        [step(1), step(2)],
        evaluations=[
            eval_completions(0, [T, F, F, F]),
            eval_completions(0, [F] * 7 + [T], "validation"),
            eval_completions(2, [T] * 7 + [F], "validation"),
        ],
        planned=9,
    )
    result = summary_of(run)["result"]
    assert result["kind"] == "unfinished"
    assert result["sentence"] == (
        "No result yet, after 2 of 9 steps. On 8 validation problems accuracy went from 12.5% to 87.5% by step "
        "2, not more than chance explains."
    )
    assert "p = 0.07" in result["notes"][0]  # 7 gained, 1 lost: 2 (1 + 8) / 2^8
    assert result["resume"] == "rl.train(..., run='a', resume=True)"  # it has no command.txt
    (run.path / "command.txt").write_text("reinforce-lite train quickstart --run a\n")
    resumed = summary_of(run)["result"]["resume"]
    assert resumed == "reinforce-lite train --run a --resume"  # no path of this machine


def test_run_without_an_evaluation_is_unmeasured(tmp_path: Path) -> None:
    run = runs.write(tmp_path / "a", planned=9)
    assert summary_of(run)["result"]["kind"] == "unmeasured"
    write_report([run], tmp_path / "report.html")


@pytest.mark.parametrize(
    ("stopped", "status"),
    [
        ("steps", "finished: 2 steps"),
        ("hours", "finished at its time limit, at step 2 of 9"),
        ("signal", "stopped by a signal at step 2 of 9; it can be resumed"),
        (
            "not finite",
            "failed at step 2 of 9: weights, gradients or log-probabilities were not finite",
        ),
        ("", "not finished: step 2 of 9"),
    ],
)
def test_status_tells_how_the_run_ended(stopped: str, status: str, tmp_path: Path) -> None:
    run = runs.write(tmp_path / "a", [step(1), step(2)], stopped=stopped, planned=9)
    result = summary_of(run)["result"]
    assert result["status"] == status
    assert (result["resume"] is None) == (stopped in ("steps", "hours", "not finite"))


def test_unfinished_evaluation_does_not_count(tmp_path: Path) -> None:
    run = runs.finished(tmp_path / "a", (ONE_RIGHT, SEVEN_RIGHT))
    run.append("eval_rollouts", *eval_completions(5, [F] * 8))
    assert summary_of(run)["result"]["after"]["step"] == 2
    assert summary_of(run)["completions"]["evaluations"] == 16


def test_result_without_completions_is_unknown(tmp_path: Path) -> None:
    run = runs.finished(tmp_path / "a", (ONE_RIGHT, SEVEN_RIGHT))
    (run.path / "eval_rollouts.jsonl").unlink()
    result = summary_of(run)["result"]
    assert result["kind"] == "unknown"
    assert figures_of(result["sentence"]) == ["87.5%", "12.5%"]
