"""The report without a browser: what it says, what it chooses, that its text is inert, its bounds."""

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest

from helpers import run_files as runs
from helpers.run_files import HOSTILE, answer, asked, hostile, step
from reinforce_lite import report
from reinforce_lite.cli.app import main
from reinforce_lite.evaluation.reflection import REFLECTION_LISTS
from reinforce_lite.report import (
    ReportRefresher,
    curves,
    result,
    write_report,
)
from reinforce_lite.report import (
    selection as choice,
)
from reinforce_lite.report import (
    serialize as cards,
)
from reinforce_lite.report.build import build_report
from reinforce_lite.report.curves import build_curves
from reinforce_lite.report.run_data import load
from reinforce_lite.runlog.run import Line, Run

F, T = False, True


def numbers(run: Run) -> Line:
    return build_report(run)[0]


def finished(
    path: Path,
    strict: tuple[list[bool], list[bool]],
    lenient: tuple[list[Any], list[Any]] | None = None,
) -> Run:
    """A finished run of two steps, with its verdicts before and after; lenient ones as strict if not given."""
    checks = [
        asked(at, verdicts, lenient=other)
        for at, verdicts, other in zip((0, 2), strict, lenient or strict, strict=True)
    ]
    return runs.write(path, [step(1), step(2)], evaluations=checks, stopped="steps")


# 8 problems; what changed and by hand McNemar's p: 6 won, 0 lost: 2 x 1/2^6; 1 won, 0 lost: 2 x 1/2, at most 1
ONE, SEVEN = [T] + [F] * 7, [T] * 7 + [F]
RESULTS = [
    (
        (ONE, SEVEN),
        None,
        "better",
        "After 2 steps smollm2-135m answers 87.5% of 8 test problems right, 12.5% before training: a gain beyond "
        "chance (p = 0.031), and not of format alone (lenient 12.5% → 87.5%, p = 0.031).",
    ),
    (
        (ONE, SEVEN),
        ([T] * 6 + [F] * 2, SEVEN),
        "format",
        "After 2 steps smollm2-135m answers 87.5% of 8 test problems right, 12.5% before training: a gain beyond "
        "chance (p = 0.031), but perhaps of format alone: no other verdict rose beyond chance (lenient 75.0% → 87.5%, p = 1).",
    ),
    (
        (ONE, SEVEN),
        ([None] * 8, [None] * 8),
        "better",
        "After 2 steps smollm2-135m answers 87.5% of 8 test problems right, 12.5% before training: a gain beyond "
        "chance (p = 0.031); this task has no other verdict that could tell skill from format.",
    ),
    (
        (ONE, [T, T] + [F] * 6),
        None,
        "same",
        "After 2 steps smollm2-135m answers 25.0% of 8 test problems right, 12.5% before training: no change that "
        "chance does not explain (p = 1); lenient 12.5% → 25.0%, p = 1.",
    ),
    (
        (SEVEN, ONE),
        None,
        "worse",
        "After 2 steps smollm2-135m answers 12.5% of 8 test problems right, 87.5% before training: it got worse, "
        "beyond chance (p = 0.031); lenient 87.5% → 12.5%, p = 0.031.",
    ),
]


@pytest.mark.parametrize(("strict", "lenient", "kind", "sentence"), RESULTS)
def test_the_result_in_one_sentence(
    strict: tuple[list[bool], list[bool]],
    lenient: tuple[list[Any], list[Any]] | None,
    kind: str,
    sentence: str,
    tmp_path: Path,
) -> None:
    found = numbers(finished(tmp_path / "a", strict, lenient))["result"]
    assert (found["kind"], found["sentence"]) == (kind, sentence)


def test_a_strict_gain_beside_a_lenient_fall_is_one_of_format(tmp_path: Path) -> None:
    """Lenient that fell beyond chance did not rise."""
    found = numbers(finished(tmp_path / "a", (ONE, SEVEN), (SEVEN, ONE)))["result"]
    assert found["kind"] == "format"


