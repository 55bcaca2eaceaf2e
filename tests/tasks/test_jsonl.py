"""JSON lines: how a file is read, and how a file or a folder becomes three splits."""

from pathlib import Path

import pytest

from helpers.tasks import all_problems, load, load_error, sums, write_rows
from reinforce_lite.errors import UsageError
from reinforce_lite.tasks import check_task
from reinforce_lite.types import SPLITS


@pytest.mark.case(18)
def test_jsonl_accepts_bom_crlf_blank_lines_and_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "win.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"question": "a\xe2\x80\xa8b", "answer": 1}\r\n\r\n  \r\n{"question": "c", "answer": 2}'
    )
    problems = all_problems(load("jsonl", path=str(path)))
    assert {p.question: p.gold for p in problems} == {"a\u2028b": "1", "c": "2"}


@pytest.mark.case(18)
def test_jsonl_reports_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"question": "caf\xe9", "answer": "1"}\n')
    assert load_error("jsonl", path=str(path)).cause == f"{path}: 1 bad line: line 1 (not UTF-8)"


@pytest.mark.case(20)
@pytest.mark.case(18)
def test_jsonl_refuses_missing_and_empty_files(tmp_path: Path) -> None:
    missing = tmp_path / "none.jsonl"
    assert load_error("jsonl", path=str(missing)).cause == f"can't read {missing}: No such file or directory"
    empty = write_rows(tmp_path / "empty.jsonl", ["", " "])
    assert load_error("jsonl", path=str(empty)).cause == f"{empty} holds no problems"
    assert "--task.path" in load_error("jsonl").remedy
    write_rows(tmp_path / "half" / "train.jsonl", sums(3))
    assert "test.jsonl" in load_error("jsonl", path=str(tmp_path / "half")).cause


def test_jsonl_holds_out_splits_of_one_file_by_a_hash(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "all.jsonl", sums(3_000)))
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


def test_jsonl_keeps_a_problem_in_its_split_when_others_are_added(tmp_path: Path) -> None:
    small = load("jsonl", path=str(write_rows(tmp_path / "small.jsonl", sums(200))))
    rows = [*sums(300, 500), *reversed(sums(200))]
    large = load("jsonl", path=str(write_rows(tmp_path / "large.jsonl", rows)))
    for split in SPLITS:
        assert {p.question for p in small.problems(split)} <= {p.question for p in large.problems(split)}


def test_jsonl_reads_the_splits_of_a_folder(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", sums(3_000))
    write_rows(tmp_path / "test.jsonl", sums(5, 5_000))
    task = load("jsonl", path=str(tmp_path))
    check_task(task)
    assert [p.gold for p in task.problems("test")] == ["5001", "5002", "5003", "5004", "5005"]
    held_out = len(task.problems("validation"))
    assert len(task.problems("train")) == 3_000 - held_out
    assert 128 < held_out < 232  # 180, four standard deviations of 13
    write_rows(tmp_path / "validation.jsonl", sums(4, 6_000))
    task = load("jsonl", path=str(tmp_path))
    assert [len(task.problems(split)) for split in SPLITS] == [3_000, 4, 5]


@pytest.mark.case(20)
def test_jsonl_folder_with_a_test_question_in_train_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", sums(100))
    write_rows(tmp_path / "test.jsonl", [{"id": "t", **sums(1, 7)[0]}])
    write_rows(tmp_path / "validation.jsonl", sums(1, 900))
    with pytest.raises(UsageError, match=r"^1 test questions .* in train, .* 't'\n"):
        check_task(load("jsonl", path=str(tmp_path)))


def test_jsonl_refuses_a_key_that_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text(
        '{"question": "1 + 1?", "answer": "2"}\n{"question": "1 + 2?", "answer": "1", "answer": "3"}\n'
    )
    assert load_error("jsonl", path=str(path)).cause == f"{path}: 1 bad line: line 2 ('answer' twice)"


def test_jsonl_tells_ids_of_two_splits_apart_and_keeps_others(tmp_path: Path) -> None:
    for split, start in (("train", 0), ("validation", 500), ("test", 900)):
        rows = [{"id": i, **row} for i, row in enumerate(sums(3, start))]
        write_rows(tmp_path / f"{split}.jsonl", rows)
    task = load("jsonl", path=str(tmp_path))
    check_task(task)
    assert [p.id for p in task.problems("test")] == ["test-0", "test-1", "test-2"]
    for split, start in (("validation", 500), ("test", 900)):
        write_rows(tmp_path / f"{split}.jsonl", [{"id": split, **row} for row in sums(1, start)])
    assert [p.id for p in load("jsonl", path=str(tmp_path)).problems("train")] == ["0", "1", "2"]


def test_jsonl_names_files_of_a_folder_that_are_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, start in (("train", 0), ("valid", 500), ("test", 900)):
        write_rows(tmp_path / f"{name}.jsonl", sums(30, start))
    load("jsonl", path=str(tmp_path))
    assert "not read" in caplog.text
    assert caplog.text.rstrip().endswith(": valid.jsonl")
