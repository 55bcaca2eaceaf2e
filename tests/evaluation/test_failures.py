"""Why answers are wrong: counted by hand, and what the terminal shows of it."""

import io

import pytest
from rich.console import Console

from reinforce_lite.cli.eval_table import show_evaluation
from reinforce_lite.evaluation.evaluate import evaluate_groups
from reinforce_lite.evaluation.failures import Failure, common_failures
from reinforce_lite.tasks.base import number_reward
from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout

QUESTION = "What is 8 * 9?"


def group(*texts: str, cut: tuple[str, ...] = (), question: str = QUESTION) -> Group:
    problem = Problem("p", question, "72")
    return Group(problem, Prompt((1,)), tuple(_rollout(problem, text, text in cut) for text in texts))


def _rollout(problem: Problem, text: str, cut: bool) -> Rollout:
    reward = number_reward(problem, text)
    assert reward.strict is not None
    assert reward.lenient is not None
    completion = Completion((5, 2), text, cut, (0.0, 0.0))
    return Rollout(completion, text, reward.value, reward.strict, reward.lenient, "", reward.lenient.correct)


RIGHT, OTHER = "<answer>72</answer>", "<answer>71</answer>"


def test_reasons_are_counted_the_most_common_first() -> None:
    groups = [
        group(RIGHT),
        group("<answer>1</answer><answer>2</answer>"),
        group(OTHER),
        group("<answer>70</answer>"),
        group("so 72"),
        group("let me see", cut=("let me see",)),
        group("<answer>7", cut=("<answer>7",)),
        group("<answer>73</answer> and", cut=("<answer>73</answer> and",)),  # cut, but after an answer
    ]
    assert common_failures(groups) == [
        Failure("another number", 3, 3 / 8, QUESTION, "72", OTHER),
        Failure("cut at the limit before an answer", 2, 2 / 8, QUESTION, "72", "let me see"),
        Failure(
            "two different answer blocks", 1, 1 / 8, QUESTION, "72", "<answer>1</answer><answer>2</answer>"
        ),
        Failure("no answer block outside the thinking", 1, 1 / 8, QUESTION, "72", "so 72"),
    ]
    assert common_failures([group(RIGHT)]) == []


def shown(groups: list[Group]) -> str:
    console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system=None)
    show_evaluation(evaluate_groups(groups, None, "test"), common_failures(groups), console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_table_shows_counts_and_a_harmless_short_example() -> None:
    evil = "\x1b[2J\x1b]0;evil\x07[red]no[/red] " + "x" * 500
    text = shown([group(evil, question="what\x1b[31m is it?"), group(OTHER), group(OTHER)])
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


def test_rare_reasons_are_added_up() -> None:
    failed = [Failure(f"scored 0.{i}", 7 - i, (7 - i) / 50, "q", "g", "c") for i in range(7)]
    console = Console(file=io.StringIO(), width=110)
    show_evaluation(evaluate_groups([group(RIGHT)], None, "test"), failed, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "scored 0.4" in text
    assert "scored 0.5" not in text
    assert "2 other reasons" in text
    assert "3 (6.0%)" in text  # 2 + 1 of 50


def test_pass_at_k_is_shown_for_samples_only() -> None:
    assert "pass@k" not in shown([group(OTHER)])
    text = shown([group(RIGHT, OTHER), group(OTHER, OTHER)])
    for part in (
        "strict pass@k from 2 sampled completions per problem",
        "1 │ 25.0%",
        "2 │ 50.0%",
    ):
        assert part in text


@pytest.mark.parametrize("groups", [[group(RIGHT)], [group(RIGHT, RIGHT)]])
def test_nothing_wrong_nothing_said(groups: list[Group]) -> None:
    assert "why completions fail" not in shown(groups)
