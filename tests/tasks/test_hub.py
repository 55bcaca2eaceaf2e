"""Hugging Face data sets, with a fake `datasets` and with the real one."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.tasks import all_problems, load, load_error, reward_value, sums, write_rows
from reinforce_lite.tasks import check_task
from reinforce_lite.types import SPLITS


def serve(monkeypatch: pytest.MonkeyPatch, load_dataset: Callable[..., Any]) -> None:
    """Put a fake `datasets` in place of the real one."""
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


@pytest.mark.case(30)
def test_hub_uses_the_data_sets_own_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return {"train": sums(50), "test": sums(3, 100), "validation": sums(2, 200), "extra": ["never read"]}

    serve(monkeypatch, load_dataset)
    task = load("hub", path="someone/sums:main")
    assert calls == [(("someone/sums", "main"), {})]  # and no trust_remote_code
    check_task(task)
    assert [len(task.problems(split)) for split in SPLITS] == [50, 2, 3]
    assert task.problems("test")[0].id.startswith("sums-test-")
    boxed = load("hub", path="someone/sums:main", answer_format="boxed")
    assert reward_value(boxed, boxed.problems("test")[0], r"\boxed{101}") == 1.0


@pytest.mark.parametrize(
    ("present", "held_out"),
    [
        ({"test": sums(3, 9_000)}, {"validation": 60}),
        ({"validation": sums(3, 9_000)}, {"test": 100}),
        ({}, {"validation": 100, "test": 100}),
    ],
)
def test_hub_holds_missing_splits_out_of_train(
    monkeypatch: pytest.MonkeyPatch, present: dict[str, Any], held_out: dict[str, int]
) -> None:
    serve(monkeypatch, lambda *_: {"train": sums(1_000), **present})
    task = load("hub", path="someone/sums")
    check_task(task)
    sizes = {split: len(task.problems(split)) for split in SPLITS}
    for split in present:
        assert sizes.pop(split) == 3  # type: ignore[call-overload]
    assert sum(sizes.values()) == 1_000
    for split, expected in held_out.items():
        assert abs(sizes[split] - expected) < 40, sizes  # type: ignore[index]


def test_hub_trains_on_the_named_split(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(
        monkeypatch, lambda *_: {"train": sums(40), "train_hard": sums(300, 1_000), "test": sums(300, 2_000)}
    )
    task = load("hub", path="someone/sums", split="train_hard")
    assert all(int(p.gold) > 1_000 for p in task.problems("train"))
    # A test split that is trained on can't measure: test problems are held out of it.
    task = load("hub", path="someone/sums", split="test")
    assert sum(len(task.problems(split)) for split in SPLITS) == 300
    check_task(task)
    error = load_error("hub", path="someone/sums", split="trian_hard")
    assert (error.cause, error.remedy) == (
        "someone/sums has no split 'trian_hard'",
        "did you mean 'train_hard'?",
    )


def test_hub_ids_contain_their_split(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_ids(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": i, **row} for i, row in enumerate(rows)]

    serve(monkeypatch, lambda *_: {"train": with_ids(sums(40)), "test": with_ids(sums(3, 100))})
    task = load("hub", path="someone/sums")
    assert [p.id for p in task.problems("test")] == ["test-0", "test-1", "test-2"]
    check_task(task)


def test_hub_reports_bad_rows_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, lambda *_: {"train": [*sums(2), {"question": "?", "answer": None}]})
    assert load_error("hub", path="a/b").cause == "a/b, train: 1 bad row: row 2 ('answer' is null)"


def test_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any) -> Any:
        raise ConnectionError("Couldn't reach 'a/b' on the Hub\nwith more\nlines")

    serve(monkeypatch, load_dataset)
    for error in (load_error("hub", path="a/b"), load_error("gsm8k")):
        assert error.cause.endswith(": Couldn't reach 'a/b' on the Hub")
        assert "network" in error.remedy
    assert "--task.path" in load_error("hub").remedy


def test_hub_expands_a_path_and_refuses_one_where_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def load_dataset(*args: Any) -> Any:
        calls.append(args)
        return {"train": sums(40)}

    serve(monkeypatch, load_dataset)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sums").mkdir()
    load("hub", path="~/sums")
    load("hub", path="~/sums:main")
    assert calls == [(str(tmp_path / "sums"), None), (str(tmp_path / "sums"), "main")]
    for path in ("./gone", "~/gone:main", str(tmp_path / "gone"), "gone.jsonl"):
        assert "no such file or folder" in load_error("hub", path=path).cause
    assert len(calls) == 2


def test_hub_loads_a_local_folder_with_the_real_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_rows(tmp_path / "sums" / "train.jsonl", sums(60))
    write_rows(tmp_path / "sums" / "test.jsonl", sums(4, 100))
    datasets.disable_progress_bars()
    task = load("hub", path=str(tmp_path / "sums"))
    assert [p.gold for p in task.problems("test")] == ["101", "102", "103", "104"]
    assert len(all_problems(task)) == 64


def test_golds_of_a_narrow_column_have_the_digits_that_it_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As doubles they would be 0.10000000149 and 2.3499999046, which no completion writes."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    values = [0.1, 2.35, 123456792.0, 1e-7, *(i / 8 for i in range(40))]
    questions = [f"What is {i}?" for i in range(len(values))]
    tables = []
    for kind in ("float32", "float64"):
        features = datasets.Features({"question": datasets.Value("string"), "answer": datasets.Value(kind)})
        tables.append(
            datasets.Dataset.from_dict({"question": questions, "answer": values}, features=features)
        )
    for table in tables:
        serve(monkeypatch, lambda *_, table=table: {"train": table})
        golds = {p.question: float(str(p.gold)) for p in all_problems(load("hub", path="someone/sums"))}
        assert golds == dict(zip(questions, values, strict=True))
