"""Trials resume, respect their time limit and leave a record; the tables of docs/results come from the records."""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.paths import RECIPE, ROOT
from reinforce_lite.cli.args import parse_train
from reinforce_lite.config import config_differences, load_config, override_config
from reinforce_lite.runlog.run import Run

EXPERIMENTS = ROOT / "experiments"
RECORDS = ROOT / "docs" / "results"
NAMES = [
    *("seeds", "selection", "controls", "forecasts", "gym_tasks", "quickstart", "adapters", "parts"),
    *("word_problems", "warm_start", "against_trl", "gsm8k", "gsm8k_boxed", "presets"),
]
CONTROLS = ["coin", "format_alone"]
"""Tasks of the experiment `controls`."""
COMPARED = {"adapters": "seeds"}
"""Whose records a table has too."""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Import an experiment; its results are read and written in a temporary folder."""
    for package in ("matplotlib", "scipy"):
        pytest.importorskip(package, reason='needs the extra "experiments"')
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    for name in ["trials", *CONTROLS, *NAMES]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib.import_module("trials"), "RESULTS", tmp_path / "results")
    return importlib.import_module


@pytest.fixture
def trials(load: Any) -> ModuleType:
    module: ModuleType = load("trials")
    return module


@pytest.mark.parametrize("name", NAMES)
def test_tables_come_from_the_records(name: str, load: Any, tmp_path: Path, capsys: Any) -> None:
    for records in {name, COMPARED.get(name, name)}:
        shutil.copytree(RECORDS / records, tmp_path / "results" / records)
    experiment = load(name)
    experiment.write(load("trials").read_records(name, experiment.TRIALS))
    written = {file.name: file.read_text() for file in (tmp_path / "results").glob("*.md")}
    assert written == {f"{name}.md": (RECORDS / f"{name}.md").read_text()}


@pytest.fixture
def options(model_folder: Path, in_tmp: Path) -> tuple[str, ...]:
    """Three steps of a tiny model on sums; the model is the last option."""
    problems = [{"question": f"{n} + 1?", "answer": n + 1} for n in range(40)]
    Path("sums.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    return (
        *(RECIPE, "--train.steps", "3", "--prompt.max-tokens", "300"),
        *("--task.name", "jsonl", "--task.path", "sums.jsonl", "--model.name", str(model_folder)),
    )


def test_trial_runs_once_and_leaves_a_record(
    load: Any, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    trials, make_record = load("trials"), load("seeds").make_record
    trial = trials.Trial("one-0", options)
    assert not trials.run_trials("tried", [trial], 0.0, 1, make_record)  # no time: not started
    assert not Path("runs").exists()
    assert trials.run_trials("tried", [trial], 1.0, 1, make_record), Path("runs/tried-one-0.log").read_text()
    assert "tried-one-0: train" in capsys.readouterr().out
    run, record = Run(Path("runs/tried-one-0")), trials.read_records("tried", [trial])["one-0"]
    assert record["curves"]["reward"] == [float(f"{line['reward']:.4g}") for line in run.steps]
    after = [line for line in run.read("eval_rollouts") if line["split"] == "test" and line["step"] == 3]
    assert record["verdicts"]["ids"] == [line["problem_id"] for line in after]
    assert trials.correct(record, -1, "lenient") == [line["lenient"] for line in after]
    assert record["golds"] == [line["gold"] for line in after]
    assert record["completions"].keys() == {"0", "3"}
    assert record["completions"]["3"] == [line["completion"] for line in after]
    assert not (run.path / "model").exists()
    assert trials.run_trials("tried", [trial], 1.0, 1, make_record)
    assert capsys.readouterr().out == ""


def test_trial_after_another_starts_from_its_model(
    trials: ModuleType, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    first = trials.Trial("first-0", options, leaves_model=True)
    second = trials.Trial("second-0", options[:-2], after="first-0")
    assert not trials.run_trials("tried", [second], 1.0, 1, trials.record_run)
    assert "second-0 needs runs/tried-first-0/model, the model of first-0" in capsys.readouterr().out
    assert trials.run_trials("tried", [second, first], 1.0, 2, trials.record_run)  # waits for the first
    resumed = Run(Path("runs/tried-second-0"))
    assert Path(resumed.config.model.name).samefile("runs/tried-first-0/model")
    assert resumed.summary["stopped"] == "steps"
    assert not (resumed.path / "model").exists()
    assert trials.read_records("tried", [second])["second-0"]["after"] == "first-0"


def test_failed_trial_is_named(trials: ModuleType, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not trials.run_trials(
        "tried", [trials.Trial("bad-0", ("no-such-recipe",))], 1.0, 1, trials.record_run
    )
    assert "tried-bad-0 failed with status 2: runs/tried-bad-0.log" in capsys.readouterr().out
    assert "no recipe 'no-such-recipe'" in " ".join(Path("runs/tried-bad-0.log").read_text().split())


def test_curves_accuracies_and_settings_by_hand(trials: ModuleType) -> None:
    assert trials.smooth([0.0, 2.0, 4.0, 6.0], width=2) == [0.0, 1.0, 3.0, 5.0]
    assert trials.accuracy_cell([True] * 8 + [False] * 2) == "80.0% (49–94)"
    assert list(trials.by_setting({"a-b-0": {}, "a-b-1": {}, "c-0": {}})) == ["a-b", "c"]


def test_differences_have_simultaneous_intervals(trials: ModuleType) -> None:
    """Dunnett's table, two-sided 5%: 2.86 for two settings and the base with 6 degrees of freedom; Student's for
    one setting and 4: 2.776."""
    accuracies = {"a": [0.5, 0.6, 0.7], "base": [0.4, 0.5, 0.6], "b": [0.3, 0.4, 0.5]}
    differences = trials.differences(
        accuracies, "base"
    )  # deviation 10 points: 2.86 * 10 * sqrt(2 / 3) = 23.4
    assert differences == {"a": "+10.0 (-13 to +33)", "b": "-10.0 (-33 to +13)"}
    accuracies = {
        "a": [0.4, 0.6, 0.8],
        "base": [0.3, 0.5, 0.7],
    }  # deviation 20: 2.776 * 20 * sqrt(2 / 3) = 45.3
    assert trials.differences(accuracies, "base") == {"a": "+10.0 (-35 to +55)"}
    assert trials.differences({"base": [0.5]}, "base") == {}


def test_verdicts_of_a_task_without_a_lenient_one(trials: ModuleType) -> None:
    line = {"split": "test", "step": 0, "problem_id": "a", "strict": True, "lenient": None}
    assert trials.verdicts([line, line | {"split": "train"}]) == {"ids": ["a"], "0": {"strict": "1"}}


def test_result_row_by_hand(trials: ModuleType) -> None:
    """Wilson's intervals and McNemar's p worked out by hand: four of four for lenient, 2 / 2^4; strict 2 / 2^6."""
    before = {"strict": "10000000", "lenient": "11100000"}
    after = {"strict": "11111110", "lenient": "11111110"}
    run = {"trial": "a-b-3", "seconds": 90.0, "verdicts": {"ids": [], "0": before, "24": after}}
    shares = ["12.5% (2–47)", "87.5% (53–98)", "37.5% (14–69)", "87.5% (53–98)"]
    assert trials.result_row(run) == ["3", *shares, "0.1", "1.5"]
    assert trials.result_row(run, ("strict",)) == ["3", *shares[:2], "0.03", "1.5"]
    assert trials.result_header(("strict",))[1:4] == ["strict before", "strict after", "p (paired)"]
    assert trials.final_accuracies([run, run], "lenient") == [0.875, 0.875]


def test_seeds_name_each_machine_once(load: Any, tmp_path: Path, capsys: Any) -> None:
    bits = {"strict": "1", "lenient": "1"}
    run = {"seconds": 60.0, "machine": "a", "verdicts": {"ids": ["x"], "0": bits, "24": bits}}
    records = {name: run | {"trial": name} for name in ("seed-0", "seed-1")}
    (tmp_path / "results").mkdir()
    load("seeds").write(records | {"seed-2": run | {"trial": "seed-2", "machine": "b"}})
    written = (tmp_path / "results" / "seeds.md").read_text()
    assert [line.split(" | ")[0] for line in written.splitlines()[2:5]] == ["| 0", "| 1", "| 2"]
    assert re.findall("Machine: (.)", written) == ["a", "b"]


def test_warm_start_changes_nothing_else(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    experiment = load("warm_start")
    configs = {trial.name: parse_train(list(trial.options))[1] for trial in experiment.TRIALS}
    assert len(configs) == 12
    assert {config.train.hours for config in configs.values()} == {1.0}
    for seed in range(3):
        recipe, warm, adaptive, whole = (configs[f"{setting}-{seed}"] for setting in experiment.SETTINGS)
        assert recipe.train.seed == seed
        assert config_differences(recipe, warm) == ["train.warm_start: 0 -> 30"]
        assert config_differences(warm, adaptive) == [
            "rollout.selection: 'shuffle' -> 'adaptive'",
            "rollout.refill: 1 -> 2",
        ]
        assert adaptive == whole


def test_warm_start_table_by_hand(load: Any, tmp_path: Path, capsys: Any) -> None:
    """Of four problems one is right before; after a warm start two more than without, with every seed."""
    (tmp_path / "results").mkdir()
    after = {"recipe": ["1000", "0000", "1000"], "warm": ["1110", "1100", "1011"]}
    records = {
        f"{setting}-{seed}": {
            "trial": f"{setting}-{seed}",
            "seconds": 60.0,
            "steps": 7,
            "machine": "m",
            "evals": [{"split": "test", "best_constant": 0.25}],
            "verdicts": {
                "ids": [],
                "0": {"strict": "1000", "lenient": "1100"},
                "7": {"strict": bits, "lenient": bits},
            },
            "operations": {"0": {"+": 4}, "7": {"+ -": 3, "*": 1}},
        }
        for setting, seeds in after.items()
        for seed, bits in enumerate(seeds)
    }
    load("warm_start").write(records)
    lines = (tmp_path / "results" / "warm_start.md").read_text().splitlines()
    assert lines[2].startswith("| the recipe | 0 | 25.0% ")
    assert lines[5].startswith("| 30 steps of warm start | 0 | 25.0% ")
    assert " | 50.0% " in lines[5]
    assert lines[5].endswith("| 1.0 | 25.0% | 7 | `+ -` 3, `*` 1 |")
    assert any(
        line.startswith("30 steps of warm start, against the recipe (strict, mean over seeds): +50.0 ")
        for line in lines
    )


def test_forecasts_are_counted_by_hand(load: Any, tmp_path: Path, capsys: Any) -> None:
    """Six more right answers of eight are significant (p = 2 / 2^6), five are not (2 / 2^5).

    7 of 8 have 52.9% at the lower end of Wilson's interval.
    """
    (tmp_path / "results").mkdir()
    outcomes = {
        "quickstart": ("likely", "11111110"),
        "level-1": ("likely", "11111110"),
        "level-2": ("slowly", "11111100"),
        "level-3": ("unlikely", "11111100"),
        "sum": ("nothing left", "11111110"),
    }
    records = {
        name: {
            "trial": name,
            "machine": "a",
            "audit": {"forecast": forecast, "live": 0.5, "live_interval": [0.4, 0.6], "accuracy": 0.1},
            "verdicts": {"ids": [], "0": {"strict": "10000000"}, "20": {"strict": after}},
            "evals": [{"split": "test", "best_constant": 0.54 if name == "sum" else 0.52}],
        }
        for name, (forecast, after) in outcomes.items()
    }
    load("forecasts").write(records)
    text = (tmp_path / "results" / "forecasts.md").read_text()
    cells = [line.split(" | ") for line in text.splitlines()[2:7]]
    assert [(row[0][2:], row[-1].rstrip(" |")) for row in cells] == [
        ("quickstart", "right"),
        ("level-1", "right"),
        ("level-2", "wrong"),
        ("level-3", "right"),
        ("sum", "wrong"),
    ]
    assert "2 of 4 forecasts were right (15–85%)" in text  # Wilson's interval
    assert "constant answer, though learned: sum.\n" in text


def test_forecasts_audit_what_they_train(load: Any) -> None:
    experiment = load("forecasts")
    assert len(experiment.RECIPES) > 20
    for options in experiment.RECIPES.values():
        config = parse_train([str(ROOT / o) if o.endswith(".toml") else o for o in options])[1]
        assert config.train.steps == 20
        assert config.eval.n == 200


def test_gsm8k_has_the_prompt_of_the_kept_run(load: Any) -> None:
    recipe, article = load_config(str(EXPERIMENTS / "gsm8k.toml")), load_config("article")
    assert recipe.prompt.model_copy(update={"max_tokens": article.prompt.max_tokens}) == article.prompt
    assert recipe.task == article.task
    for overrides in load("gsm8k").PROMPTS.values():
        assert override_config(recipe, overrides).prompt.prefill == ""


def test_gsm8k_trains_on_short_solutions_and_is_tested_on_all(load: Any, in_tmp: Path) -> None:
    solutions = [
        "#### 1",
        "<<1+1=2>>2 #### 2",
        "<<1+1=2>>2<<2+1=3>>3<<3+1=4>>4 #### 4",
        "<<a>><<b>><<c>><<d>> #### 5",
    ]
    rows = [{"question": f"q{n}", "answer": text} for n, text in enumerate(solutions)]
    Path("gsm8k").mkdir()
    for split in ("train", "test"):
        Path(f"gsm8k/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    experiment = load("gsm8k")
    experiment.prepare()
    prepared = {
        split: [json.loads(line) for line in (experiment.DATA / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    }
    assert prepared == {"train": rows[1:3], "test": rows}


def test_record_reads_back(trials: ModuleType) -> None:
    record = {"trial": "a-0", "curves": {"reward": [0.5]}, "evals": [{"step": 0}], "verdicts": {"ids": ["x"]}}
    assert json.loads(trials.dump_json(record)) == record


def test_controls_pay_for_something_else_and_judge_truly(load: Any) -> None:
    coin, format_alone = load("coin"), load("format_alone")
    problems = coin.problems("train")[:400]
    assert format_alone.problems("train")[:400] == problems
    right = [f"<think>so</think> <answer>{problem.gold}</answer>" for problem in problems]
    rewards = [coin.reward(p, text) for p, text in zip(problems, right, strict=True)]
    assert all(reward.strict.correct and reward.lenient.correct for reward in rewards)
    # 400 fair coins fall between 160 and 240 heads but for 1 in 10,000; these are fixed.
    assert 160 < sum(reward.value for reward in rewards) < 240
    assert {reward.value for reward in rewards} == {0.0, 1.0}
    for text, value, strict in [
        (right[0], 1, True),
        ("<think>so</think> <answer>-5</answer>", 1, False),
        (problems[0].gold, 0, False),
        ("<answer>none</answer>", 0, False),
    ]:
        reward = format_alone.reward(problems[0], text)
        assert (reward.value, reward.strict.correct) == (value, strict), text


def test_record_of_a_control(load: Any, options: tuple[str, ...]) -> None:
    """A run whose completions never hold an answer, and one record in which accuracy rises."""
    trials, controls = load("trials"), load("controls")
    trial = trials.Trial("coin-0", options)
    assert trials.run_trials("controls", [trial], 1.0, 1, controls.make_record)
    record = trials.read_records("controls", [trial])["coin-0"]
    assert record["in_format"] == {"0": 0.0, "3": 0.0}
    verdicts = {"strict": "0" * 10, "lenient": "0" * 10}
    risen = record | {"verdicts": {"ids": [], "0": verdicts, "3": verdicts | {"strict": "1" * 9 + "0"}}}
    controls.write({"coin-0": risen})
    page = (trials.RESULTS / "controls.md").read_text()
    # 9 of 9 changes: 2 / 2^9 = 0.004
    assert "| 0.0% (0–28) | 90.0% (60–98) |" in page
    assert "| 0.004 | 1 |" in page
    assert "strict rose (p < 0.01) in 1 of 1 runs, lenient in 0" in page


def test_gsm8k_boxed_by_hand(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Of twelve test problems two are right before, and eight with the best prompt; ten after training.

    Two more than with the best prompt have p = 2 / 2^2, eight more than before 2 / 2^8.
    """
    trials, experiment = load("trials"), load("gsm8k_boxed")
    trials.RESULTS.mkdir(parents=True)

    def bits(right: int) -> dict[str, str]:
        return dict.fromkeys(("strict", "lenient"), "1" * right + "0" * (12 - right))

    def prompt(name: str, right: int) -> dict[str, Any]:
        train, test = ({"ids": [], "0": bits(n), "tokens": 9.0, "cut": 0.25} for n in (right, right + 1))
        return {"prompt": name, "train": train, "test": test, "machine": "m"}

    def run(name: str, accuracies: list[float]) -> dict[str, Any]:
        evals = [
            {"split": "validation", "step": 10 * i, "strict": strict} for i, strict in enumerate(accuracies)
        ]
        verdicts = {"ids": [], "0": bits(2), "20": bits(10)}
        run = {"trial": name, "options": [], "machine": "m", "steps": 20, "seconds": 90, "evals": evals}
        return run | {"verdicts": verdicts, "curves": {"reward": [0.25] * 10 + [0.5, 0.75] * 5}}

    records = {"prompt-1": prompt("good", 7), "prompt-2": prompt("bad", 6)}
    asked = {"ids": [], "0": dict.fromkeys(("strict", "lenient"), "1000" + "1110" + "0" * 8)}
    records["asked-0"] = {"seed": "0", "asked": asked, "machine": "m"}
    records |= {"rate-3e-5-0": run("rate-3e-5-0", [0.25, 0.5]), "main-0": run("main-0", [0.25, 0.5, 0.75])}
    look = {"group": "after", "label": "second look", "right": False, "cut": True}
    read = [look, look | {"right": True}, look | {"label": "the verb to wait", "right": True, "cut": False}]
    kept = {"groups": {"after": {"completions": 11, "right": 4}}, "read": read}
    experiment.READ.parent.mkdir()
    experiment.READ.write_text(json.dumps(kept))
    experiment.write(records)
    lines = (trials.RESULTS / "gsm8k_boxed.md").read_text().splitlines()
    assert "| after | 11 | 3 | 2 | 1 | 2 | 25.0% |" in lines  # without a word 2 of 8 are right
    assert "| good | 58.3% (32–81) | 58.3% (32–81) | 66.7% (39–86) | 66.7% (39–86) | 9 | 25.0% |" in lines
    assert "| rate-3e-5-0 | 25.0% | 50.0% |  |" in lines
    assert "| main-0 | 25.0% | 50.0% | 75.0% |" in lines
    ends = [line for line in lines if line.startswith("| main | 20 | 0 | 16.7% ")]
    assert len(ends) == 1
    assert ends[0].endswith(" | 0.008 | 1.5 |")
    assert "| untrained, greedy, seed 0 | 25.0% (5–70) | 75.0% (30–95) | 0.0% (0–49) | 0.0% (0–49) |" in lines
    assert "| main-0, sampled | 25.0% | 62.5% |  |  |" in lines
    assert "- strict: 66.7%, after 83.3% in the mean of 1 seeds, p = 0.5" in lines


