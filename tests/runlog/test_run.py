"""The run directory on its own: what a kill or a failing disk may leave in it, and several writers."""

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from helpers import run_files
from helpers.faults import Refuses, watching
from helpers.run_files import HOSTILE, completion, step
from reinforce_lite.errors import FileError, UsageError
from reinforce_lite.runlog.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def lines_of(run: Run, name: str) -> list[Any]:
    file = run.path / name
    return [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def test_a_line_cut_at_any_byte_ends_the_file(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Inside a character too: é and 😀 are of two and four bytes. It is normal, and not told."""
    file = run.path / "steps.jsonl"
    run.append("steps", step(1), step(2, text="é 😀"))
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole) - 2):
        file.write_bytes(whole[:end])
        assert run.steps == [step(1)]
    file.write_bytes(whole[:-6])  # in the middle of 😀
    run.rewind(2)
    assert file.read_bytes() == whole[:first]
    assert not caplog.records
    assert [p.name for p in run.path.iterdir()] == ["steps.jsonl"]


def test_a_last_line_without_its_end_is_whole(run: Run) -> None:
    run.append("steps", step(1))
    file = run.path / "steps.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    run.rewind(1)
    assert file.read_bytes() == whole


def test_zeros_that_a_power_cut_leaves_end_the_file(run: Run) -> None:
    run.append("steps", step(1))
    with (run.path / "steps.jsonl").open("ab") as file:
        file.write(bytes(100))
    assert run.steps == [step(1)]


SUMMARY = {"steps": 2, "stopped": "steps"}
BAD_LINES = [
    b'{"step": 2, "rew',
    b"null",
    b"[1]",
    b"\xff\xfe{}",
    b"[" * 100_000,
    json.dumps(step(2) | {"step": "2"}).encode(),
    json.dumps({k: v for k, v in step(2).items() if k != "step"}).encode(),
    json.dumps(step(2) | {"grad_norm": "high"}).encode(),
    json.dumps({k: v for k, v in step(2).items() if k != "reward"} | {"rewarc": 1}).encode(),
]


@pytest.mark.case(4)
@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_damaged_line_is_set_aside_and_the_lines_after_it_are_kept(
    run: Run, bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    run.append("steps", step(1), step(2), step(3))
    file = run.path / "steps.jsonl"
    first, _, third = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + bad + b"\n" + third)
    with caplog.at_level(logging.WARNING):
        assert [s["step"] for s in run.steps] == [1, 3]
        assert len(run.steps) == 2
    assert [r.levelname for r in caplog.records] == ["WARNING"]  # once, however often it is read
    run.rewind(3)
    assert file.read_bytes() == first + third
    text = bad.decode(errors="backslashreplace")
    assert lines_of(run, "damaged.jsonl") == [{"file": "steps.jsonl", "line": 2, "text": text}]
    assert "moved to damaged.jsonl" in caplog.text
    assert lines_of(run, "rewound.jsonl") == []


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("rollouts", completion(1, "p")),
        ("eval_rollouts", completion(0, "p", split="test")),
        ("evals", run_files.evaluation(0, "test", [completion(0, "p")])),
    ],
)
def test_a_line_of_any_log_needs_its_keys(run: Run, log: str, line: dict[str, Any]) -> None:
    run.append("evals", run_files.evaluation(0, "test", [completion(0, "p")]))
    line = json.loads(json.dumps(line))  # a tuple is a list then
    without = [{k: v for k, v in line.items() if k != missing} for missing in ("step", "strict")]
    run.append(log, line, *without)
    assert list(run.read(log))[-1] == line
    run.rewind(1)
    assert list(run.read(log))[-1] == line
    assert [d["file"] for d in lines_of(run, "damaged.jsonl")] == [f"{log}.jsonl"] * 2


JSON_DAMAGES = [
    ("summary.json", '{"stopped": "steps"}', "'steps'"),
    ("summary.json", '{"stopped": "steps", "steps": "2"}', "'steps'"),
    ("summary.json", '{"stopped": "steps", "steps": 2, "evals": {"before": {"strict": 0.5}}}', "'evals'"),
    ("summary.json", "[]", "no object"),
    ("summary.json", "[" * 100_000, "too deeply"),
    ("first_prompt.json", '{"question": "x"}', "'text'"),
    ("audit.json", '{"questions": [{"problem_id": "p"}]}', "'questions'"),
    ("machine.json", '{"dtype": 7}', "'dtype'"),
    ("model/config.json", '{"reinforce_lite_step": "2"}', "'reinforce_lite_step'"),
]


@pytest.mark.case(4)
@pytest.mark.parametrize(("name", "text", "what"), JSON_DAMAGES)
def test_a_json_file_with_a_wrong_value_is_damaged(run: Run, name: str, text: str, what: str) -> None:
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).write_text(text)
    key = "model_step" if name.startswith("model") else name.removesuffix(".json")
    with pytest.raises(UsageError, match=f"{name} is damaged: .*{what}") as caught:
        getattr(run, key)
    assert caught.value.remedy.startswith("remove ")


def test_a_command_that_is_no_text_is_read(run: Run) -> None:
    (run.path / "command.txt").write_bytes(b"train \xff")
    assert run.command == "train \ufffd"


def test_what_a_resume_cuts_off_is_kept_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a kill comes before the lines have left their log."""
    run.append("steps", step(1), step(2), step(3))
    run.append("eval_rollouts", completion(3, "p", split="test", completion="a\u2028a\u2028b"))
    whole = (run.path / "steps.jsonl").read_bytes()
    run.rewind(1)
    (run.path / "steps.jsonl").write_bytes(whole)
    run.rewind(1)
    assert [(line["file"], line["record"]["step"]) for line in lines_of(run, "rewound.jsonl")] == [
        ("steps.jsonl", 2),
        ("steps.jsonl", 3),
        ("eval_rollouts.jsonl", 3),
    ]
    assert run.steps == [step(1)]
    run.append("steps", step(2, reward=0.25))
    run.rewind(1)
    assert len(lines_of(run, "rewound.jsonl")) == 4
    assert [record["record"].get("completion") for record in run.read("rewound")] == [
        *(None, None),
        *("a\u2028a\u2028b", None),
    ]


def test_an_undamaged_log_is_not_written_again(run: Run) -> None:
    run.append("steps", step(1))
    before = (run.path / "steps.jsonl").stat().st_ino
    run.rewind(1)
    assert (run.path / "steps.jsonl").stat().st_ino == before


@pytest.mark.case(1)
def test_the_lock_cleans_up_what_a_kill_left(run: Run) -> None:
    for name in (".model.incomplete", "checkpoints/.step-2.incomplete", ".best.previous", ".model.new"):
        (run.path / name).mkdir(parents=True)
    (run.path / ".config.toml.new").touch()
    (run.path / "config.toml").touch()  # so that unlocking keeps it
    run.lock()
    run.unlock()
    assert sorted(p.name for p in run.path.iterdir()) == [".lock", "best", "checkpoints", "config.toml"]
    assert not list((run.path / "checkpoints").iterdir())


def test_a_lock_is_given_back_where_cleaning_up_fails(run: Run) -> None:
    (run.path / "config.toml").touch()
    (run.path / ".model.incomplete").mkdir()
    with watching(run.path, Refuses(errno.EROFS, 2)), pytest.raises(FileError, match="Read-only"):
        run.lock()
    run.lock()
    assert not (run.path / ".model.incomplete").exists()
    run.unlock()


@pytest.mark.case(9)
def test_another_process_s_leftovers_are_its_own(run: Run) -> None:
    held = Run(run.path)
    (run.path / "config.toml").touch()
    held.lock()
    (run.path / ".model.incomplete").mkdir()
    with pytest.raises(UsageError, match="another process"):
        run.lock()
    assert (run.path / ".model.incomplete").exists()
    held.unlock()


@pytest.mark.case(3)
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_lock_that_can_not_be_written_is_one_line(
    run: Run, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(FileError) as caught:
        run.lock()
    assert ".lock" in caught.value.cause
    assert os.strerror(number) in caught.value.cause


@pytest.mark.case(16)
@pytest.mark.case(31)
def test_any_text_is_stored_exactly(run: Run) -> None:
    """HOSTILE has half an emoji, NUL, a right-to-left mark, a terminal escape and a line separator."""
    run.append("rollouts", *(completion(1, "p", completion=text) for text in (HOSTILE, "\ufeff\n\r")))
    assert [line["completion"] for line in run.read("rollouts")] == [HOSTILE, "\ufeff\n\r"]
    run.write_json("summary", SUMMARY | {"task": HOSTILE})
    assert run.summary == SUMMARY | {"task": HOSTILE}
    run.write_command(f"train {HOSTILE}")
    assert run.command == f"train {HOSTILE}".replace("\ud83d", "\ufffd")


@pytest.mark.case(28)
def test_secrets_are_masked_in_every_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is written: quotes and backslashes of a secret are no obstacle, and JSON stays whole."""
    secret = '"a\\b\u00e9" 12'
    monkeypatch.setenv("SOME_PASSWORD", secret)
    line = completion(1, "p", tokens=12)
    run.append("rollouts", line | {"completion": f"x{secret}", "reflection": {"list_a": [secret]}})
    run.write_json("summary", SUMMARY | {"task": secret})
    run.write_command(f"train {secret}")
    assert run.command == "train [SOME_PASSWORD]"
    expected = {"completion": "x[SOME_PASSWORD]", "reflection": {"list_a": ["[SOME_PASSWORD]"]}}
    assert list(run.read("rollouts")) == [line | expected]
    assert run.summary == SUMMARY | {"task": "[SOME_PASSWORD]"}
