"""Whatever a value in the files of a run becomes, the run is diagnosed, summarized and shown, or an error names the
file.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from helpers import run_files as runs
from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.report.build import build_report
from reinforce_lite.report.page import render
from reinforce_lite.report.run_data import iter_groups, load_run_data
from reinforce_lite.runlog.diagnosis import diagnose
from reinforce_lite.runlog.records import Record
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.summary import summarize

pytestmark = pytest.mark.case(4)

MISSING = object()
VALUES: tuple[Any, ...] = (
    *(MISSING, None, "x", True, [], [1], {}, {"a": 5}),
    *(float("nan"), float("inf"), 1e300, 10**400, -1, 0),
)
SHARES = {"questions/none_right": 0.5, "accuracy/second_opinion": 0.5, "completions/repetition_ratio": 0.0}
COUNTS = {"questions_asked": 1, "live_groups": 1, "reward_faults": 0, "num_tokens": 80}
STATE = {"warm_start": False, "updated": True, "not_finite": None, "loss": 0.1, "learning_rate": 1e-6}
AUDIT: Record = {
    "ways": [{"way": "x", "questions": 8, "live": 0.5, "live_interval": [0.2, 0.8], "forecast": "likely"}],
    "advice": ["few groups have a signal"],
    "questions": [{"problem_id": "q", "right": 1, "samples": 2}],
}
MACHINE: Record = {
    "system": "Linux",
    "cores": 2,
    "memory_bytes": 16e9,
    "versions": {"torch": "2.13.0"},
    "planned_bytes": 1e9,
    "self_check": {"max_gap": 1e-6, "bound": 1e-3},
}
JSON_FILES = ("summary.json", "machine.json", "audit.json", "model/config.json")
LOGS = ("steps.jsonl", "evals.jsonl", "rollouts.jsonl", "eval_rollouts.jsonl")


def write(path: Path) -> Run:
    """A finished run of two steps with every file that `report` and `doctor` read."""
    steps = [runs.step(n, **SHARES, **COUNTS, **STATE) for n in (1, 2)]
    verdict: Record = {"second_opinion": True, "completion": "Wait, so 7", "fault": "", "split": "train"}
    rollouts = [runs.completion(n, "p", s == 0, s, **verdict) for n in (1, 2) for s in (0, 1)]
    evaluations = [
        runs.eval_completions(at, right, split, second_opinion=True, completion="However, 7")
        for at, right in ((0, runs.ONE_RIGHT), (2, runs.SEVEN_RIGHT))
        for split in ("validation", "test")
    ]
    run = runs.write(path, steps, rollouts, evaluations, stopped="steps")
    evals = [json.dumps(line | {"best_constant": 0.2}) + "\n" for line in run.evals]
    run.write("evals.jsonl", "".join(evals))
    run.write_json("summary", summarize(run, run.config, 2) | run.summary | {"memory": {"peak_bytes": 10}})
    run.write_json("machine", MACHINE)
    run.write_json("audit", AUDIT)
    (run.path / "model").mkdir()
    run.write("model/config.json", '{"reinforce_lite_step": 2}')
    return run


def read_all(run: Run) -> None:
    """What `doctor`, the end of a training, a notebook and `report` read."""
    assert run.model_step != -1
    diagnose(run)
    summarize(run, run.config, 2)
    run._repr_html_()
    render([build_report(run)])


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in a record, as what holds it and its key or position."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from places(item)


def changed(records: list[Record], number: int, place: int, value: Any) -> str:
    """The records as lines, one of them with another value in one place."""
    records = json.loads(json.dumps(records))
    holder, key = list(places(records[number]))[place]
    if value is MISSING:
        del holder[key]
    else:
        holder[key] = value
    return "".join(json.dumps(record) + "\n" for record in records)


def damages(file: Path) -> Iterator[str]:
    """The texts of a file with one damaged value, for each value of its last record."""
    text = file.read_text(encoding="utf-8")
    records = list(map(json.loads, text.splitlines() if file.suffix == ".jsonl" else [text]))
    for place in range(len(list(places(records[-1])))):
        for value in VALUES:
            yield changed(records, len(records) - 1, place, value)


def check(run: Run, name: str, texts: list[str]) -> None:
    whole = (run.path / name).read_text(encoding="utf-8")
    for text in texts:
        (run.path / name).write_text(text, encoding="utf-8")
        try:
            with suppress(ReinforceLiteError):
                read_all(Run(run.path))
        except Exception as error:
            error.add_note(text.splitlines()[-1])
            raise
    (run.path / name).write_text(whole, encoding="utf-8")


def test_a_group_whose_first_line_is_damaged_is_no_part_of_the_one_before(tmp_path: Path) -> None:
    rollouts = [runs.completion(1, problem, s == 0, s) for problem in ("p", "q") for s in (0, 1, 2)]
    run = runs.write(
        tmp_path / "a", [runs.step(1)], [*rollouts[:3], rollouts[3] | {"tokens": "x"}, *rollouts[4:]]
    )
    assert list(iter_groups(run)) == [rollouts[:3], rollouts[4:]]
    again = [runs.completion(2, "p", s == 0, s) for s in (1, 2)]
    run = runs.write(tmp_path / "b", [runs.step(1), runs.step(2)], [*rollouts[:3], *again])
    assert list(iter_groups(run)) == [rollouts[:3], again]


@pytest.mark.parametrize(
    "text", ["", "[train", f"a = {'9' * 5000}", "a = " + "[" * 3000, "\xff", "[train]\nsteps = 1.5"]
)
def test_a_damaged_config_is_told_in_one_line(text: str, tmp_path: Path) -> None:
    run = write(tmp_path / "a")
    (run.path / "config.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"config\.toml is damaged: \S"):
        load_run_data(run)


@pytest.mark.parametrize("name", [*LOGS, *JSON_FILES])
def test_some_values_that_are_damaged_are_no_bug(name: str, tmp_path: Path) -> None:
    run = write(tmp_path / "a")
    read_all(run)
    check(run, name, Random(0).sample(list(damages(run.path / name)), 10))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LOGS, *JSON_FILES])
def test_any_value_that_is_damaged_is_no_bug(name: str, tmp_path: Path) -> None:
    run = write(tmp_path / "a")
    check(run, name, list(damages(run.path / name)))
