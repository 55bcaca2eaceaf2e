"""Excerpts: the order of completions with a reflection word, and the text around it."""

from pathlib import Path

from helpers import run_files as runs
from helpers.run_files import completion, step
from reinforce_lite.report.build import build_report

F, T = False, True


def test_excerpts_are_best_first(tmp_path: Path) -> None:
    """First a corrected completion, then a right one (of two, the later step), last a wrong one."""
    rollouts = [
        completion(1, "wrong", F, completion="It is 7. Wait, it is 8. <answer>8</answer>"),
        completion(1, "no hit", T, completion="It is 8. No, 7. <answer>7</answer>"),
        completion(1, "right", T, completion="It is 7. Wait, is it? <answer>7</answer>"),
        completion(1, "corrected", T, completion="It is 8. Wait, no. <answer>7</answer>"),
        completion(2, "right", T, completion="It is 7. However. <answer>7</answer>"),
    ]
    excerpts = build_report(runs.write(tmp_path / "a", [step(1), step(2)], rollouts)).details["excerpts"]
    assert [(x["kind"], x["question"], x["step"]) for x in excerpts] == [
        ("corrected", "What is corrected?", 1),
        ("right", "What is right?", 2),
        ("wrong", "What is wrong?", 1),
    ]


def test_excerpt_is_cut_around_the_word(tmp_path: Path) -> None:
    text = "a" * 500 + " Awaiting. Wait " + "b" * 500
    run = runs.write(tmp_path / "a", [step(1)], [completion(1, "p", completion=text)])
    shown = build_report(run).details["excerpts"][0]["text"]
    # 240 characters before the word: 229 a, then " Awaiting. "; 420 from it on: "Wait ", then 415 b
    assert shown == "… " + "a" * 229 + " Awaiting. Wait " + "b" * 415 + " …"
