"""Why responses are wrong: counted by hand, and as the terminal shows it."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from reinforce_lite.cli.eval_table import show_evaluation
from reinforce_lite.evaluation.evaluate import evaluate_groups
from reinforce_lite.evaluation.failures import Failure, common_failures
from reinforce_lite.tasks.base import number_reward
from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout

QUESTION = "What is 8 * 9?"


def make_group(*texts: str, truncated: tuple[str, ...] = (), question: str = QUESTION) -> Group:
    problem = Problem("p", question, "72")
    return Group(problem, Prompt((1,)), tuple(_rollout(problem, text, text in truncated) for text in texts))


def _rollout(problem: Problem, text: str, truncated: bool) -> Rollout:
    reward = number_reward(problem, text)
    assert reward.strict is not None
    assert reward.lenient is not None
    completion = Completion((5, 2), text, truncated, (0.0, 0.0))
    return Rollout(completion, text, reward.value, reward.strict, reward.lenient, "", reward.lenient.correct)


RIGHT, OTHER = "<answer>72</answer>", "<answer>71</answer>"


def test_common_failures_counts_reasons_the_most_common_first() -> None:
    groups = [
        make_group(RIGHT),
        make_group("<answer>1</answer><answer>2</answer>"),
        make_group(OTHER),
        make_group("<answer>70</answer>"),
        make_group("so 72"),
        make_group("let me see", truncated=("let me see",)),
        make_group("<answer>7", truncated=("<answer>7",)),
        make_group(
            "<answer>73</answer> and", truncated=("<answer>73</answer> and",)
        ),  # truncated, but after an answer
    ]
    assert common_failures(groups) == [
        Failure("another number", 3, 3 / 8, QUESTION, "72", OTHER),
        Failure("cut at the limit before an answer", 2, 2 / 8, QUESTION, "72", "let me see"),
        Failure(
            "two different answer blocks", 1, 1 / 8, QUESTION, "72", "<answer>1</answer><answer>2</answer>"
        ),
        Failure("no answer block outside the thinking", 1, 1 / 8, QUESTION, "72", "so 72"),
    ]
    assert common_failures([make_group(RIGHT)]) == []


def test_a_repetition_before_an_answer_is_a_reason_of_its_own() -> None:
    groups = []
    for text in ("and again and again", OTHER):
        group = make_group(text, truncated=(text,))
        (rollout,) = group.rollouts
        repeated = replace(rollout, completion=replace(rollout.completion, repetitive=True))
        groups.append(replace(group, rollouts=(repeated,)))
    assert [f.reason for f in common_failures(groups)] == [
        "repeated itself before an answer",
        "another number",
    ]


def render(groups: list[Group]) -> str:
    console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system=None)
    show_evaluation(evaluate_groups(groups, None, "test"), common_failures(groups), console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.case(26)
def test_failure_table_shows_counts_and_a_short_escaped_example() -> None:
    evil = "\x1b[2J\x1b]0;evil\x07[red]no[/red] " + "x" * 500
    text = render([make_group(evil, question="what\x1b[31m is it?"), make_group(OTHER), make_group(OTHER)])
    assert "\x1b" not in text
    assert "\x07" not in text
    for part in (
        "another number",
        "2 (66.7%)",
        "1 (33.3%)",
        "\\u001b[2J",
        "[red]no[/red]",
        "\\u001b[31m",
        "gold:",
        "…",
    ):
        assert part in text
    assert text.count("x") < 300


def test_failure_table_adds_up_rare_reasons() -> None:
    failures = [Failure(f"scored 0.{i}", 7 - i, (7 - i) / 50, "q", "g", "c") for i in range(7)]
    console = Console(file=io.StringIO(), width=110)
    show_evaluation(evaluate_groups([make_group(RIGHT)], None, "test"), failures, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "scored 0.4" in text
    assert "scored 0.5" not in text
    assert "2 other reasons" in text
    assert "3 (6.0%)" in text  # 2 + 1 of 50


def test_pass_at_k_table_is_shown_for_several_samples_only() -> None:
    assert "pass@k" not in render([make_group(OTHER)])
    text = render([make_group(RIGHT, OTHER), make_group(OTHER, OTHER)])
    for part in (
        "strict pass@k from 2 sampled completions per problem",
        "1 │ 25.0%",
        "2 │ 50.0%",
    ):
        assert part in text


@pytest.mark.parametrize("groups", [[make_group(RIGHT)], [make_group(RIGHT, RIGHT)]])
def test_failure_table_is_omitted_where_nothing_is_wrong(groups: list[Group]) -> None:
    assert "why answers are wrong" not in render(groups)


def test_accuracy_that_one_answer_would_reach_is_told() -> None:
    """16 of 16 are right, 80.6% at the lower end of Wilson's interval; then each gold is another one."""
    same = [make_group(RIGHT)] * 16
    assert "would reach 100.0%" in " ".join(render(same).split())
    wrong = [make_group(OTHER)] * 16
    assert "one and the same answer" not in render(wrong)
    others = [replace(g, problem=replace(g.problem, gold=str(i))) for i, g in enumerate(same)]
    assert "one and the same answer" not in render(others)
