"""What the READMEs tell a newcomer to type works, with a tiny model and few steps; both say the same."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

import reinforce_lite as rl
from helpers.paths import ROOT
from reinforce_lite.cli.app import main
from reinforce_lite.config import load_config, recipe_names
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.runs import find_run

READMES = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")]
SMALL = {
    "rollout.prompts_per_step": 2,
    "rollout.max_new_tokens": 6,
    "eval.n": 4,
    "eval.validation_n": 2,
    "prompt.max_tokens": 1900,
}
STEPS, MORE_STEPS = 1, 2
LONGEST = 120  # lines


@pytest.fixture(params=READMES, ids=["English", "Chinese"])
def readme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.+?)^```", readme, re.DOTALL | re.MULTILINE)


def commands(readme: str, program: str) -> list[list[str]]:
    """The command lines of a README that begin with this program."""
    lines = [line for block in blocks(readme, "bash") for line in block.splitlines()]
    return [args for line in lines if (args := shlex.split(line, comments=True))[:1] == [program]]


def small_options(args: list[str], model: Path) -> list[str]:
    """A `train` command with the tiny model and few steps; where the README asks for more steps, with more."""
    steps = MORE_STEPS if "--train.steps" in args else STEPS
    settings = SMALL | {"model.name": model, "train.steps": steps}
    options = [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    return [*args, *options]


def test_commands_run_in_order(
    readme: str,
    model_folder: Path,
    in_tmp: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REINFORCE_LITE_CACHE", str(in_tmp / "cache"))
    (task,) = [block for block in blocks(readme, "python") if "def problems" in block]
    Path("my_task.py").write_text(task)
    names = set()
    for _, *args in commands(readme, "reinforce-lite"):
        names.add(args[0])
        trains = args[0] in ("train", "audit")
        assert main(small_options(args, model_folder) if trains else args) == 0, args
    assert names == {"train", "audit", "ask", "eval", "report", "plan"}
    assert "untrained" in capsys.readouterr().out
    assert len(find_run("mine").steps) == MORE_STEPS
    assert find_run("sums").config.task.name == "./my_task.py"
    assert (find_run("mine").path / "report.html").exists()


def test_snippet_runs(
    readme: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = rl.train

    def tiny_train(recipe: str, overrides: dict[str, Any]) -> Run:
        return train(recipe, overrides | SMALL | settings | {"train.steps": STEPS}, quiet=True)

    monkeypatch.setattr(rl, "train", tiny_train)
    (snippet,) = [block for block in blocks(readme, "python") if "rl.train" in block]
    assert snippet.splitlines()[0] == "import reinforce_lite as rl"
    Path("snippet.py").write_text(snippet)
    runpy.run_path("snippet.py")
    assert capsys.readouterr().out.splitlines()[-1] == "True 72 right"


def test_make_targets_exist(readme: str) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {args[1] for args in commands(readme, "make")} <= set(targets)


def test_recipes_table_is_the_shipped_recipes(readme: str) -> None:
    rows = dict(re.findall(r"^\| `([a-z0-9.-]+)` \| ([\w.-]+)", readme, re.MULTILINE))
    assert sorted(rows) == recipe_names()
    for name, model in rows.items():
        shipped = load_config(name).model.name
        assert shipped == "smollm2-135m" or shipped.endswith(f"/{model}")


def test_accuracies_are_those_of_the_kept_seeds(readme: str) -> None:
    table = (ROOT / "docs" / "results" / "seeds.md").read_text(encoding="utf-8")
    seeds = re.findall(r"^\| \d \| ([\d.]+)% .+?\| ([\d.]+)% ", table, re.MULTILINE)
    assert len(seeds) == 6
    before, after = ([float(share) for share in column] for column in zip(*seeds, strict=True))
    for accuracy in (min(before), max(before), min(after), max(after)):
        assert f"{accuracy}%" in readme


def test_it_is_one_sitting_long(readme: str) -> None:
    assert len(readme.splitlines()) <= LONGEST


def test_both_name_the_same_figures_links_and_code() -> None:
    def facts(readme: str) -> dict[str, list[str]]:
        code = "\n".join(blocks(readme, "bash") + blocks(readme, "python"))
        return {
            "figures": sorted(re.findall(r"\d+(?:\.\d+)?(?=%)", re.sub(r"#.*", "", readme))),
            "links": sorted(set(re.findall(r"\]\((.+?)\)", readme)) - {"README.md", "README.zh-CN.md"}),
            "headings": re.findall(r"^(#+) ", readme, re.MULTILINE),
            "code": [
                line.rstrip() for line in re.sub(r"(^|  )#.*", "", code, flags=re.MULTILINE).splitlines()
            ],
        }

    english, chinese = map(facts, READMES)
    assert english == chinese
