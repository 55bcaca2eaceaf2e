"""docs/run-files.md has every key of the files of a run, with its type, and no other; the files are tables."""

import json
import re
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from helpers.environments import make_environment, run_python
from helpers.paths import RECIPE, ROOT
from helpers.run_files import make_older
from helpers.tiny import ToyTask
from reinforce_lite import api
from reinforce_lite.evaluation.evaluate import Evaluation
from reinforce_lite.runlog.diagnosis import diagnose
from reinforce_lite.runlog.records import KEYS, CompletionRecord, Record, StepMetrics
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer.audit import audit
from reinforce_lite.types import Problem, Reward

PAGE = (ROOT / "docs" / "run-files.md").read_text(encoding="utf-8")
SMALL = {"train.steps": 1, "eval.n": 2, "eval.validation_n": 2}
TYPES: dict[str, Any] = {
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) is float,
    "text": lambda value: type(value) is str,
    "true or false": lambda value: type(value) is bool,
    "object": lambda value: type(value) is dict,
    "two numbers": lambda value: [type(item) for item in value] == [float, float],
    "list of text": lambda value: {type(item) for item in value} <= {str},
    "list of integers": lambda value: {type(item) for item in value} <= {int},
}


class ToyNumbers(ToyTask):
    """The reward depends on the gold too: `audit` takes one that pays the same for every problem for broken."""

    def reward(self, problem: Problem, completion: str) -> Reward:
        return Reward(float((sum(map(ord, completion)) + int(problem.gold)) % 3 == 0))


@pytest.fixture(scope="module")
def run(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was audited, and trained an adapter: it has every file but those of damage."""
    folder = tmp_path_factory.mktemp("audited")
    values = SMALL | {"model.name": str(model_folder), "adapter.rank": 2, "rollout.engine": "native"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("REINFORCE_LITE_CACHE", str(folder / "cache"))
        audit(api.resolve_config(RECIPE, values, ToyNumbers()), 0.0, ToyNumbers())
        api.train(RECIPE, values, task=ToyNumbers(), run="mine", quiet=True)
    return Run(folder / "runs" / "mine")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def documented(title: str) -> dict[str, str]:
    """The types in a table, by key."""
    rows = re.findall(r"^\| `(\S+)` \| (.+?) \| (.+) \|$", section(title), re.MULTILINE)
    return {key: kind for key, kind, _ in rows}


def documented_types(file: str) -> dict[str, str]:
    """The types that a table gives by type, by key; `""` is the type of all other keys."""
    part = section("steps.jsonl and evals.jsonl").split(f"`{file}`:")[1]
    rows = re.findall(r"^\| (.+?) \| (`.+`|all others) \|$", part.split("\n\n")[1], re.MULTILINE)
    return {key: kind for kind, keys in rows for key in re.findall(r"`(.+?)`", keys) or [""]}


def has_type(value: Any, kind: str) -> bool:
    kind, null, _ = kind.partition(" or null")
    return bool(null) if value is None else bool(TYPES[kind](value))


def leaves(value: Any, kinds: dict[str, str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a record, with its path as the page spells it."""
    if isinstance(value, dict) and kinds.get(path) != "object":
        dot = f"{path}." if path else ""
        for key, item in value.items():
            yield from leaves(item, kinds, f"{dot}*" if f"{dot}*" in kinds else f"{dot}{key}")
    elif isinstance(value, list) and any(key.startswith(f"{path}[]") for key in kinds):
        for item in value:
            yield from leaves(item, kinds, f"{path}[]")
    else:
        yield path, value


def check(records: list[Record], kinds: dict[str, str], absent: set[str]) -> None:
    """Every key of the records is documented with its type, and every documented key is in one of them."""
    assert records
    seen = set()
    for record in records:
        for path, value in leaves(record, kinds):
            assert path in kinds
            assert has_type(value, kinds[path]), (path, value)
            seen.add(path)
    assert set(kinds) - seen == absent


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def read_lines(file: Path) -> list[Record]:
    return [json.loads(line, parse_constant=refuse) for line in file.read_text("utf-8").splitlines()]


def read_one(file: Path) -> list[Record]:
    return [json.loads(file.read_text("utf-8"), parse_constant=refuse)]


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("machine", {"gpu", "gpu_memory_bytes"}),
        ("first_prompt", set()),
        ("audit", set()),
        ("summary", set()),
    ],
)
def test_every_key_of_a_json_file_is_documented(run: Run, name: str, absent: set[str]) -> None:
    file = f"{name}.json"
    check(read_one(run.path / file), documented(file), absent)