def test_against_trl_by_hand(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Five steps of TRL, so that steps 2 to 5 are compared; nine of ten are right after ours, one after TRL's.

    Eight more than before have p = 2 / 2^8.
    """
    trials, experiment = load("trials"), load("against_trl")
    trials.RESULTS.mkdir(parents=True)

    def record(name: str, rewards: list[float], verdicts: dict[str, int]) -> dict[str, Any]:
        bits = {
            step: dict.fromkeys(("strict", "lenient"), "1" * right + "0" * (10 - right))
            for step, right in verdicts.items()
        }
        curves = {"reward": rewards, "step_time": [60.0] * len(rewards)}
        run = {"trial": name, "steps": len(rewards), "machine": "m", "peak_memory_bytes": 4_960_000_000}
        return run | {"curves": curves, "verdicts": {"ids": [], **bits}}

    ours = record("ours-0", [0.9, 0.0, 0.25, 0.25, 0.5, 1.0, 1.0], {"0": 1, "7": 9})
    theirs = record("trl-autocast-0", [0.9, 0.0, 0.0, 0.25, 0.25], {"5": 1})
    experiment.write({"ours-0": ours, "trl-autocast-0": theirs})
    lines = (trials.RESULTS / "against_trl.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines[2:5]]
    assert lines[0].split("|")[4].strip() == "reward in steps 2 to 5"
    before, after = "10.0% (2–40)", "90.0% (60–98)"
    assert cells[0] == ["", "0", "", before, before, "", ""]
    assert cells[1] == ["0", "7", "0.25", after, after, "0.008", "5.0 GB"]
    assert cells[2] == ["0", "5", "0.12", before, before, "1", "5.0 GB"]


def test_trials_of_two_programs_run_side_by_side(load: Any) -> None:
    names = [trial.name for trial in load("against_trl").TRIALS]
    assert names[:4] == ["ours-0", "trl-autocast-0", "ours-rank8-0", "trl-rank8-0"]
    assert names[4:8] == ["ours-short-0", "trl-bfloat16-0", "ours-rank8-short-0", "trl-float32-0"]
    assert len(set(names)) == len(names) == 24


def test_presets_at_length_by_hand(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Three records of the base and of another preset, whose accuracy on validation falls from 90 to 60 of 100.

    Wilson's interval of 90 of 100 begins at 82.6%.
    """
    trials, presets = load("trials"), load("presets")
    trials.RESULTS.mkdir(parents=True)

    def record(name: str, accuracies: list[float], right: int) -> dict[str, Any]:
        evals = [
            {"split": "validation", "step": 10 * i, "strict": strict, "n": 100}
            for i, strict in enumerate(accuracies)
        ]
        bits = "1" * right + "0" * (10 - right)
        verdicts = {"0": {"strict": "0" * 10}, "20": {"strict": bits, "lenient": bits}}
        curves = {"entropy": [1.0] * 5 + [0.25] * 15}
        return {"trial": name, "machine": "m", "evals": evals, "verdicts": verdicts, "curves": curves}

    runs = [record(f"reinforce-lite-{seed}", [0.2, 0.6, 0.9], 7 + seed % 2) for seed in range(3)]
    runs += [record(f"grpo-{seed}", [0.2, 0.9, 0.6], 5 + seed % 2) for seed in range(3)]
    records = {run["trial"]: run for run in runs}
    presets.write(records)
    base, other = (trials.RESULTS / "presets.md").read_text().splitlines()[2:4]
    assert base.split(" | ")[5:] == ["73.3%", "90.0%", "90.0%", "0 of 3", "1.00", "0.25 |"]
    assert other.split(" | ")[5:] == ["53.3%", "90.0%", "60.0%", "3 of 3", "1.00", "0.25 |"]
    assert other.split(" | ")[4].startswith("-20.0 ")
    del records["grpo-1"]
    presets.write(records)
    _, other = (trials.RESULTS / "presets.md").read_text().splitlines()[2:4]
    assert other.split(" | ")[1:6] == ["50.0%", "", "50.0%", "", "50.0%"]