def test_a_second_opinion_stands_in_where_there_is_no_lenient_verdict(tmp_path: Path) -> None:
    """Strict won 6 of 8; of the 7 problems with a second opinion all were won: p = 2/2^7."""
    none: list[Any] = [None] * 8
    checks = [
        asked(0, ONE, lenient=none, second_opinion=[None] + [F] * 7),
        asked(2, SEVEN, lenient=none, second_opinion=[None] + [T] * 7),
    ]
    run = runs.write(tmp_path / "a", [step(1), step(2)], evaluations=checks, stopped="steps")
    found = numbers(run)["result"]
    assert found["other"] == "second_opinion"
    assert found["kind"] == "better"
    assert found["sentence"].endswith("and not of format alone (second opinion 0.0% → 100.0%, p = 0.016).")


def test_no_p_value_is_zero() -> None:
    assert result.p_value(3.2e-80) == "p = 3.2e-80"
    assert result.p_value(0.0) == "p < 1e-99"


def test_problems_that_changed_are_counted(tmp_path: Path) -> None:
    found = numbers(finished(tmp_path / "a", ([T, T, F, F, F], [T, F, T, T, F])))["result"]
    assert found["changes"] == {"won": 2, "lost": 1, "kept": 1, "missed": 1}


def test_an_unfinished_run_promises_nothing(tmp_path: Path) -> None:
    run = runs.write(
        tmp_path / "a",
        [step(1), step(2)],
        evaluations=[
            asked(0, [T, F, F, F]),
            asked(0, [F, F, F, T], "validation"),
            asked(2, [T, T, F, T], "validation"),
        ],
        planned=9,
    )
    found = numbers(run)["result"]
    assert found["kind"] == "unfinished"
    assert found["sentence"] == (
        "No result yet, not finished: step 2 of 9. Before training smollm2-135m answers 25.0% of 4 test problems "
        "right; the test after training comes at the end. On 4 validation problems it went from 25.0% to 75.0% by "
        "step 2."
    )


def test_a_run_without_any_figure_says_so(tmp_path: Path) -> None:
    run = runs.write(tmp_path / "a", planned=9)
    assert numbers(run)["result"]["sentence"].startswith("Nothing is measured yet")
    write_report([run], tmp_path / "report.html")


@pytest.mark.parametrize(
    ("stopped", "said"),
    [
        ("steps", "finished: 2 steps"),
        ("hours", "finished within its hours, at step 2 of 9"),
        ("signal", "stopped by a signal at step 2 of 9; it can go on"),
        ("", "not finished: step 2 of 9"),
    ],
)
def test_how_far_it_came(stopped: str, said: str, tmp_path: Path) -> None:
    run = runs.write(tmp_path / "a", [step(1), step(2)], stopped=stopped, planned=9)
    assert numbers(run)["result"]["state"] == said


def test_an_evaluation_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", (ONE, SEVEN))
    run.append("eval_rollouts", *asked(5, [F] * 8))
    assert numbers(run)["result"]["after"]["step"] == 2
    assert numbers(run)["answers"]["evaluations"] == 16