@pytest.mark.parametrize("name", ["rollouts", "eval_rollouts"])
def test_every_key_of_a_completions_line_is_documented(run: Run, name: str) -> None:
    lines = read_lines(run.path / f"{name}.jsonl")
    check(lines, documented("rollouts.jsonl and eval_rollouts.jsonl"), set())
    assert {tuple(line) for line in lines} == {tuple(lines[0])}  # the same keys in the same order
    assert {line["split"] for line in lines} == ({"train"} if name == "rollouts" else {"validation", "test"})


@pytest.mark.parametrize("name", ["steps", "evals"])
def test_values_of_steps_and_evaluations_have_the_documented_types(run: Run, name: str) -> None:
    lines, kinds = read_lines(run.path / f"{name}.jsonl"), documented_types(f"{name}.jsonl")
    assert lines
    for key, value in [pair for line in lines for pair in line.items()]:
        assert has_type(value, kinds.get(key, kinds[""])), (key, value)
    assert {tuple(line) for line in lines} == {tuple(lines[0])}


def test_accuracies_of_the_summary_are_those_of_an_evaluation(run: Run) -> None:
    kinds = documented_types("evals.jsonl")
    for moment in ("before", "after"):
        accuracy = run.summary["evals"][moment]
        assert set(accuracy) == {
            *("strict", "lenient", "second_opinion", "n", "best_constant"),
            *("strict_interval", "lenient_interval", "second_opinion_interval"),
        }
        assert all(has_type(value, kinds.get(key, kinds[""])) for key, value in accuracy.items())


def type_name(hint: Any) -> str:
    """The page's word for an annotation."""
    if NoneType in get_args(hint):
        (other,) = set(get_args(hint)) - {NoneType}
        return f"{type_name(other)} or null"
    if get_origin(hint) is Literal:
        return "text"
    names = {int: "integer", float: "number", str: "text", bool: "true or false"}
    return names.get(hint) or {tuple[float, float]: "two numbers"}[hint]


def test_documented_types_are_those_of_the_records() -> None:
    hints = get_type_hints(CompletionRecord)
    del hints["reflection"]
    completions = documented("rollouts.jsonl and eval_rollouts.jsonl")
    assert {key: type_name(hint) for key, hint in hints.items()} == {
        key: kind for key, kind in completions.items() if not key.startswith("reflection")
    }
    steps = {KEYS[name]: type_name(hint) for name, hint in get_type_hints(StepMetrics).items()}
    kinds = documented_types("steps.jsonl")
    assert steps == {key: kinds.get(key, kinds[""]) for key in steps}
    assert set(kinds) <= {*steps, ""}
    hints = get_type_hints(Evaluation)
    evals = {name: type_name(hints[name]) for name in hints if name in documented_types("evals.jsonl")}
    assert evals | {"step": "integer", "": "number"} == documented_types(
        "evals.jsonl"
    )  # in a run it has a step
    assert set(evals) == set(documented_types("evals.jsonl")) - {""}


def test_lines_taken_out_of_a_log_are_documented(run: Run, tmp_path: Path) -> None:
    other = Run(tmp_path)
    for name in ("steps", "evals"):
        (tmp_path / f"{name}.jsonl").write_bytes((run.path / f"{name}.jsonl").read_bytes() + b"half\n")
    other.rewind(0)
    kinds = documented("rewound.jsonl and damaged.jsonl")
    check(read_lines(tmp_path / "rewound.jsonl"), kinds, {"line", "text"})
    check(read_lines(tmp_path / "damaged.jsonl"), kinds, {"record"})


