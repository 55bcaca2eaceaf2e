"""Reflection words: the comparison with the untrained model, and accuracy with a hit."""

from pathlib import Path

import pytest

from helpers import run_files as runs
from helpers.run_files import ONE_RIGHT, SEVEN_RIGHT, completion, eval_completions, step, summary_of

F, T = False, True


def reflecting(n: int) -> list[str]:
    return ["Wait, it is 7."] * n + ["It is 7."] * (8 - n)


def test_more_reflection_must_be_beyond_chance(tmp_path: Path) -> None:
    """7 of 8 gained: p = 2/2^7 = 0.016 < 0.05/3. 6 of 8: p = 2/2^6 = 0.031, which is not below it."""
    for n, claim in ((7, "More reflection words"), (6, "No change in reflection words beyond chance")):
        evaluations = [eval_completions(0, [T] * 8), eval_completions(1, [T] * 8, completion=reflecting(n))]
        run = runs.write(tmp_path / str(n), [step(1)], evaluations=evaluations)
        assert summary_of(run)["reflection"]["sentence"].startswith(claim)
    reflection = summary_of(run)["reflection"]
    assert (reflection["split"], reflection["step"]) == ("test", 1)
    assert reflection["compared"] == {
        "a": {"before": 0, "after": 0, "p": 1},
        "b": {"before": 0, "after": 0, "p": 1},
        "c": {"before": 0, "after": 0.75, "p": pytest.approx(2 / 2**6)},
    }
    assert "list C 0.0% → 75.0% of completions (p = 0.031)" in reflection["sentence"]


def test_fewer_reflection_and_no_comparison_yet(tmp_path: Path) -> None:
    before = eval_completions(0, [T] * 8, completion=reflecting(8))
    run = runs.write(tmp_path / "a", [step(1)], evaluations=[before, eval_completions(1, [T] * 8)])
    sentence = summary_of(run)["reflection"]["sentence"]
    assert sentence.startswith("Fewer reflection words")
    assert "by list C" in sentence
    run = runs.write(tmp_path / "b", [step(1)], evaluations=[before])
    assert summary_of(run)["reflection"]["compared"] == {}
    assert summary_of(run)["reflection"]["sentence"].startswith("No comparison yet")


def test_no_reflection_is_one_sentence(tmp_path: Path) -> None:
    reflection = summary_of(runs.finished(tmp_path / "a", (ONE_RIGHT, SEVEN_RIGHT)))["reflection"]
    assert {(c["before"], c["after"]) for c in reflection["compared"].values()} == {(0, 0)}
    assert reflection["sentence"].startswith("No reflection words")
    assert "8 test problems" in reflection["sentence"]


def test_accuracy_with_and_without_a_hit(tmp_path: Path) -> None:
    """Four training completions: of two with "wait" one is right, of the other two both are.

    They are of one question, so Wilson's interval would be too narrow. One of two has 9.45% to 90.55%.
    """
    texts = ["Wait: 7", "Wait: 8", "7", "7"]
    rollouts = [
        completion(1, "p", right, s, completion=text, tokens=10 * (s + 1))
        for s, (text, right) in enumerate(zip(texts, [T, F, T, T], strict=True))
    ]
    run = runs.write(tmp_path / "a", [step(1)], rollouts)
    figures = summary_of(run)["reflection"]["lists"]["c"]["training"]
    assert figures["rate"] == 0.5
    assert (figures["with"]["n"], figures["with"]["strict"], figures["with"]["tokens"]) == (2, 0.5, 15)
    assert (figures["without"]["n"], figures["without"]["strict"], figures["without"]["tokens"]) == (
        2,
        1.0,
        35,
    )
    assert figures["with"]["interval"] is None
    evaluations = [eval_completions(0, [T, F], "validation", completion=["Wait.", "Wait."])]
    run = runs.write(tmp_path / "b", [step(1)], rollouts, evaluations)
    untrained = summary_of(run)["reflection"]["lists"]["c"]["untrained"]["with"]
    assert untrained["interval"] == (pytest.approx(0.0945, abs=1e-4), pytest.approx(0.9055, abs=1e-4))


def test_populations_omit_evaluations_in_between(tmp_path: Path) -> None:
    """Hits of list C: 1 of 2 completions at step 0, 2 at step 1, 0 at step 2."""
    evaluations = [
        eval_completions(at, [T, T], "validation", completion=texts)
        for at, texts in enumerate((["Wait.", "No."], ["Wait.", "Wait."], ["No.", "No."]))
    ]
    run = runs.write(tmp_path / "a", [step(1), step(2)], evaluations=evaluations)
    figures = summary_of(run)["reflection"]["lists"]["c"]
    assert (figures["untrained"]["rate"], figures["trained"]["rate"]) == (0.5, 0)
    assert figures["training"]["rate"] is None


def test_untrained_population_has_the_problems_of_the_last_evaluation(tmp_path: Path) -> None:
    """The last evaluation has only validation problems: the hits on test problems at step 0 do not count."""
    evaluations = [
        eval_completions(0, [T, T], completion="Wait."),
        eval_completions(0, [T, T, F], "validation", completion=["Wait.", "No.", "No."], tokens=[10, 20, 40]),
        eval_completions(1, [T, T, T], "validation", completion="No."),
    ]
    run = runs.write(tmp_path / "a", [step(1)], evaluations=evaluations, planned=2)
    figures = summary_of(run)["reflection"]["lists"]["c"]
    assert figures["untrained"]["rate"] == pytest.approx(1 / 3)
    assert (figures["untrained"]["without"]["strict"], figures["untrained"]["without"]["tokens"]) == (0.5, 30)
    assert figures["trained"]["without"]["n"] == 3


def test_untrained_population_is_complete_before_a_second_evaluation(tmp_path: Path) -> None:
    evaluations = [
        eval_completions(0, [T, T], completion="Wait."),
        eval_completions(0, [T, T], "validation", completion="No."),
    ]
    figures = summary_of(runs.write(tmp_path / "a", evaluations=evaluations, planned=2))["reflection"][
        "lists"
    ]["c"]
    assert (figures["untrained"]["rate"], figures["trained"]["rate"]) == (0.5, None)
