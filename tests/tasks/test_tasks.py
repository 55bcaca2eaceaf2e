"""Where problems come from: what is accepted, what is refused and in which words."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.paths import ROOT
from reinforce_lite.config import TaskConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.tasks import check_task, gym, load_task, task_fingerprint
from reinforce_lite.tasks.base import NumberTask, Task
from reinforce_lite.tasks.gym import is_harmless
from reinforce_lite.tasks.python_file import FileTask
from reinforce_lite.types import Problem, Reward, Split

GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def load(name: str, **section: Any) -> Task:
    return load_task(TaskConfig(name=name, **section))


def refusal(name: str, **section: Any) -> UsageError:
    """The error that loading this section, and asking for its problems, ends in."""
    with pytest.raises(UsageError) as caught:
        load(name, **section).problems("train")
    assert "\n" not in caught.value.cause
    assert "\n" not in caught.value.remedy
    return caught.value


def write(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def some(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"question": f"How much is {i} and 1?", "answer": str(i + 1)} for i in range(start, start + n)]


def all_of(task: Task) -> list[Problem]:
    return [p for split in SPLITS for p in task.problems(split)]


def only(tmp_path: Path, *rows: Mapping[str, Any] | str, **section: Any) -> Problem:
    """The one problem in a file of these rows."""
    (problem,) = all_of(load("jsonl", path=str(write(tmp_path / "one.jsonl", rows)), **section))
    return problem


def value(task: Task, problem: Problem, text: str) -> float:
    reward = task.reward(problem, text)
    return reward.value if isinstance(reward, Reward) else reward


# ── load, check, fingerprint ──


def test_an_unknown_task_is_told_with_the_nearest() -> None:
    assert refusal("wordmth").remedy == "did you mean 'wordmath'?"
    assert "my_task.py" in refusal("chess").remedy


def problem(name: str, question: str = "", gold: str = "1") -> Problem:
    return Problem(name, question or f"question {name}", gold)


def test_check_passes_good_data() -> None:
    check_task(NumberTask((problem("a"),), (problem("b"),), (problem("c"),)))


@pytest.mark.parametrize("empty", SPLITS)
def test_check_names_an_empty_split(empty: Split) -> None:
    parts = {split: () if split == empty else (problem(split),) for split in SPLITS}
    with pytest.raises(UsageError, match=f"no {empty} problems"):
        check_task(NumberTask(**parts))


@pytest.mark.parametrize(
    ("held_out", "learned"), [("test", "train"), ("validation", "train"), ("test", "validation")]
)
def test_check_counts_questions_that_stand_in_two_parts(held_out: Split, learned: Split) -> None:
    parts: dict[str, tuple[Problem, ...]] = {split: (problem(split),) for split in SPLITS}
    parts[learned] += (problem("a", "How many eggs?"), problem("b", "How many hens?"))
    parts[held_out] += (problem("c", "How  many\neggs? "), problem("d", "How many hens?"))
    with pytest.raises(UsageError) as caught:
        check_task(NumberTask(**parts))
    assert caught.value.cause == f"2 {held_out} questions also stand in {learned}, the first is 'c'"


def test_check_finds_an_id_in_two_splits() -> None:
    with pytest.raises(UsageError, match="1 ids stand for more than one problem, the first is 'a'"):
        check_task(NumberTask((problem("a"),), (problem("b"),), (problem("a", "another"),)))


def test_the_fingerprint_changes_with_the_data_and_only_with_it() -> None:
    one = NumberTask((problem("a"),), (problem("b"),), (problem("c"),))
    again = NumberTask((problem("a"),), (problem("b"),), (problem("c"),))
    changed = [
        NumberTask((problem("a", gold="2"),), one.validation, one.test),
        NumberTask((problem("a", "other"),), one.validation, one.test),
        NumberTask((problem("z", "question a"),), one.validation, one.test),
        NumberTask(one.train, one.test, one.validation),
        NumberTask((*one.train, problem("d")), one.validation, one.test),
        NumberTask(one.train, (*one.validation, *one.test), ()),
    ]
    assert task_fingerprint(one) == task_fingerprint(again)
    assert len({task_fingerprint(task) for task in [one, *changed]}) == 7


# ── jsonl: what a row may be ──


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("72", "72"),
        (72, "72"),
        (72.5, "72.5"),
        ("$1,234", "$1,234"),
        ("-7", "-7"),
        ("Half of 48 is 24.\n48 + 24 = 72\n#### 72", "72"),
    ],
)
def test_answers_that_are_accepted(tmp_path: Path, answer: Any, gold: str) -> None:
    assert only(tmp_path, {"question": "?", "answer": answer}).gold == gold


def test_the_steps_before_the_mark_are_the_solution(tmp_path: Path) -> None:
    found = only(tmp_path, {"question": " How many? ", "answer": "a #### b\n48 + 24 = 72\n#### 72 "})
    assert (found.question, found.gold) == ("How many?", "72")
    assert found.solution == "a #### b\n48 + 24 = 72"


def test_columns_of_other_names(tmp_path: Path) -> None:
    row = {"problem": "How many?", "gold": 3, "how": "1 + 2 = 3", "key": 17, "answer": "not this one"}
    columns = {"question": "problem", "answer": "gold", "solution": "how", "id": "key"}
    assert only(tmp_path, row, columns=columns) == Problem("17", "How many?", "3", "1 + 2 = 3")


def test_ids_are_the_id_column_or_a_hash_of_the_question(tmp_path: Path) -> None:
    assert only(tmp_path, {"question": "?", "answer": "1", "id": "a7"}).id == "a7"
    hashed = only(tmp_path, {"question": "?", "answer": "1", "id": None}).id
    assert hashed.startswith("one-")
    assert len(hashed) == len("one-") + 12
    assert only(tmp_path, {"question": "?", "answer": "2"}).id == hashed
    assert only(tmp_path, {"question": "??", "answer": "1"}).id != hashed


def test_bom_crlf_blank_lines_and_line_separators_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "win.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"question": "a\xe2\x80\xa8b", "answer": 1}\r\n\r\n  \r\n{"question": "c", "answer": 2}'
    )
    assert {p.question: p.gold for p in all_of(load("jsonl", path=str(path)))} == {
        "a\u2028b": "1",
        "c": "2",
    }


def test_a_question_twice_with_one_answer_is_one_problem(tmp_path: Path) -> None:
    rows = [
        {"question": "How many eggs?", "answer": "72"},
        {"question": "How  many eggs? ", "answer": "72.0"},
    ]
    assert only(tmp_path, *rows).gold == "72"


BAD: list[tuple[Any, str]] = [
    ('{"question": "?", "answer"', "not JSON"),
    ("[" * 100_000, "not JSON"),
    ('{"question": "?", "answer": ' + "9" * 5_000 + "}", "not JSON"),
    ("[1, 2]", "not an object"),
    ('"text"', "not an object"),
    ({"answer": "1"}, "no 'question'"),
    ({"question": "?"}, "no 'answer'"),
    ({"question": None, "answer": "1"}, "'question' is null"),
    ({"question": "?", "answer": None}, "'answer' is null"),
    ({"question": " \n", "answer": "1"}, "'question' is blank"),
    ({"question": "?", "answer": ""}, "'answer' is blank"),
    ({"question": 5, "answer": "1"}, "'question' is not text"),
    ({"question": "?", "answer": True}, "'answer' is not text"),
    ({"question": "?", "answer": [1]}, "'answer' is not text"),
    ({"question": "cut \ud83d", "answer": "1"}, "'question' holds half a character"),
    ({"question": "?", "answer": "blue"}, "answer 'blue' is not one number"),
    ({"question": "?", "answer": "3 or 4"}, "answer '3 or 4' is not one number"),
    ({"question": "?", "answer": "12 ####"}, "answer '' is not one number"),
    ({"question": "?", "answer": float("nan")}, "answer 'nan' is not one number"),
    ({"question": "?", "answer": float("inf")}, "answer 'inf' is not one number"),
]


@pytest.mark.parametrize(
    ("row", "reason"), BAD, ids=[f"{i}-{reason[:20]}" for i, (_, reason) in enumerate(BAD)]
)
def test_bad_lines_are_told_with_their_number(tmp_path: Path, row: Any, reason: str) -> None:
    path = write(tmp_path / "bad.jsonl", [*some(2), "", row, *some(2, 2)])
    error = refusal("jsonl", path=str(path))
    assert error.cause == f"{path}: 1 bad line: line 4 ({reason})"
    assert error.remedy


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"question": "caf\xe9", "answer": "1"}\n')
    assert refusal("jsonl", path=str(path)).cause == f"{path}: 1 bad line: line 1 (not UTF-8)"


def test_one_report_for_all_bad_lines_and_the_first_ten_by_number(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", [*some(3), *["oops"] * 11, {"question": "?", "answer": "blue"}])
    error = refusal("jsonl", path=str(path))
    first = ", ".join(f"line {n} (not JSON)" for n in range(4, 14))
    assert error.cause == f"{path}: 12 bad lines: {first} and 2 more"
    assert "JSON object" in error.remedy
    assert "my_task.py" in error.remedy  # for the gold that is no number


def test_a_question_with_two_answers_names_both_lines(tmp_path: Path) -> None:
    rows = [*some(2), {"question": "How much is 0  and 1?", "answer": "7"}]
    error = refusal("jsonl", path=str(write(tmp_path / "two.jsonl", rows)))
    assert error.cause.endswith("1 bad line: line 3 (the question of line 1 with another answer)")


def test_an_id_for_two_questions_names_both_lines(tmp_path: Path) -> None:
    rows = [{"question": q, "answer": "1", "id": 5} for q in ("a", "b")]
    error = refusal("jsonl", path=str(write(tmp_path / "ids.jsonl", rows)))
    assert error.cause.endswith("line 2 (the id '5' again, first used on 1)")


def test_a_missing_column_says_what_there_is(tmp_path: Path) -> None:
    path = write(tmp_path / "cols.jsonl", [{"problem": "?", "gold": "1"}])
    error = refusal("jsonl", path=str(path), columns={"answer": "gold"})
    assert error.cause.endswith("line 1 (no 'question')")
    assert error.remedy.startswith("it has 'problem', 'gold'")
    misspelt = refusal("jsonl", path=str(path), columns={"anser": "gold"})
    assert misspelt.remedy == "did you mean 'answer'?"
    assert "no 'key'" in refusal("jsonl", path=str(write(path, some(1))), columns={"id": "key"}).cause


def test_files_that_are_missing_or_empty(tmp_path: Path) -> None:
    missing = tmp_path / "none.jsonl"
    assert refusal("jsonl", path=str(missing)).cause == f"can't read {missing}: No such file or directory"
    empty = write(tmp_path / "empty.jsonl", ["", " "])
    assert refusal("jsonl", path=str(empty)).cause == f"{empty} holds no problems"
    assert "--task.path" in refusal("jsonl").remedy
    write(tmp_path / "half" / "train.jsonl", some(3))
    assert "test.jsonl" in refusal("jsonl", path=str(tmp_path / "half")).cause


# ── jsonl: its parts ──


def test_one_file_is_held_out_by_a_hash(tmp_path: Path) -> None:
    path = str(write(tmp_path / "all.jsonl", some(3_000)))
    task = load("jsonl", path=path)
    check_task(task)
    sizes = [len(task.problems(split)) for split in SPLITS]
    assert sum(sizes) == 3_000
    # 2400, 300, 300 but for chance: within four standard deviations, 22 and 16
    assert abs(sizes[0] - 2_400) < 88
    assert abs(sizes[1] - 300) < 66
    assert abs(sizes[2] - 300) < 66
    other_seed = load("jsonl", path=path, seed=1)
    assert task.problems("test") != other_seed.problems("test")


def test_a_problem_stays_in_its_part_when_others_come(tmp_path: Path) -> None:
    few = load("jsonl", path=str(write(tmp_path / "few.jsonl", some(200))))
    many = load("jsonl", path=str(write(tmp_path / "many.jsonl", [*some(300, 500), *reversed(some(200))])))
    for split in SPLITS:
        assert {p.question for p in few.problems(split)} <= {p.question for p in many.problems(split)}


def test_a_folder_gives_its_parts(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", some(3_000))
    write(tmp_path / "test.jsonl", some(5, 5_000))
    task = load("jsonl", path=str(tmp_path))
    check_task(task)
    assert [p.gold for p in task.problems("test")] == ["5001", "5002", "5003", "5004", "5005"]
    held_out = len(task.problems("validation"))
    assert len(task.problems("train")) == 3_000 - held_out
    assert 128 < held_out < 232  # 180, four standard deviations of 13
    write(tmp_path / "validation.jsonl", some(4, 6_000))
    task = load("jsonl", path=str(tmp_path))
    assert [len(task.problems(split)) for split in SPLITS] == [3_000, 4, 5]


def test_test_questions_in_a_folders_train_file_are_found(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", some(100))
    write(tmp_path / "test.jsonl", [{"id": "t", **some(1, 7)[0]}])
    write(tmp_path / "validation.jsonl", some(1, 900))
    with pytest.raises(UsageError, match="1 test questions also stand in train, the first is 't'"):
        check_task(load("jsonl", path=str(tmp_path)))


def test_number_tasks_grade_strict_and_lenient(tmp_path: Path) -> None:
    path = str(write(tmp_path / "one.jsonl", [{"question": "?", "answer": "1,234"}]))
    task = load("jsonl", path=path)
    (found,) = all_of(task)
    reward = task.reward(found, "<answer>1234</answer>")
    assert isinstance(reward, Reward)
    assert reward.value == 1.0
    reward = task.reward(found, "it is 1234")
    assert isinstance(reward, Reward)
    assert reward.strict
    assert reward.lenient
    assert (reward.value, reward.strict.correct, reward.lenient.correct) == (0.0, False, True)


# ── gsm8k ──


@pytest.fixture(scope="module")
def gsm8k() -> Task:
    if not (GSM8K / "train.jsonl").exists():
        pytest.skip(f"GSM8K itself is not at {GSM8K}: it lies beside the repository, not in it")
    return load("gsm8k", path=str(GSM8K))


def test_gsm8k_is_whole(gsm8k: Task) -> None:
    check_task(gsm8k)
    train, validation, test = (gsm8k.problems(split) for split in SPLITS)
    assert len(train) + len(validation) == 7_473
    assert len(test) == 1_319
    assert 366 < len(validation) < 531  # 6% is 448, four standard deviations of 20.5
    ids = {p.id for p in (*train, *validation)}
    assert ids == {f"gsm8k-train-{i}" for i in range(7_473)}
    assert [p.id for p in test] == [f"gsm8k-test-{i}" for i in range(1_319)]


def test_gsm8k_rows_are_read_as_they_stand(gsm8k: Task) -> None:
    found = {p.id: p for p in all_of(gsm8k)}
    first = found["gsm8k-train-0"]
    assert first.question.startswith("Natalia sold clips to 48 of her friends in April")
    assert first.gold == "72"
    assert first.solution.endswith("altogether in April and May.")
    assert found["gsm8k-test-0"].gold == "18"  # Janet's ducks
    golds = [p.gold for p in found.values()]
    assert sum("," in gold for gold in golds) == 93
    assert sum(gold.startswith("-") for gold in golds) == 5


def test_every_gsm8k_gold_is_right_for_itself_and_wrong_for_the_next_number(gsm8k: Task) -> None:
    for found in all_of(gsm8k):
        assert value(gsm8k, found, f"<answer>{found.gold}</answer>") == 1.0
        following = int(found.gold.replace(",", "")) + 1
        assert value(gsm8k, found, f"<answer>{following}</answer>") == 0.0


def test_gsm8k_from_a_folder_that_lacks_a_part(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", some(3))
    assert "test.jsonl" in refusal("gsm8k", path=str(tmp_path)).cause


# ── hub ──


def serve(monkeypatch: pytest.MonkeyPatch, load_dataset: Callable[..., Any]) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_the_hubs_own_parts_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return {"train": some(50), "test": some(3, 100), "validation": some(2, 200), "extra": ["never read"]}

    serve(monkeypatch, load_dataset)
    task = load("hub", path="someone/sums:main")
    assert asked == [(("someone/sums", "main"), {})]  # and no trust_remote_code
    check_task(task)
    assert [len(task.problems(split)) for split in SPLITS] == [50, 2, 3]
    assert task.problems("test")[0].id.startswith("sums-test-")


@pytest.mark.parametrize(
    ("given", "held_out"),
    [
        ({"test": some(3, 9_000)}, {"validation": 60}),
        ({"validation": some(3, 9_000)}, {"test": 100}),
        ({}, {"validation": 100, "test": 100}),
    ],
)
def test_missing_parts_are_held_out_of_train(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], held_out: dict[str, int]
) -> None:
    serve(monkeypatch, lambda *_: {"train": some(1_000), **given})
    task = load("hub", path="someone/sums")
    check_task(task)
    sizes = {split: len(task.problems(split)) for split in SPLITS}
    for split in given:
        assert sizes.pop(split) == 3  # type: ignore[call-overload]
    assert sum(sizes.values()) == 1_000
    for split, expected in held_out.items():
        assert abs(sizes[split] - expected) < 40, sizes  # type: ignore[index]


def test_a_hub_split_to_train_on(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(
        monkeypatch, lambda *_: {"train": some(40), "train_hard": some(300, 1_000), "test": some(300, 2_000)}
    )
    task = load("hub", path="someone/sums", split="train_hard")
    assert all(int(p.gold) > 1_000 for p in task.problems("train"))
    # Trained on, its test part can't measure: parts are held out of it.
    task = load("hub", path="someone/sums", split="test")
    assert sum(len(task.problems(split)) for split in SPLITS) == 300
    check_task(task)
    error = refusal("hub", path="someone/sums", split="trian_hard")
    assert (error.cause, error.remedy) == (
        "someone/sums has no split 'trian_hard'",
        "did you mean 'train_hard'?",
    )


def test_hub_ids_hold_their_split(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": i, **row} for i, row in enumerate(rows)]

    serve(monkeypatch, lambda *_: {"train": counted(some(40)), "test": counted(some(3, 100))})
    task = load("hub", path="someone/sums")
    assert [p.id for p in task.problems("test")] == ["test-0", "test-1", "test-2"]
    check_task(task)


def test_bad_hub_rows_are_told_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, lambda *_: {"train": [*some(2), {"question": "?", "answer": None}]})
    assert refusal("hub", path="a/b").cause == "a/b, train: 1 bad row: row 2 ('answer' is null)"


def test_the_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any) -> Any:
        raise ConnectionError("Couldn't reach 'a/b' on the Hub\nwith more\nlines")

    serve(monkeypatch, load_dataset)
    for error in (refusal("hub", path="a/b"), refusal("gsm8k")):
        assert error.cause.endswith(": Couldn't reach 'a/b' on the Hub")
        assert "network" in error.remedy
    assert "--task.path" in refusal("hub").remedy


def test_gsm8k_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any) -> Any:
        asked.append(args)
        return {"train": some(100), "test": [{"question": "?", "answer": "6 * 12 = 72\n#### 72"}]}

    serve(monkeypatch, load_dataset)
    task = load("gsm8k")
    assert asked == [("openai/gsm8k", "main")]
    assert task.problems("test") == (Problem("gsm8k-test-0", "?", "72", "6 * 12 = 72"),)
    assert {p.id for p in all_of(task)} == {f"gsm8k-train-{i}" for i in range(100)} | {"gsm8k-test-0"}


def test_without_the_extra_the_install_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert 'pip install "reinforce-lite[hub]"' in refusal("hub", path="a/b").remedy
    assert 'pip install "reinforce-lite[gym]"' in refusal("gym", path="leg_counting").remedy


def test_a_real_data_set_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "sums" / "train.jsonl", some(60))
    write(tmp_path / "sums" / "test.jsonl", some(4, 100))
    datasets.disable_progress_bars()
    task = load("hub", path=str(tmp_path / "sums"))
    assert [p.gold for p in task.problems("test")] == ["101", "102", "103", "104"]
    assert len(all_of(task)) == 64


# ── gym ──


@pytest.fixture(scope="module")
def legs() -> Task:
    pytest.importorskip("reasoning_gym", reason='needs pip install "reinforce-lite[gym]"')
    return load("gym", path="leg_counting", params={"max_animals": 5})


def test_gym_parts_share_no_question(legs: Task) -> None:
    check_task(legs)
    train, validation, test = (legs.problems(split) for split in SPLITS)
    assert len(test) == 400
    assert 90 <= len(validation) <= 100
    assert 1_800 <= len(train) <= 2_000
    assert legs.problems("train") is legs.problems("train")
    again = load("gym", path="leg_counting", params={"max_animals": 5})
    assert again.problems("validation") == validation
    other = load("gym", path="leg_counting", params={"max_animals": 5}, seed=1)
    assert other.problems("validation") != validation


def test_gym_params_reach_the_generator(legs: Task) -> None:
    assert {len(p.info["metadata"]["animals"]) for p in legs.problems("test")} == {3, 4, 5}


def test_gym_scores_by_the_tasks_own_scorer(legs: Task) -> None:
    found = legs.problems("test")[0]
    reward = legs.reward(found, f"<think>…</think><answer>{found.gold}</answer>")
    assert isinstance(reward, Reward)
    assert reward.strict
    assert (reward.value, reward.strict.correct, reward.lenient) == (1.0, True, None)
    none = legs.reward(found, f"it is {found.gold}")
    assert isinstance(none, Reward)
    assert none.strict
    assert none.value == 0.0
    assert (none.strict.answer, none.strict.reason) == (None, "no answer block outside the thinking")


def test_gym_gives_part_of_the_reward_where_the_scorer_does() -> None:
    pytest.importorskip("reasoning_gym", reason='needs pip install "reinforce-lite[gym]"')
    task = load("gym", path="spiral_matrix")
    found = task.problems("validation")[0]
    listed = "[" + found.gold.replace(" ", ", ") + "]"  # right, but as a list: its scorer pays 0.1
    reward = task.reward(found, f"<answer>{listed}</answer>")
    assert isinstance(reward, Reward)
    assert reward.strict
    assert (reward.value, reward.strict.correct, reward.strict.reason) == (0.1, False, "scored 0.1")


def test_gym_never_runs_an_answer_as_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym", reason='needs pip install "reinforce-lite[gym]"')
    monkeypatch.setitem(gym.SIZES, "test", 3)
    mark = tmp_path / "mark"
    for name in ("spiral_matrix", "simple_integration"):
        task = load("gym", path=name)
        found = task.problems("test")[0]
        reward = task.reward(found, f"<answer>__import__('pathlib').Path({str(mark)!r}).touch()</answer>")
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
        ("sin('1')", "simple_integration", False),  # sympy evaluates what is in quotes
        ("sin(x).diff()", "simple_integration", False),
        ("open(x)! + 3", "countdown", False),  # no Python until sympy has rewritten it
        ("log(x, evaluate=x)", "simple_integration", False),
    ],
)
def test_answers_that_could_run(answer: str, scorer: str, expected: bool) -> None:
    assert is_harmless(answer, scorer) is expected


def test_gym_refusals() -> None:
    pytest.importorskip("reasoning_gym", reason='needs pip install "reinforce-lite[gym]"')
    assert refusal("gym", path="leg_countin").remedy == "did you mean 'leg_counting'?"
    assert "--task.path" in refusal("gym").remedy
    unknown = refusal("gym", path="leg_counting", params={"animals": 3})
    assert "TypeError" in unknown.cause
    assert "'animals'" in unknown.cause
    assert "AssertionError" in refusal("gym", path="leg_counting", params={"min_animals": 0}).cause
    assert "'seed'" in refusal("gym", path="leg_counting", params={"seed": 3}).cause


def test_gym_tasks_that_seed_numpy_are_within_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym", reason='needs pip install "reinforce-lite[gym]"')
    monkeypatch.setitem(gym.SIZES, "test", 2)
    for seed in range(4):
        assert load("gym", path="pool_matrix", seed=seed).problems("test")


def test_gym_questions_that_come_again_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym", reason='needs pip install "reinforce-lite[gym]"')
    for split, size in (("train", 300), ("validation", 30), ("test", 20)):
        monkeypatch.setitem(gym.SIZES, split, size)  # type: ignore[misc]
    # One of a few dozen animals, once or twice: far fewer than 350 questions.
    few = {"min_animals": 1, "max_animals": 1, "min_instances": 1, "max_instances": 2}
    task = load("gym", path="leg_counting", params=few)
    check_task(task)
    questions = [p.question for p in all_of(task)]
    assert len(set(questions)) == len(questions) < 150


# ── a file of one's own ──

GOOD = """
from dataclasses import dataclass
from reinforce_lite.types import Problem
def problems(split):
    return [Problem(id=split + str(i), question=f"{split} {i}?", gold=str(i)) for i in range(3)]
