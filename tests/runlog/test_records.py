"""Records go to the files under the names that docs/metrics.md promises, and come back."""

import json
from typing import get_args

import pytest

from helpers.run_files import step
from reinforce_lite.runlog.records import KEYS, CompletionRecord, NotFinite, StepMetrics, parse_line


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


def completion(**changes: str) -> CompletionRecord:
    return CompletionRecord(
        step=1,
        problem_id="p",
        sample=0,
        question="q",
        gold="7",
        completion="c",
        answer=None,
        reason="r",
        reward=0.0,
        strict=False,
        lenient=None,
        second_opinion=None,
        advantage=None,
        tokens=1,
        truncated=False,
        reflection={},
        **changes,
    )


def test_completion_record_omits_an_empty_fault_and_split_only() -> None:
    record = completion().to_record()
    assert {"fault", "split"} & set(record) == set()
    assert record["answer"] is None
    record = completion(fault="ValueError: x", split="test").to_record()
    assert (record["fault"], record["split"]) == ("ValueError: x", "test")


@pytest.mark.case(10)
@pytest.mark.parametrize("kind", [None, *get_args(NotFinite)])
def test_a_line_of_every_step_is_whole(kind: str | None) -> None:
    line = step(3) | {"not_finite": kind, "loss": None if kind else 0.1}
    assert parse_line("steps", json.dumps(line).encode()) == line
    assert parse_line("steps", json.dumps(line | {"not_finite": 1}).encode()) is None