def test_without_the_answers_chance_is_not_judged(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", (ONE, SEVEN))
    (run.path / "eval_rollouts.jsonl").unlink()
    found = numbers(run)["result"]
    assert found["kind"] == "unknown"
    assert found["sentence"].endswith("can't be told without the answers of both evaluations.")


# Reflection


def reflecting(n: int) -> list[str]:
    return ["Wait, it is 7."] * n + ["It is 7."] * (8 - n)


def test_more_reflection_is_said_only_beyond_chance(tmp_path: Path) -> None:
    """7 of 8 gained: p = 2/2^7 = 0.016 < 0.05/3. 6 of 8: p = 2/2^6 = 0.031, which of three lists is chance."""
    for n, said in (
        (7, "More reflection words than before"),
        (6, "No change in reflection words that chance"),
    ):
        run = runs.write(
            tmp_path / str(n),
            [step(1)],
            evaluations=[asked(0, [T] * 8), asked(1, [T] * 8, completion=reflecting(n))],
        )
        assert numbers(run)["aha"]["sentence"].startswith(said)
    assert numbers(run)["aha"]["sentence"] == (
        "No change in reflection words that chance does not explain, on the same 8 test problems at step 1: list A "
        "0.0% → 0.0% of answers (p = 1); list B 0.0% → 0.0% of answers (p = 1); list C 0.0% → 75.0% of answers "
        "(p = 0.031)."
    )


def test_fewer_and_not_yet(tmp_path: Path) -> None:
    before = asked(0, [T] * 8, completion=reflecting(8))
    run = runs.write(tmp_path / "a", [step(1)], evaluations=[before, asked(1, [T] * 8)])
    assert numbers(run)["aha"]["sentence"].startswith(
        "Fewer reflection words than before training, on the same 8 test problems at step 1, by list C: "
    )
    run = runs.write(tmp_path / "b", [step(1)], evaluations=[before])
    assert "shows in the second evaluation" in numbers(run)["aha"]["sentence"]


def test_no_reflection_at_all_is_one_line(tmp_path: Path) -> None:
    found = numbers(finished(tmp_path / "a", (ONE, SEVEN)))["aha"]["sentence"]
    assert found == "No reflection words, before training or after it, in the answers to 8 test problems."


def test_accuracy_with_and_without_a_hit(tmp_path: Path) -> None:
    """Four training answers: two say "wait", one of these is right; of the other two both are."""
    texts = ["Wait: 7", "Wait: 8", "7", "7"]
    rollouts = [
        answer(1, "p", right, s, completion=text, tokens=10 * (s + 1))
        for s, (text, right) in enumerate(zip(texts, [T, F, T, T], strict=True))
    ]
    found = numbers(runs.write(tmp_path / "a", [step(1)], rollouts))["aha"]["lists"]["c"]["training"]
    assert found["rate"] == 0.5
    assert (found["with"]["n"], found["with"]["strict"], found["with"]["tokens"]) == (2, 0.5, 15)
    assert (found["without"]["n"], found["without"]["strict"], found["without"]["tokens"]) == (2, 1.0, 35)
    assert found["with"]["interval"] == (pytest.approx(0.0945, abs=1e-4), pytest.approx(0.9055, abs=1e-4))


def test_untrained_and_last_are_told_from_what_lies_between(tmp_path: Path) -> None:
    """Hits of list C: 1 of 2 answers at step 0, 2 at step 1, 0 at step 2."""
    checks = [
        asked(at, [T, T], "validation", completion=texts)
        for at, texts in enumerate((["Wait.", "No."], ["Wait.", "Wait."], ["No.", "No."]))
    ]
    run = runs.write(tmp_path / "a", [step(1), step(2)], evaluations=checks)
    found = numbers(run)["aha"]["lists"]["c"]
    assert (found["untrained"]["rate"], found["trained"]["rate"]) == (0.5, 0)
    assert found["training"]["rate"] is None


def test_untrained_is_the_last_evaluations_own_problems(tmp_path: Path) -> None:
    """The last evaluation is of validation alone: the untrained model's test answers, all hits, do not count."""
    checks = [
        asked(0, [T, T], completion="Wait."),
        asked(0, [T, T, F], "validation", completion=["Wait.", "No.", "No."], tokens=[10, 20, 40]),
        asked(1, [T, T, T], "validation", completion="No."),
    ]
    run = runs.write(tmp_path / "a", [step(1)], evaluations=checks, planned=2)
    found = numbers(run)["aha"]["lists"]["c"]
    assert found["untrained"]["rate"] == pytest.approx(1 / 3)
    assert (found["untrained"]["without"]["strict"], found["untrained"]["without"]["tokens"]) == (0.5, 30)
    assert found["trained"]["without"]["n"] == 3


def test_before_a_second_evaluation_all_untrained_answers_count(tmp_path: Path) -> None:
    checks = [asked(0, [T, T], completion="Wait."), asked(0, [T, T], "validation", completion="No.")]
    found = numbers(runs.write(tmp_path / "a", evaluations=checks, planned=2))["aha"]["lists"]["c"]
    assert (found["untrained"]["rate"], found["trained"]["rate"]) == (0.5, None)


def test_excerpts_best_first(tmp_path: Path) -> None:
    """First what was another number before the word and right after it; what is wrong comes last."""
    rollouts = [
        answer(1, "wrong", F, completion="It is 7. Wait, it is 8. <answer>8</answer>"),
        answer(1, "no hit", T, completion="It is 8. No, 7. <answer>7</answer>"),
        answer(1, "right", T, completion="It is 7. Wait, is it? <answer>7</answer>"),
        answer(1, "corrected", T, completion="It is 8. Wait, no. <answer>7</answer>"),
        answer(2, "right", T, completion="It is 7. However. <answer>7</answer>"),
    ]
    excerpts = build_report(runs.write(tmp_path / "a", [step(1), step(2)], rollouts))[1]["excerpts"]
    assert [(x["kind"], x["question"], x["step"]) for x in excerpts] == [
        ("corrected", "What is corrected?", 1),
        ("right", "What is right?", 2),
        ("wrong", "What is wrong?", 1),
    ]


def test_an_excerpt_is_around_the_word(tmp_path: Path) -> None:
    text = "a" * 500 + " Awaiting. Wait " + "b" * 500
    run = runs.write(tmp_path / "a", [step(1)], [answer(1, "p", completion=text)])
    shown = build_report(run)[1]["excerpts"][0]["text"]
    # 240 characters before the word: 229 a, then " Awaiting. "; 420 from it on: "Wait ", then 415 b
    assert shown == "… " + "a" * 229 + " Awaiting. Wait " + "b" * 415 + " …"


# The choice


def named(item: Line) -> str:
    """The problem of a group or of a held-out question."""
    return str(item["question"]).removeprefix("What is ").removesuffix("?")


def group(at: int, problem: str, **changes: Any) -> list[Line]:
    return [answer(at, problem, changes.pop("right", F), 0, **changes), answer(at, problem, F, 1)]


def test_everything_is_shown_where_it_fits(tmp_path: Path) -> None:
    rollouts = [line for at in (1, 2) for q in ("p", "q") for line in group(at, q)]
    shown, beside = build_report(runs.write(tmp_path / "a", [step(1), step(2)], rollouts))
    assert (shown["answers"]["training"], shown["answers"]["training_shown"]) == (8, 8)
    assert [(g["step"], named(g), len(g["answers"])) for g in beside["groups"]] == [
        (1, "p", 2),
        (1, "q", 2),
        (2, "p", 2),
        (2, "q", 2),
    ]


def test_the_choice_is_spread_and_tells_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 6 groups of 2: one of each of 4 steps, the best of the first and the last; then one at random
    of the first and of the last."""
    monkeypatch.setattr(choice, "ANSWERS", 12)
    monkeypatch.setattr(choice.Random, "randrange", lambda _, n: n - 1)
    rollouts = []
    for at in (1, 2, 3, 4):
        rollouts += group(at, f"plain-{at}") + group(at, f"cut-{at}", truncated=True)
        rollouts += group(at, f"mixed-{at}", right=T)
        if at == 4:
            rollouts += group(at, "hit-4", completion="Wait.")
    run = runs.write(tmp_path / "a", [step(n) for n in (1, 2, 3, 4)], rollouts)
    shown, beside = build_report(run)
    assert [named(g) for g in beside["groups"]] == [
        *("plain-1", "mixed-1", "plain-2", "plain-3", "plain-4", "hit-4"),
    ]
    assert (shown["answers"]["training_shown"], shown["answers"]["training"]) == (12, 26)
    assert (shown["answers"]["steps_shown"], shown["answers"]["steps"]) == (4, 4)


def test_ordinary_groups_are_shown_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one group of each of 200 steps: 100 begin with the one telling group of their 10, the others at
    random, which is that one 10 times in the mean (standard deviation 3)."""
    monkeypatch.setattr(choice, "ANSWERS", 1600)
    found = [choice.Seen(i, i // 10, 8, 1, (i % 10 == 3, False, False)) for i in range(2000)]
    chosen = choice.of_groups(found)
    assert len({place // 10 for place in chosen}) == len(chosen) == 200
    assert 100 <= sum(place % 10 == 3 for place in chosen) < 125
    assert choice.of_groups(found) == chosen  # a report that is written again shows the same


def test_first_and_last_come_before_what_lies_between() -> None:
    assert choice.spread(9)[:5] == [0, 8, 4, 2, 6]
    assert sorted(choice.spread(10)) == list(range(10))
    assert choice.spread(1) == [0]
    assert choice.spread(0) == []


def test_a_problem_asked_twice_in_a_step_makes_two_groups(tmp_path: Path) -> None:
    rollouts = [answer(1, "p", F, s) for s in (0, 1)] * 2
    assert len(build_report(runs.write(tmp_path / "a", [step(1)], rollouts))[1]["groups"]) == 2


def test_every_outcome_is_shown_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for three problems of two answers: of 2 won, 1 lost and 4 missed, one of each."""
    monkeypatch.setattr(choice, "ASKED", 6)
    run = finished(tmp_path / "a", ([F, F, T, F, F, F, F], [T, T, F, F, F, F, F]))
    shown, beside = build_report(run)
    assert [named(q) for q in beside["asked"]] == ["test-0", "test-2", "test-3"]
    assert [[(a["step"], a["strict"]) for a in q["answers"]] for q in beside["asked"]] == [
        [(0, F), (2, T)],
        [(0, T), (2, F)],
        [(0, F), (2, F)],
    ]
    assert (shown["answers"]["questions_shown"], shown["answers"]["questions"]) == (3, 7)


def test_the_choice_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An é takes 6 bytes in the page: an answer of 1,000 some 6,200, a question of 1,000 some 6,100."""
    monkeypatch.setattr(choice, "BYTES", 40_000)
    rollouts = [answer(n, f"p{n}", completion="é" * 1000, question="é" * 1000) for n in range(1, 10)]
    run = runs.write(tmp_path / "a", [step(n) for n in range(1, 10)], rollouts)
    assert [g["step"] for g in build_report(run)[1]["groups"]] == [
        1,
        5,
        9,
    ]  # the first, the last, the one halfway


def test_a_long_answer_keeps_its_beginning_and_end() -> None:
    assert cards.clip("a" * 6000) == "a" * 6000
    assert cards.clip("a" * 3000 + "b" * 10 + "c" * 3000) == (
        "a" * 3000 + "\n[… 10 characters left out …]\n" + "c" * 3000
    )


def test_the_choice_counts_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """512 times "wait" and an answer of 100 kB: what the page holds of it is no more than it was given."""
    monkeypatch.setattr(choice, "BYTES", 150_000)
    much = {
        "completion": "wait " * 512,
        "answer": "9" * 100_000,
        "reason": "é" * 100_000,
        "fault": "x" * 100_000,
    }
    much |= {"question": "q" * 100_000, "gold": "g" * 100_000}
    rollouts = [answer(n, f"p{n}", n % 2 == 0, **much) for n in range(1, 9)]
    checks = [asked(at, [F] * 8, split, **much) for at in (0, 8) for split in ("test", "validation")]
    run = runs.write(tmp_path / "a", [step(n) for n in range(1, 9)], rollouts, checks)
    beside = build_report(run)[1]
    assert beside["groups"][0]["answers"][0]["hits"] == {"c": ["wait"]}
    for shown in ("groups", "asked"):
        assert 100_000 < len(cards.encode(beside[shown])) <= 150_000
    for one in beside["excerpts"]:
        assert len(cards.encode(one)) < 3 * 6_100 + 1_000


@pytest.mark.parametrize("given", [72, None])
def test_what_should_be_text_may_be_a_number_or_none(given: int | None, tmp_path: Path) -> None:
    """As in the files of a task given as an object before golds were written as text."""
    odd: dict[str, Any] = {
        "gold": given,
        "answer": given,
        "reason": given,
        "completion": "It is 71. Wait, 72.",
    }
    run = runs.write(
        tmp_path / "a", [step(1)], [answer(1, "p", **odd)], [asked(at, [T], **odd) for at in (0, 1)]
    )
    write_report([run], tmp_path / "report.html")
    beside, said = build_report(run)[1], None if given is None else str(given)
    for place in (beside["groups"][0], beside["asked"][0], beside["excerpts"][0]):
        assert place["gold"] == said
    found = beside["groups"][0]["answers"][0]
    assert (found["answer"], found["reason"]) == (said, said)
    assert beside["excerpts"][0]["kind"] == ("right" if given is None else "corrected")


def test_many_evaluations_leave_room_for_test_questions(tmp_path: Path) -> None:
    """100 evaluations: a validation question costs 101 answers of 2,000, and all get half of these at most.

    Of 200 test questions one was won; it is the example.
    """
    many = [asked(at, [at > 0] * 40, "validation", completion="Wait.") for at in range(101)]
    tests = [asked(0, [F] * 200), asked(100, [F] * 199 + [T])]
    shown, beside = build_report(
        runs.write(tmp_path / "a", [step(100)], evaluations=many[:1] + tests + many[1:])
    )
    splits = [q["split"] for q in beside["asked"]]
    assert (splits.count("validation"), splits.count("test")) == (9, 200)
    assert "test-199" in map(named, beside["asked"])
    assert shown["answers"]["questions"] == 240


# Curves and costs


def test_time_counts_steps_and_evaluations(tmp_path: Path) -> None:
    """Steps of 10 s; two evaluations of 3 s before the first, one after the second."""
    checks = [asked(0, [T], "validation"), asked(0, [T]), asked(2, [T], "validation")]
    run = runs.write(tmp_path / "a", [step(1), step(2), step(3)], evaluations=checks)
    found = build_curves(load(run))
    assert found["steps"] == [1, 2, 3]
    assert found["seconds"] == [16, 26, 39]
    assert [(e["step"], e["split"], e["seconds"]) for e in found["evals"]] == [
        (0, "validation", 0),
        (0, "test", 0),
        (2, "validation", 26),
    ]


def test_figures_that_are_none_or_not_finite_are_gaps(tmp_path: Path) -> None:
    lines = [
        step(1, grad_norm=float("nan"), **{"accuracy/lenient": None}),
        step(2, **{"accuracy/lenient": None}),
    ]
    run = runs.write(tmp_path / "a", lines)
    found = build_curves(load(run))["columns"]
    assert found["grad_norm"] == [None, 1.0]
    assert "accuracy/lenient" not in found
    assert "accuracy/second_opinion" not in found
    write_report([run], tmp_path / "report.html")


def test_many_steps_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "POINTS", 2)
    run = runs.write(tmp_path / "a", [step(n, reward=float(n)) for n in (1, 2, 3)])
    found = build_curves(load(run))
    assert (found["averaged"], found["steps"], found["columns"]["reward"]) == (2, [2, 3], [1.5, 3.0])


def test_a_second_opinion_is_drawn_where_it_is_another(tmp_path: Path) -> None:
    """On number tasks it is the lenient verdict, 0.5; beside a run where it is not, both are drawn."""
    same, other = (
        build_curves(load(runs.write(tmp_path / str(second), [step(1, **{curves.SECOND: second})])))
        for second in (0.5, 0.25)
    )
    for drawn, there in (([same], F), ([other], T), ([same, other], T), ([same, same], F)):
        assert (curves.SECOND in curves.charts(drawn)[0]["lines"]) == there
    assert same["columns"][curves.SECOND] == [0.5]


def test_warnings_are_shown_while_a_run_goes_on(tmp_path: Path) -> None:
    """Ten steps that earn 0.9 and ten that earn 0.1."""
    lines = [step(n, reward=0.9 if n <= 10 else 0.1) for n in range(1, 21)]
    run = runs.write(tmp_path / "a", lines)
    assert not run.summary
    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<p class="warning">the reward collapsed: 0.90 over steps 1 to 10, 0.10 over the last 10' in page


def test_what_it_took(tmp_path: Path) -> None:
    """Two steps of 4 + 1 + 5 s, two evaluations of 3 s, 100 s in all."""
    run = finished(tmp_path / "a", ([T], [T]))
    run.write_summary(run.summary | {"memory": {"planned_bytes": 4, "dry_run_bytes": 5, "peak_bytes": 6}})
    found = numbers(run)["cost"]
    assert found["time"] == {
        "rollout": 8,
        "reward": 2,
        "update": 10,
        "evaluation": 6,
        "other": 74,
        "total": 100,
    }
    assert found["memory"] == {"planned": 4, "probed": 5, "measured": 6}


MACHINE = {
    "system": "Linux x86_64",
    "processor": "Intel Xeon",
    "cores": 2,
    "memory_bytes": 16_000_000_000,
    "versions": {"torch": "2.12.0"},
    "device": "cpu",
    "dtype": "bfloat16",
    "planned_bytes": 4_000_000_000,
}


def test_the_machine_is_told_while_a_run_goes_on(tmp_path: Path) -> None:
    run = runs.write(tmp_path / "a", [step(1)], planned=9)
    (run.path / "machine.json").write_text(json.dumps(MACHINE), encoding="utf-8")
    found = numbers(run)["cost"]
    assert found["facts"]["machine"] == "Linux x86_64, Intel Xeon, 2 cores, 16 GB, cpu, bfloat16"
    assert found["facts"]["versions"] == "torch 2.12.0"
    assert found["memory"]["planned"] == 4_000_000_000


def test_a_card_is_named(tmp_path: Path) -> None:
    run = runs.write(tmp_path / "a", [step(1)], planned=9)
    card = {"gpu": "NVIDIA A6000", "gpu_memory_bytes": 48_000_000_000, "device": "cuda"}
    (run.path / "machine.json").write_text(json.dumps(MACHINE | card), encoding="utf-8")
    assert numbers(run)["cost"]["facts"]["machine"] == (
        "Linux x86_64, Intel Xeon, 2 cores, 16 GB, NVIDIA A6000, 48 GB, cuda, bfloat16"
    )


def test_the_summary_is_believed_before_the_machine(tmp_path: Path) -> None:
    told = {
        "machine": "Linux arm",
        "versions": {"torch": "2.13.0"},
        "memory": {"planned_bytes": 5},
        "dtype": "float32",
    }
    run = runs.write(tmp_path / "a", [step(1)], stopped="steps", **told)
    (run.path / "machine.json").write_text(json.dumps(MACHINE), encoding="utf-8")
    found = numbers(run)["cost"]
    assert found["facts"]["machine"] == "Linux arm, Intel Xeon, 2 cores, 16 GB, cpu, float32"
    assert found["facts"]["versions"] == "torch 2.13.0"
    assert found["memory"]["planned"] == 5


@pytest.mark.parametrize("text", ["{}", '{"system": null, "cores": 1}', '{"system": "Li', "[]", "7"])
def test_a_machine_file_may_lack_anything(text: str, tmp_path: Path) -> None:
    run = runs.write(tmp_path / "a", [step(1)], planned=9)
    (run.path / "machine.json").write_text(text, encoding="utf-8")
    found = numbers(run)["cost"]
    assert found["facts"].get("machine") == ("1 core" if "cores" in text else None)
    assert found["memory"]["planned"] is None


def test_memory_of_older_and_unfinished_runs(tmp_path: Path) -> None:
    run = runs.write(tmp_path / "a", [step(1), step(2, **{"memory/peak_bytes": 3_500_000_000})])
    assert numbers(run)["cost"]["memory"] == {"planned": None, "probed": None, "measured": 3_500_000_000}
    run.write_summary({"stopped": "steps", "seconds": 30.0, "peak_memory_bytes": 3_600_000_000})
    assert numbers(run)["cost"]["memory"]["measured"] == 3_600_000_000


# The page


def test_no_text_becomes_html(tmp_path: Path) -> None:
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
    shown = json.loads(embedded[1])["runs"][0]["groups"][0]["answers"][0]
    assert (shown["text"], shown["answer"], shown["fault"]) == (f"Wait {HOSTILE}", HOSTILE, HOSTILE)


def test_the_page_may_fetch_nothing(tmp_path: Path) -> None:
    write_report([finished(tmp_path / "a", (ONE, SEVEN))], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1]
    assert "unsafe" not in policy[1]
    assert not re.search(r'(?:src|href)="(?!#)', page)


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, file = finished(tmp_path / "a", (ONE, SEVEN)), tmp_path / "report.html"
    write_report([run], file)
    before = file.read_text(encoding="utf-8")
    monkeypatch.setattr(
        Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        write_report([run], file)
    assert file.read_text(encoding="utf-8") == before


def test_fifty_thousand_answers_are_bounded(tmp_path: Path) -> None:
    run = runs.large(tmp_path / "a")
    start = time.perf_counter()
    found = write_report([run], tmp_path / "report.html")[0]["answers"]
    assert time.perf_counter() - start < 10
    assert (tmp_path / "report.html").stat().st_size < 15e6
    assert found["training"] == 50_000
    assert 4_000 < found["training_shown"] <= choice.ANSWERS
    assert found["steps_shown"] == found["steps"] == 625


# While training, and the command


def test_a_keeper_spends_little_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that takes 2 s is due again 100 s after it: 2% of the time."""
    clock, written = [1000.0], []

    def write(*_: Any) -> None:
        written.append(clock[0])
        clock[0] += 2

    monkeypatch.setattr(report, "write_report", write)
    monkeypatch.setattr(report.clock, "now", lambda: clock[0])
    keeper = ReportRefresher(finished(tmp_path / "a", (ONE, SEVEN)))
    for moment in (1000.0, 1050.0, 1101.9, 1102.0, 1110.0):
        clock[0] = moment
        keeper.refresh()
    assert written == [1000.0, 1102.0]
    keeper.refresh(must=True)
    assert written == [1000.0, 1102.0, 1110.0]


def test_a_report_that_fails_is_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = finished(tmp_path / "a", (ONE, SEVEN))
    (run.path / "config.toml").write_text("not = = toml")
    with caplog.at_level(logging.WARNING):
        ReportRefresher(run).refresh()
    assert "no report was written: TOMLDecodeError" in caplog.text


def test_the_command(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(in_tmp / "runs/a", (ONE, SEVEN))
    finished(in_tmp / "runs/b", (ONE, ONE))
    assert main(["report", "a"]) == 0
    assert "report: runs/a/report.html" in capsys.readouterr().out
    assert (in_tmp / "runs/a/report.html").exists()
    assert main(["report", "a", "runs/b"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report: report.html"
    page = (in_tmp / "report.html").read_text(encoding="utf-8")
    assert '<table id="compared">' in page
    assert main(["report", "a", "--out", "mine.html", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == "mine.html"
    assert found["runs"][0]["result"]["after"]["strict"] == 0.875
    assert found["runs"][0]["aha"]["compared"]["c"]["after"] == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nothere"], "there is no run 'nothere'"),
        (["a", "nothere"], "there is no run 'nothere'"),
        (["a", "--out", "no/such/folder/x.html"], "can't write no/such/folder/x.html"),
        ([], "report needs to know of which run"),
    ],
)
def test_bad_usage(args: list[str], said: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(in_tmp / "runs/a", (ONE, SEVEN))
    assert main(["report", *args]) == 2
    err = capsys.readouterr().err
    assert err.startswith("reinforce-lite: ")
    assert said in err
    assert not list(in_tmp.rglob("*.html"))


def test_the_lists_of_the_page_are_those_that_are_counted() -> None:
    assert tuple(f"reflection/list_{name}" for name in REFLECTION_LISTS) == curves.REFLECTION
