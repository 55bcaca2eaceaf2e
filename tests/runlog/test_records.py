"""Records go to the files under the names that docs/metrics.md promises, and come back."""

import json
import math
from typing import Any, get_args

import pytest

from helpers.run_files import completion as c
from helpers.run_files import evaluation, step
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


EVALUATION = evaluation(0, "test", [{**c(0, "p"), "second_opinion": True}])
DAMAGES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("steps", step(1), {"reward": math.nan}),
    ("steps", step(1), {"time/reward": math.inf}),
    ("steps", step(1), {"time/reward": -1}),
    ("steps", step(1), {"accuracy/strict": 1e300}),
    ("steps", step(1), {"reward": 1e300}),
    ("steps", step(1), {"step": 10**400}),
    ("steps", step(1), {"reward_faults": 0.5}),
    ("evals", EVALUATION, {"strict_interval": None}),
    ("evals", EVALUATION, {"strict_interval": [0.5]}),
    ("evals", EVALUATION, {"strict_interval": [0.5, 7]}),
    ("evals", EVALUATION, {"second_opinion_interval": None}),
    ("evals", EVALUATION, {"best_constant": "high"}),
    ("rollouts", c(1, "p"), {"reflection": {"list_a": 5}}),
    ("rollouts", c(1, "p"), {"strict": 5}),
    ("rollouts", c(1, "p"), {"second_opinion": "yes"}),
    ("eval_rollouts", c(1, "p", split="test"), {"fault": 1}),
]


@pytest.mark.case(4)
@pytest.mark.parametrize(("log", "line", "damage"), DAMAGES)
def test_a_line_with_a_wrong_value_is_damaged(log: str, line: dict[str, Any], damage: dict[str, Any]) -> None:
    assert parse_line(log, json.dumps(line).encode())
    assert parse_line(log, json.dumps(line | damage).encode()) is None


def test_a_line_of_an_older_version_is_whole() -> None:
    """It lacks keys, and had NaN for what is null now, and golds that were no text."""
    old = step(1, entropy=math.nan, loss=math.inf, grad_norm=-math.inf)
    assert parse_line("steps", json.dumps(old).encode()) == old | {
        "entropy": None,
        "loss": None,
        "grad_norm": None,
    }
    for gold in (7, 7.5, None):
        line = c(1, "p", gold=gold)
        assert parse_line("rollouts", json.dumps(line).encode()) == line
    first = {key: value for key, value in EVALUATION.items() if not key.startswith("second_opinion")}
    assert parse_line("evals", json.dumps(first).encode())


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
