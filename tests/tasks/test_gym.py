"""reasoning-gym tasks: disjoint splits, and scorers that hang, raise or pay for any answer, contained."""

import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.tasks import all_problems, load, load_error
from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.rollout.scoring import Scorer
from reinforce_lite.tasks import check_task, gym
from reinforce_lite.tasks.base import Task
from reinforce_lite.tasks.gym import GymScorer, GymTask
from reinforce_lite.tasks.reward_worker import Outcomes
from reinforce_lite.tasks.rewards import outcome_from_json
from reinforce_lite.types import SPLITS, Problem, Reward, Split, Verdict


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
    scorer = GymScorer(TaskConfig(name="gym", path="leg_counting", answer_format="boxed"))
    problem = gym._make_problem(scorer.scorer[0], "leg_counting")
    assert scorer.reward(problem, f"\\boxed{{{problem.gold}}}").value == 1.0
    assert scorer.reward(problem, f"<answer>{problem.gold}</answer>").value == 0.0


def test_gym_keeps_the_scorers_partial_reward(reasoning_gym: None) -> None:
    scorer, problem = first_problem("spiral_matrix")
    as_list = "[" + problem.gold.replace(" ", ", ") + "]"  # right, but as a list: its scorer pays 0.1
    reward = scorer.reward(problem, f"<answer>{as_list}</answer>")
    assert reward.strict
    assert (reward.value, reward.strict.correct, reward.strict.reason) == (0.1, False, "scored 0.1")


@pytest.mark.parametrize(
    ("name", "longer"),
    [
        ("gcd", "{}1"),
        ("chain_sum", "{}0"),
        ("products", "1,{}"),
        ("manipulate_matrix", "{}\n7"),
        ("letter_counting", "1{}2"),
        ("tsumego", "{} or A1"),
        ("count_bits", "{}, {}"),
    ],
)
def test_gym_does_not_pay_for_an_answer_that_only_contains_the_gold(
    reasoning_gym: None, name: str, longer: str
) -> None:
    """11 is no divisor of what 1 divides best, though the scorer pays 0.5 for it."""
    scorer, problem = first_problem(name)
    answer = longer.replace("{}", problem.gold)
    assert 0 < scorer.scorer.score_answer(answer, problem.info) < 1
    reward = scorer.score(problem, answer)
    assert reward.strict
    assert (reward.value, reward.strict.correct) == (0.0, False)
    assert reward.strict.reason == "contains the gold, but is another answer"


def test_gym_never_runs_an_answer_as_code(reasoning_gym: None, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for name in ("spiral_matrix", "simple_integration"):
        scorer, problem = first_problem(name)
        answer = f"__import__('pathlib').Path({str(mark)!r}).touch()"
        reward = scorer.reward(problem, f"<answer>{answer}</answer>")
        assert reward.strict
        assert reward.value == 0.0
        assert "run as code" in reward.strict.reason
    assert not mark.exists()


def make_scorer(name: str, **params: Any) -> GymScorer:
    """A data set's scorer, in this process."""
    return GymScorer(TaskConfig(name="gym", path=name, params=params))


def first_problem(name: str, **params: Any) -> tuple[GymScorer, Problem]:
    """A scorer and the first training problem."""
    scorer = make_scorer(name, **params)
    return scorer, gym._make_problem(scorer.scorer[0], name)


class FakeScorer:
    """A data set of ten problems with the golds 0 to 9."""

    def __init__(self, score: Callable[[str, str], Any]) -> None:
        self.score = score

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"question": f"How much is {index}?", "answer": str(index)}

    def score_answer(self, answer: str, entry: Mapping[str, Any]) -> Any:
        return self.score(answer, entry["answer"])


def fake_scorer(score: Callable[[str, str], Any], data_set: type[FakeScorer] = FakeScorer) -> GymScorer:
    scorer = make_scorer("fake")
    vars(scorer)["scorer"] = data_set(score)  # where cached_property keeps it
    return scorer


