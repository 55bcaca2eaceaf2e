"""GSM8K from a folder and from the hub."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.paths import ROOT
from helpers.tasks import all_problems, load, load_error, reward_value, sums, write_rows
from reinforce_lite.tasks import check_task
from reinforce_lite.tasks.base import Task
from reinforce_lite.tasks.numbers import read_gold
from reinforce_lite.types import SPLITS, Problem

GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"
TRAIN_ROWS, TEST_ROWS = 7_473, 1_319


@pytest.fixture(scope="module")
def gsm8k() -> Task:
    if not (GSM8K / "train.jsonl").exists():
        pytest.skip(f"GSM8K is not at {GSM8K}: it is not part of the repository")
    return load("gsm8k", path=str(GSM8K))


def test_gsm8k_is_complete(gsm8k: Task) -> None:
    check_task(gsm8k)
    train, validation, test = (gsm8k.problems(split) for split in SPLITS)
    assert len(train) + len(validation) == TRAIN_ROWS
    assert len(test) == TEST_ROWS
    assert 366 < len(validation) < 531  # 6% is 448, four standard deviations of 20.5
    ids = {p.id for p in (*train, *validation)}
    assert ids == {f"gsm8k-train-{i}" for i in range(TRAIN_ROWS)}
    assert [p.id for p in test] == [f"gsm8k-test-{i}" for i in range(TEST_ROWS)]


def test_gsm8k_keeps_the_text_of_its_rows(gsm8k: Task) -> None:
    problems = {p.id: p for p in all_problems(gsm8k)}
    first = problems["gsm8k-train-0"]
    assert first.question.startswith("Natalia sold clips to 48 of her friends in April")
    assert first.gold == "72"
    assert first.solution.endswith("altogether in April and May.")
    assert problems["gsm8k-test-0"].gold == "18"  # Janet's ducks
    golds = [p.gold for p in problems.values()]
    assert sum("," in gold for gold in golds) == 93
    assert sum(gold.startswith("-") for gold in golds) == 5


@pytest.mark.case(19)
def test_gsm8k_rewards_every_gold_and_not_the_next_number(gsm8k: Task) -> None:
    problems = all_problems(gsm8k)
    assert len(problems) == TRAIN_ROWS + TEST_ROWS
    for problem in problems:
        assert read_gold(problem.gold).value == int(problem.gold.replace(",", ""))
        assert reward_value(gsm8k, problem, f"<answer>{problem.gold}</answer>") == 1.0
        following = int(problem.gold.replace(",", "")) + 1
        assert reward_value(gsm8k, problem, f"<answer>{following}</answer>") == 0.0


def test_gsm8k_folder_without_a_split_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", sums(3))
    assert "test.jsonl" in load_error("gsm8k", path=str(tmp_path)).cause


def test_gsm8k_loads_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load_dataset(*args: Any) -> Any:
        calls.append(args)
        return {"train": sums(100), "test": [{"question": "?", "answer": "6 * 12 = 72\n#### 72"}]}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    task = load("gsm8k")
    assert calls == [("openai/gsm8k", "main")]
    assert task.problems("test") == (Problem("gsm8k-test-0", "?", "72", "6 * 12 = 72"),)
    assert {p.id for p in all_problems(task)} == {f"gsm8k-train-{i}" for i in range(100)} | {"gsm8k-test-0"}