def reward(problem, completion):
    return 0.5 * (problem.gold in completion)
"""


def own(tmp_path: Path, text: str) -> str:
    path = tmp_path / "my_task.py"
    path.write_text(text)
    return str(path)


def test_a_module_is_a_task(tmp_path: Path) -> None:
    task = load(own(tmp_path, GOOD))
    check_task(task)
    found = task.problems("test")
    assert [p.id for p in found] == ["test0", "test1", "test2"]
    assert (task.reward(found[1], "1"), task.reward(found[1], "2")) == (0.5, 0.0)


def test_an_object_called_task_is_a_task(tmp_path: Path) -> None:
    text = GOOD.replace("def problems(split)", "class T:\n  def problems(self, split)")
    text = (
        text.replace("    return [", "    return [").replace("def reward(", "  def reward(self, ")
        + "task = T()\n"
    )
    task = load(own(tmp_path, text))
    assert task.reward(task.problems("train")[0], "0") == 0.5


def test_problems_are_asked_for_once(tmp_path: Path) -> None:
    text = GOOD.replace(
        "    return [Problem(id=split", "    import random\n    return [Problem(id=str(random.random())"
    )
    task = load(own(tmp_path, text))
    assert task.problems("train") == task.problems("train")


def test_two_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = load(own(tmp_path / "a", GOOD)), load(own(tmp_path / "b", GOOD.replace("0.5", "0.7")))
    p = one.problems("train")[0]
    assert (one.reward(p, "0"), other.reward(p, "0")) == (0.5, 0.7)
    assert isinstance(one, FileTask)
    assert isinstance(other, FileTask)
    assert sys.modules[one.task.__name__] is one.task is not other.task


def test_the_number_reward_can_be_borrowed(tmp_path: Path) -> None:
    text = GOOD.partition("def reward")[0] + "from reinforce_lite.tasks.base import number_reward as reward\n"
    task = load(own(tmp_path, text))
    assert value(task, task.problems("train")[2], "<answer>2</answer>") == 1.0


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("import no_such\n", "does not import: ModuleNotFoundError: No module named 'no_such' (line 1)"),
        (
            "def f():\n    return 1 / 0\nf()\n",
            "does not import: ZeroDivisionError: division by zero (line 2)",
        ),
        ("x = 1\n\ndef f(:\n", "does not import: SyntaxError: invalid syntax"),
        ("raise SystemExit(3)\n", "does not import: SystemExit: 3 (line 1)"),
        ("", "does not define problems and reward"),
        ("def problems(split): return []\n", "does not define reward"),
        (GOOD + "reward = 3\n", "does not define reward"),
        (
            GOOD + "def problems(split):\n    return 1 / 0\n",
            "raised ZeroDivisionError: division by zero (line 9)",
        ),
        (GOOD + "def problems(split): return [1]\n", "problems('train')[0] is of type int, not Problem"),
        (
            GOOD + "def problems(split): return [Problem('a', 'b', 'c'), Problem('a', 'b', 72)]\n",
            "problems('train')[1] has its gold of type int, not text",
        ),
        (GOOD + "def problems(split): return None\n", "raised TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_own_files_that_are_refused(tmp_path: Path, text: str, cause: str) -> None:
    error = refusal(own(tmp_path, text))
    assert cause in error.cause
    assert "my_task.py" in error.cause


def test_an_own_file_that_is_missing(tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "none.py")).cause == f"there is no file {tmp_path / 'none.py'}"
