"""What the README tells a newcomer to type works, the long ones with a tiny model and few steps."""

import re
import shlex
from pathlib import Path

import pytest

from helpers.paths import ROOT
from reinforce_lite.cli.app import main
from reinforce_lite.config import recipe_names
from reinforce_lite.learner.objective import PRESETS

README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = shlex.split(
    "--train.steps 1 --rollout.prompts-per-step 2 --rollout.max-new-tokens 6 --eval.n 4 --eval.validation-n 2 "
    "--prompt.max-tokens 1900"
)


def commands() -> list[str]:
    lines = re.findall(r"^    (reinforce-lite .+)$", README, re.MULTILINE)
    return [line.split(" #")[0].strip() for line in lines]


def test_every_command_in_order(model_folder: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (in_tmp / "my_task.py").write_text(re.search(r"```python\n(.+?)```", README, re.DOTALL)[1])  # type: ignore[index]
    assert len(commands()) >= 6
    for command in commands():
        args = shlex.split(re.sub(r"--train\.steps \d+", "", command))[1:]
        if args[0] == "train":
            args += ["--model.name", str(model_folder), *SMALL]
        assert main(args) == 0, command
    assert "untrained" in capsys.readouterr().out


def test_the_table_of_objectives_is_the_code() -> None:
    words = {"leave-one-out": "others' ", "group": "group ", "none": ""}
    normalise = {
        "constant": "constant length",
        "sequence-sum": "mean of sums",
        "sequence-mean": "mean per answer, then mean",
    }
    for name, o in PRESETS.items():
        row = [
            f"`{name}`",
            f"{words[o.baseline]}mean" if o.baseline != "none" else "none",
            f"{words[o.scale]}std" if o.scale != "none" else "none",
            f"{o.advantage_clip:g}" if o.advantage_clip else "none",
            "all G" if o.gradient_samples == "all" else "one",
            normalise[o.loss_normalization],
            "sampling temperature" if o.logprob_temperature == "sampling" else str(o.logprob_temperature),
        ]
        assert f"| {' | '.join(row)} |" in README


def test_the_tables_of_recipes_and_files_are_there() -> None:
    assert set(re.findall(r"^\| `([a-z0-9.-]+)` \| (?:SmolLM|Qwen)", README, re.MULTILINE)) == set(
        recipe_names()
    )
    for link in re.findall(r"\]\(((?:src|docs)/[^)]+)\)", README):
        assert (ROOT / link).exists(), link
