"""reasoning-gym tasks: disjoint splits, their own scorers, and answers that must not run as code."""

from pathlib import Path

import pytest

from helpers.tasks import all_problems, load, load_error, reward_value
from reinforce_lite.tasks import SPLITS, check_task, gym
from reinforce_lite.tasks.base import Task
from reinforce_lite.tasks.gym import is_safe_to_score
from reinforce_lite.types import Reward, Split


@pytest.fixture(scope="module")
def reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym", reason='needs pip install "reinforce-lite[gym]"')


@pytest.fixture(scope="module")
def legs(reasoning_gym: None) -> Task:
    return load("gym", path="leg_counting", params={"max_animals": 5})


def test_gym_splits_are_disjoint_and_reproducible(legs: Task) -> None:
    check_task(legs)
    train, validation, test = (legs.problems(split) for split in SPLITS)
    assert len(test) == 400
    assert 90 <= len(validation) <= 100  # questions that are also in test are dropped
    assert 1_800 <= len(train) <= 2_000
    assert legs.problems("train") is legs.problems("train")
    again = load("gym", path="leg_counting", params={"max_animals": 5})
    assert again.problems("validation") == validation
    other = load("gym", path="leg_counting", params={"max_animals": 5}, seed=1)
    assert other.problems("validation") != validation


def test_gym_params_reach_the_generator(legs: Task) -> None:
    assert {len(p.info["metadata"]["animals"]) for p in legs.problems("test")} == {3, 4, 5}


def test_gym_uses_the_tasks_own_scorer(legs: Task) -> None:
    problem = legs.problems("test")[0]
    reward = legs.reward(problem, f"<think>…</think><answer>{problem.gold}</answer>")
    assert isinstance(reward, Reward)
    assert reward.strict
    assert (reward.value, reward.strict.correct, reward.lenient) == (1.0, True, None)
    no_block = legs.reward(problem, f"it is {problem.gold}")
    assert isinstance(no_block, Reward)
    assert no_block.strict
    assert no_block.value == 0.0
    assert (no_block.strict.answer, no_block.strict.reason) == (None, "no answer block outside the thinking")


def test_gym_extracts_the_answer_in_the_format_of_its_section(reasoning_gym: None) -> None:
    task = load("gym", path="leg_counting", answer_format="boxed")
    problem = task.problems("test")[0]
    assert reward_value(task, problem, f"\\boxed{{{problem.gold}}}") == 1.0
    assert reward_value(task, problem, f"<answer>{problem.gold}</answer>") == 0.0


def test_gym_keeps_the_scorers_partial_reward(reasoning_gym: None) -> None:
    task = load("gym", path="spiral_matrix")
    problem = task.problems("validation")[0]
    as_list = "[" + problem.gold.replace(" ", ", ") + "]"  # right, but as a list: its scorer pays 0.1
    reward = task.reward(problem, f"<answer>{as_list}</answer>")
    assert isinstance(reward, Reward)
    assert reward.strict
    assert (reward.value, reward.strict.correct, reward.strict.reason) == (0.1, False, "scored 0.1")


def test_gym_never_runs_an_answer_as_code(
    reasoning_gym: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gym.SIZES, "test", 3)
    mark = tmp_path / "mark"
    for name in ("spiral_matrix", "simple_integration"):
        task = load("gym", path=name)
        problem = task.problems("test")[0]
        reward = task.reward(problem, f"<answer>__import__('pathlib').Path({str(mark)!r}).touch()</answer>")
        assert isinstance(reward, Reward)
        assert reward.strict
        assert (reward.value, reward.strict.reason) == (0.0, "an answer that would run as code")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("answer", "scorer", "expected"),
    [
        ("[[1, -2], [3, 4]]", "binary_matrix", True),
        ("1 2 3\n4 5 6", "binary_matrix", True),
        ("Zoey is a knave, and Riley is a knight.", "knights_knaves", True),
        ("open('x', 'w')", "binary_matrix", False),
        ("[print(1)]", "n_queens", False),
        ("(1).__class__", "n_queens", False),
        ("[x for x in (1, 2)]", "n_queens", False),
        ("f'{1}'", "n_queens", False),
        ("lambda: 1", "n_queens", False),
        ("6 * (5 + 4) - 3/2", "countdown", True),
        ("2*x**2 + sin(x) + C", "simple_integration", True),
        ("eval('1')", "countdown", False),
        ("sin('1')", "simple_integration", False),  # sympy evaluates strings
        ("sin(x).diff()", "simple_integration", False),
        ("open(x)! + 3", "countdown", False),  # not Python until sympy has rewritten it
        ("log(x, evaluate=x)", "simple_integration", False),
    ],
)
def test_is_safe_to_score_by_the_scorer(answer: str, scorer: str, expected: bool) -> None:
    assert is_safe_to_score(answer, scorer) is expected


def test_gym_refuses_unknown_names_and_bad_params(reasoning_gym: None) -> None:
    assert load_error("gym", path="leg_countin").remedy == "did you mean 'leg_counting'?"
    assert "--task.path" in load_error("gym").remedy
    unknown = load_error("gym", path="leg_counting", params={"animals": 3})
    assert "TypeError" in unknown.cause
    assert "'animals'" in unknown.cause
    assert "AssertionError" in load_error("gym", path="leg_counting", params={"min_animals": 0}).cause
    assert "'seed'" in load_error("gym", path="leg_counting", params={"seed": 3}).cause


def test_gym_seeds_are_within_numpys_range(reasoning_gym: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gym.SIZES, "test", 2)
    for seed in range(4):
        assert load("gym", path="pool_matrix", seed=seed).problems("test")


def test_gym_drops_repeated_questions(reasoning_gym: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[Split, int] = {"train": 300, "validation": 30, "test": 20}
    for split, size in sizes.items():
        monkeypatch.setitem(gym.SIZES, split, size)
    # One of a few dozen animals, once or twice: far fewer than 350 questions.
    few_questions = {"min_animals": 1, "max_animals": 1, "min_instances": 1, "max_instances": 2}
    task = load("gym", path="leg_counting", params=few_questions)
    check_task(task)
    questions = [p.question for p in all_problems(task)]
    assert len(set(questions)) == len(questions) < 150
