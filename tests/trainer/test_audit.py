"""A whole audit of the tiny model, its rounds, its command."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.groups import make_groups
from helpers.paths import RECIPE
from helpers.tiny import ToyTask
from reinforce_lite.cli.app import main
from reinforce_lite.config import load_config
from reinforce_lite.rollout.selection import epoch_problems
from reinforce_lite.tasks import load_task
from reinforce_lite.trainer import audit as audit_module
from reinforce_lite.trainer.audit import audit
from reinforce_lite.types import Problem, Reward


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REINFORCE_LITE_CACHE", str(tmp_path / "cache"))


class ToyNumbers(ToyTask):
    """The reward depends on the gold too: one that pays the same for every problem is broken."""

    def reward(self, problem: Problem, completion: str) -> Reward:
        return Reward(float((sum(map(ord, completion)) + int(problem.gold)) % 3 == 0))


def test_a_whole_audit(model_folder: Path) -> None:
    config = load_config(RECIPE, {"model.name": str(model_folder), "task.name": "object"})
    found = audit(config, minutes=0.0, task=ToyNumbers())
    assert found.data.problems == 12
    (own,) = found.ways
    assert own.questions == 5  # of a step
    right = {count.problem_id: (count.right, count.samples) for count in own.counts}
    assert [*right] == [p.id for p in epoch_problems(ToyNumbers().problems("train"), 0, 5, 0)]
    assert own.accuracy == sum(n for n, _ in right.values()) / 20
    assert {samples for _, samples in right.values()} == {4}
    assert audit(config, minutes=0.0, task=ToyNumbers()).ways == found.ways  # the same seed


LIVE = {"tags, short": 1, "boxed, steps": 2, "hash, short": 3, "hash, steps": 2}
"""Live groups of a round, of three; the other ways have none."""


def test_time_goes_to_the_recipe_and_to_the_better_half_of_the_rest(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With four rounds, of 8 ways besides the recipe's 4 are left in the second, then 2, then 1."""

    def ask(_: object, asked: Any, problems: Sequence[Problem], seed: int, progress: object) -> None:
        positions = [everything.index(p) for p in problems]
        told.setdefault(asked.way.name, []).append((positions, seed))
        live = LIVE.get(asked.way.name, 0)
        asked.groups += make_groups([[1.0, 0.0, 0.0, 0.0] if i < live else [0.0] * 4 for i in range(3)])
        asked.rounds += 1

    told: dict[str, list[Any]] = {}
    config = load_config(RECIPE, {"model.name": str(model_folder), "prompt.max_tokens": 900})
    everything = epoch_problems(load_task(config.task).problems("train"), 0, 100, config.train.seed)
    monkeypatch.setattr(audit_module, "_ask", ask)
    monkeypatch.setattr(audit_module, "MAX_ROUNDS", 4)
    found = audit(config, minutes=60.0)
    rounds = {name: len(asked) for name, asked in told.items()}
    assert (rounds.pop("the recipe"), rounds.pop("hash, short")) == (4, 4)
    assert rounds.pop("boxed, steps") == 3  # as good as the next, and before it
    assert (rounds.pop("hash, steps"), rounds.pop("tags, short")) == (2, 2)
    assert [*rounds.values()] == [1] * 4
    assert [positions for positions, _ in told["the recipe"]] == [
        [*range(5)], [*range(5, 9)], [*range(9, 13)], [*range(13, 17)]
    ]  # fmt: skip
    assert [positions for positions, _ in told["hash, short"]] == [
        [*range(4 * i, 4 * i + 4)] for i in range(4)
    ]
    assert len({seed for _, seed in told["the recipe"]}) == 4
    assert {sampled.way.name: sampled.live for sampled in found.ways}["boxed, steps"] == 2 / 3
    assert found.advice[0].options.startswith("--task.answer-format hash")


def test_without_time_each_way_gets_one_round(model_folder: Path) -> None:
    config = load_config(RECIPE, {"model.name": str(model_folder), "prompt.max_tokens": 900})
    found = audit(config, minutes=0.0)
    assert [sampled.questions for sampled in found.ways] == [5, *[4] * 8]


def test_the_command(model_folder: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = [{"question": f"{n} + 1?", "answer": n + 1} for n in range(40)]
    Path("sums.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    options = ["--task.name", "jsonl", "--task.path", "sums.jsonl", "--model.name", str(model_folder)]
    options += ["--prompt.max-tokens", "300"]
    status = main(["audit", RECIPE, *options, "--minutes", "0", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert status == 0
    assert printed["data"]["golds_paid"] == 1
    assert printed["ways"][0]["forecast"] == "unlikely"  # random weights
    assert printed["ways"][0]["way"] == "the recipe"
    assert printed["questions"][0] == {
        "problem_id": printed["questions"][0]["problem_id"],
        "right": 0,
        "samples": 4,
    }
    assert set(printed) == {"data", "ways", "advice", "options", "questions"}
    assert {"options", "forecast", "questions", "accuracy", "solved", "live", "live_interval"} < set(
        printed["ways"][0]
    )
    assert main(["train", RECIPE, *options, "--train.steps", "1", "--run", "a"]) == 0
    assert json.loads(Path("runs/a/audit.json").read_text()) == printed
    assert "are those of the audit" in capsys.readouterr().err


def test_a_broken_task_ends_with_status_2(
    model_folder: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("task.py").write_text(
        "from reinforce_lite import Problem\n\n"
        "def problems(split):\n    return [Problem(f'{split}-{i}', f'{split} {i}?', '1') for i in range(9)]\n\n"
        "def reward(problem, completion):\n    return 1.0\n"
    )
    status = main(["audit", RECIPE, "--task.name", "./task.py", "--model.name", str(model_folder)])
    assert status == 2
    assert "right for 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('broken')", "broken"),  # on every text: found by a single call
        (
            "return float(completion.removeprefix('<think>probe</think>')[8:9])",
            "fix the reward",
        ),  # on odd ones
    ],
)
def test_a_reward_that_fails_ends_with_status_2(
    body: str, words: str, model_folder: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("task.py").write_text(
        "from reinforce_lite import Problem\n\n"
        "def problems(split):\n    return [Problem(f'{split}-{i}', f'{split} {i}?', '1') for i in range(60)]\n\n"
        f"def reward(problem, completion):\n    {body}\n"
    )
    status = main(["audit", RECIPE, "--task.name", "./task.py", "--model.name", str(model_folder)])
    assert status == 2
    assert words in capsys.readouterr().err
