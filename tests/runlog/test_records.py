"""Records go to the files under the names that docs/metrics.md promises, and come back."""

import json
from typing import Any, get_args

import pytest

from helpers.run_files import step
from reinforce_lite.runlog.records import KEYS, CompletionRecord, NotFinite, StepMetrics, hits, parse_line


def metrics() -> StepMetrics:
    values = {name: float(i) for i, name in enumerate(KEYS)}
    return StepMetrics(**values)  # type: ignore[arg-type]


def test_step_metrics_have_trls_names() -> None:
    record = metrics().to_record()
    assert record["frac_reward_zero_std"] == metrics().no_signal_ratio
    assert record["completions/mean_length"] == metrics().mean_length
    assert record["completions/clipped_ratio"] == metrics().clipped_ratio
    assert record["accuracy/strict"] == metrics().strict
    assert record["time/update"] == metrics().update_seconds
    assert len(record) == len(KEYS)


def test_step_metrics_are_read_back() -> None:
    assert StepMetrics.from_record(metrics().to_record()) == metrics()


def test_step_metrics_of_an_older_file_are_none_where_missing() -> None:
    record = metrics().to_record()
    del record["memory/max_num_seqs"]
    assert StepMetrics.from_record(record).max_num_seqs is None
    assert StepMetrics.from_record(record).reward == metrics().reward


def completion(**changes: Any) -> CompletionRecord:
    values: dict[str, Any] = {
        "step": 1,
        "problem_id": "p",
        "sample": 0,
        "question": "q",
        "gold": "7",
        "completion": "c",
        "answer": None,
        "reason": "r",
        "reward": 0.0,
        "strict": False,
        "lenient": None,
        "second_opinion": None,
        "advantage": None,
        "tokens": 1,
        "truncated": False,
        "reflection": {"a": [], "b": [], "c": ["wait"]},
    }
    return CompletionRecord(**values | changes)


def test_completion_records_have_the_same_keys_whatever_they_hold() -> None:
    plain = completion().to_record()
    failed = completion(fault="ValueError: x", split="test", answer="8").to_record()
    assert list(plain) == list(failed)
    assert (plain["fault"], plain["split"], plain["answer"]) == ("", "train", None)
    assert (failed["fault"], failed["split"], failed["answer"]) == ("ValueError: x", "test", "8")


@pytest.mark.parametrize(
    "reflection", [{"a": [], "b": [], "c": ["wait"]}, {"c": ["wait"]}], ids=["now", "older"]
)
def test_hits_of_a_line_of_any_version(reflection: dict[str, list[str]]) -> None:
    assert hits({"reflection": reflection}) == {"c": ["wait"]}
    assert hits({}) == {}


@pytest.mark.case(10)
@pytest.mark.parametrize("kind", [None, *get_args(NotFinite)])
def test_a_line_of_every_step_is_whole(kind: str | None) -> None:
    line = step(3) | {"not_finite": kind, "loss": None if kind else 0.1}
    assert parse_line("steps", json.dumps(line).encode()) == line
    assert parse_line("steps", json.dumps(line | {"not_finite": 1}).encode()) is None