class FakeTask(GymTask):
    """A task whose worker is this process."""

    def __init__(self, scorer: GymScorer) -> None:
        super().__init__(scorer.config)
        self.scorer = scorer

    def start(self) -> None:
        pass

    def score(self, items: Sequence[Any], method: str = "rewards") -> Outcomes:
        records = getattr(self.scorer, method)(items)
        yield from enumerate(map(outcome_from_json, records))


def check_constants(scorer: GymScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "_create_dataset", lambda config, split: scorer.scorer)
    gym._check_constants(FakeTask(scorer))


POWER_TASKS = (
    *("binary_matrix", "n_queens", "spiral_matrix", "string_insertion", "countdown", "puzzle24"),
    *("simple_integration", "intermediate_integration", "polynomial_multiplication"),
)


@pytest.mark.parametrize("name", POWER_TASKS)
def test_gym_never_computes_a_tower_of_powers(reasoning_gym: None, name: str) -> None:
    task, problem = first_problem(name)
    for answer in ("9**9**9", "9**999999999", "1<<9**9"):
        verdict = task.reward(problem, f"<answer>{answer}</answer>").strict
        assert verdict
        assert (verdict.correct, verdict.answer) == (False, answer)
        assert verdict.reason


@pytest.mark.parametrize(
    ("name", "answer"),
    [("rubiks_cube", "R9999999999"), ("rush_hour", "F+999999999999"), ("coin_flip", "1e999999999")],
)
def test_gym_never_repeats_or_scales_without_bound(reasoning_gym: None, name: str, answer: str) -> None:
    task, problem = first_problem(name)
    assert task.score(problem, answer).value == 0


@pytest.mark.parametrize(
    ("name", "answer", "error"),
    [
        ("prime_factorization", "two times three", "ValueError"),
        ("boxnet", "0", "TypeError"),
        ("calendar_arithmetic", "9" * 999, "OverflowError"),
    ],
)
def test_gym_pays_0_where_the_scorer_raises_and_says_why(
    reasoning_gym: None, name: str, answer: str, error: str
) -> None:
    params = {"tasks": ["count_days"]} if name == "calendar_arithmetic" else {}
    task = make_scorer(name, **params)
    problem = gym._make_problem(task.scorer[0], name)
    reward = task.reward(problem, f"<answer>{answer}</answer>")
    assert reward.strict
    assert (reward.value, reward.strict.correct, reward.strict.answer) == (0.0, False, answer)
    assert f"the scorer raised {error}" in reward.strict.reason


def test_gym_pays_0_for_a_score_that_is_not_finite() -> None:
    problem = Problem("p", "q", "5", info={"answer": "5"})
    for value in (float("nan"), float("inf")):
        reward = fake_scorer(lambda *_, value=value: value).score(problem, "7")
        assert reward.strict
        assert (reward.value, reward.strict.correct) == (0.0, False)
        assert str(value) in reward.strict.reason


def test_gym_never_pays_for_nan(reasoning_gym: None) -> None:
    task, problem = first_problem("complex_arithmetic")
    assert task.scorer.score_answer("nan", problem.info) == 1  # its scorer alone does
    assert task.score(problem, "nan").value == 0


def test_gym_always_scores_the_gold_itself() -> None:
    gold = "print(1)"
    problem = Problem("p", "q", gold, info={"answer": gold})
    assert fake_scorer(lambda answer, right: answer == right).score(problem, gold) == Reward(
        1.0, Verdict(True, gold, "right")
    )


def test_gym_refuses_a_scorer_that_pays_for_any_text(reasoning_gym: None) -> None:
    error = load_error("gym", path="game_of_life_halting")
    assert "'0'" in error.cause
    assert "30 problems" in error.cause