def test_the_files_of_the_page_are_those_of_a_run(run: Run) -> None:
    names = {path.name + ("/" if path.is_dir() else "") for path in run.path.iterdir()} - {".lock"}
    rows = set(re.findall(r"^\| `([a-z_.]+/?)` \|", PAGE.split("\n## ")[0], re.MULTILINE))
    assert rows - names <= {"command.txt", "best/", "rewound.jsonl", "damaged.jsonl"}
    assert names <= rows


def test_a_run_of_an_older_version_is_resumed_and_diagnosed(settings: dict[str, Any]) -> None:
    """Its lines stay as they were, and the steps that follow are those of a run that was never stopped."""
    train = partial(api.train, RECIPE, task=ToyNumbers(), quiet=True)
    whole = train(settings | SMALL | {"train.steps": 2}, run="whole")
    older = train(settings | SMALL, run="older")
    make_older(older)
    before = (older.path / "rollouts.jsonl").read_bytes()
    assert b'"gold": 1' in before
    train(settings | SMALL | {"train.steps": 2}, run="older", resume=True)
    assert (older.path / "rollouts.jsonl").read_bytes().startswith(before)
    last = [[line for line in run.read("rollouts") if line["step"] == 2] for run in (whole, older)]
    assert last[0] == last[1]
    assert diagnose(older).problems == diagnose(whole).problems
    assert older.summary["evals"] == whole.summary["evals"]


def blocks() -> dict[str, str]:
    """The page's Python, by the package that it imports."""
    found = re.findall(r"^```python\n(.+?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return {code.split()[1]: code for code in found}


def table_file(folder: Path) -> list[Record]:
    """Lines that tables get wrong easily: texts like numbers, and keys that are null in all lines but the last."""
    words: dict[str, list[str]] = {"a": [], "b": [], "c": []}
    line = {"step": 1, "gold": "07", "answer": None, "lenient": None, "reward": 0.0, "fault": "", "tokens": 3}
    last = {"gold": "x", "answer": "5", "lenient": True, "reward": 0.5, "fault": "ValueError: no"}
    lines = [line | {"sample": i, "reflection": words} for i in range(150)]
    lines.append(line | last | {"sample": 150, "reflection": words | {"c": ["wait", "let me check"]}})
    file = folder / "runs" / "mine" / "rollouts.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return lines


BACK = "import json, pyarrow.parquet as p; print(json.dumps(p.read_table('rollouts.parquet').to_pylist()))"


def test_pandas_takes_a_file_to_parquet_and_back(in_tmp: Path) -> None:
    pytest.importorskip("pandas", reason='needs the extra "hub"')
    lines = table_file(in_tmp)
    exec(blocks()["pandas"], {})
    assert import_module("pyarrow.parquet").read_table("rollouts.parquet").to_pylist() == lines


@pytest.mark.slow
@pytest.mark.parametrize("package", ["pandas", "polars", "duckdb"])
def test_each_program_takes_a_file_to_parquet_and_back(package: str, tables: Path, tmp_path: Path) -> None:
    lines = table_file(tmp_path)
    printed = run_python(tables, f"{blocks()[package]}\n{BACK}", cwd=tmp_path)
    assert json.loads(printed) == lines


@pytest.mark.slow
@pytest.mark.parametrize("package", ["pandas", "polars", "duckdb"])
@pytest.mark.parametrize("name", ["rollouts", "eval_rollouts", "steps", "evals"])
def test_each_program_takes_a_real_file_to_parquet_and_back(
    package: str, name: str, tables: Path, run: Run
) -> None:
    """The same with the files of a run, in which whole columns are null and all lists of words are empty."""
    code = blocks()[package].replace("rollouts.jsonl", f"{name}.jsonl")
    printed = run_python(tables, f"{code}\n{BACK}", cwd=run.path.parents[1])
    assert json.loads(printed) == read_lines(run.path / f"{name}.jsonl")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the three programs."""
    return make_environment(tmp_path_factory.mktemp("tables"), "pandas", "polars", "duckdb", "pyarrow")