def test_gym_names_a_constant_that_pays_well_and_what_it_pays(
    reasoning_gym: None, caplog: pytest.LogCaptureFixture
) -> None:
    load("gym", path="game_of_life")
    assert "zeros" in caplog.text
    assert "0.9" in caplog.text


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (lambda answer, right: answer == right, ""),
        (lambda answer, right: 0.3 if answer == "yes" else 0.0, ""),
        (lambda answer, right: 0.4 if answer == "yes" else 0.0, "0.40 for 'yes'"),
        (lambda answer, right: answer == "7" and right != "2", "0.90 for '7'"),  # another problem's gold
    ],
)
def test_constants_are_told_above_three_tenths(
    score: Callable[[str, str], Any],
    told: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Common(FakeScorer):
        """The golds that are tried are the most common ones, so 7 is made common."""

        def __getitem__(self, index: int) -> dict[str, Any]:
            return super().__getitem__(index) | ({"answer": "7"} if index > 6 else {})

    check_constants(fake_scorer(score, Common), monkeypatch)
    assert ("pays on average" in caplog.text) == bool(told)
    assert told in caplog.text


def test_another_problems_gold_that_is_always_right_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'3'"):
        check_constants(fake_scorer(lambda answer, _: answer == "3"), monkeypatch)


def test_gym_lists_as_params(no_audit: None) -> None:
    task = load("gym", path="boxnet", params={"colour_list": ["violet"], "max_row_num": 1})
    questions = [problem.question for problem in task.problems("validation")]
    assert all("box_violet" in question and "box_red" not in question for question in questions)


def test_gym_composite_mixes_its_parts_and_scores_each_by_its_own(
    reasoning_gym: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gym.SIZES, "validation", 40)
    parts = [
        {"name": "leg_counting", "weight": 3, "config": {"max_animals": 4}},
        {"name": "spiral_matrix"},
        {"name": "boxnet"},
    ]
    task = load("gym", path="composite", params={"datasets": parts})
    problems = task.problems("validation")
    names = {p.info["metadata"]["source_dataset"] for p in problems}
    assert names == {"leg_counting", "spiral_matrix", "boxnet"}
    for problem in problems:
        if problem.gold:
            assert task.reward(problem, f"<answer>{problem.gold}</answer>") == Reward(
                1.0, Verdict(True, problem.gold, "right")
            )
    spiral = next(p for p in problems if p.info["metadata"]["source_dataset"] == "spiral_matrix")
    reward = task.reward(spiral, "<answer>spiral_matrix</answer>")  # a name: eval() would look it up
    assert isinstance(reward, Reward)
    assert reward.strict
    assert "run as code" in reward.strict.reason


def test_gym_composite_without_good_parts_is_one_line(reasoning_gym: None) -> None:
    for datasets in ([{"weight": 1}], [{"name": "leg_countin"}], ["leg_counting"], 3):
        assert "composite" in load_error("gym", path="composite", params={"datasets": datasets}).cause


def test_gym_refuses_unknown_names_and_bad_params(reasoning_gym: None) -> None:
    assert load_error("gym", path="leg_countin").remedy == "did you mean 'leg_counting'?"
    assert "--task.path" in load_error("gym").remedy
    unknown = load_error("gym", path="leg_counting", params={"animals": 3})
    assert "TypeError" in unknown.cause
    assert "'animals'" in unknown.cause
    assert "AssertionError" in load_error("gym", path="leg_counting", params={"min_animals": 0}).cause
    assert "'seed'" in load_error("gym", path="leg_counting", params={"seed": 3}).cause


@pytest.fixture
def no_audit(reasoning_gym: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are loaded without a worker, which takes a second or two to start."""
    monkeypatch.setattr(gym, "_check_constants", lambda task: None)


def test_gym_seeds_are_within_numpys_range(no_audit: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gym.SIZES, "test", 2)
    for seed in range(4):
        assert load("gym", path="pool_matrix", seed=seed).problems("test")


def test_gym_drops_repeated_questions_and_counts_them(
    no_audit: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sizes: dict[Split, int] = {"train": 300, "validation": 30, "test": 20}
    for split, size in sizes.items():
        monkeypatch.setitem(gym.SIZES, split, size)
    # One of a few dozen animals, once or twice: far fewer than 350 questions.
    few_questions = {"min_animals": 1, "max_animals": 1, "min_instances": 1, "max_instances": 2}
    task = load("gym", path="leg_counting", params=few_questions)
    check_task(task)
    questions = [p.question for p in all_problems(task)]
    assert len(set(questions)) == len(questions) < 150
    left = len(task.problems("train"))
    assert f"{300 - left} of 300 train" in caplog.text


def test_gym_prints_no_warning_about_a_models_text(
    reasoning_gym: None, recwarn: pytest.WarningsRecorder
) -> None:
    for name, answer in (("pool_matrix", "[]"), ("chain_sum", "1or 2")):
        task, problem = first_problem(name)
        task.score(problem, answer)
    assert not recwarn.list


REFUSED = {"game_of_life_halting", "puzzle24"}
"""puzzle24's scorer pays for any four numbers that make 24, those of the question or others."""
PARAMS: dict[str, dict[str, Any]] = {
    "composite": {"datasets": [{"name": "chain_sum"}, {"name": "leg_counting"}]},
}
SECONDS = 600  # for one data set; knight_swap takes a minute or two to generate 30 problems


def right_answer(problem: Problem) -> str | None:
    """The gold; where the data set has none, an answer that its entry names; None where that has none either."""
    if problem.gold:
        return problem.gold
    meta = problem.info["metadata"]
    if "possible_answer" in meta:  # graph_color
        return json.dumps(meta["possible_answer"])
    example: str | None = meta.get("example_correct_answer")  # rubiks_cube
    return example


def try_data_set(name: str) -> None:
    """Load it, and score golds, a wrong answer and hostile ones."""
    params = PARAMS.get(name, {})
    try:
        load("gym", path=name, params=params)
        assert name not in REFUSED
    except UsageError:
        assert name in REFUSED
    task = make_scorer(name, **params)
    for index in range(3):
        problem = gym._make_problem(task.scorer[index], name)
        right = right_answer(problem)
        assert right is None or task.score(problem, right).value == 1
        if name != "game_of_life_halting":
            assert task.score(problem, "-123456.789").value < 1
        for answer in (
            "",
            "wrong",
            "9**9**9",
            "9" * 5_000,
            "[" * 9_999,
            "nan",
            "[1]*9**9",
            "A9999999999",
            "(P∧" * 90,
        ):
            task.score(problem, answer)


def data_sets() -> list[str]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return []
    return sorted(DATASETS)


def test_every_data_set_is_tried() -> None:
    assert not data_sets() or len(data_sets()) >= 106


@pytest.mark.slow
@pytest.mark.parametrize("name", data_sets())
def test_gym_data_set_scores_golds_as_right_and_never_raises_or_hangs(name: str) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:  # its exit ends a child that hangs
        pool.apply_async(try_data_set, [name]).get(timeout=SECONDS)


# Python imports a module of this name when it starts, so that the worker has the scorer that hangs.
SITECUSTOMIZE = """
from reasoning_gym.arithmetic.leg_counting import LegCountingDataset
def score(self, answer, entry):
    while answer in ("0", "99"):
        pass
    return 1.0 if answer == entry["answer"] else 0.5 * (answer == "True")
LegCountingDataset.score_answer = score
"""


@pytest.mark.case(22)
def test_gym_scorer_that_hangs_costs_one_constant_and_one_reward(
    reasoning_gym: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setitem(gym.SIZES, "test", 3)
    task = load("gym", path="leg_counting", reward_seconds=0.5)
    assert "0.50 for 'True'" in caplog.text  # a constant after the one that hangs
    problem = task.problems("test")[0]
    texts = [f"<answer>{answer}</answer>" for answer in (problem.gold, "99", problem.gold)]
    scored = Scorer(task).score([(problem, text) for text in texts])
    assert [reward.value for reward, _ in scored] == [1.0, 0.0, 1.0]
    assert [bool(fault) for _, fault in scored] == [False, True, False]
