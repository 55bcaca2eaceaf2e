"""The forecast and the advice, by hand; a whole audit of the tiny model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.groups import make_groups
from helpers.paths import RECIPE
from helpers.tiny import ToyTask
from reinforce_lite.cli.app import main
from reinforce_lite.config import load_config
from reinforce_lite.tasks.data_audit import DataAudit
from reinforce_lite.trainer.audit import Sampled, Way, audit, give_advice, summarize, ways_to_ask
from reinforce_lite.types import Problem, Reward, Verdict

CONFIG = load_config("quickstart")
WAY = Way("the recipe", "tags", CONFIG.prompt)
DATA = DataAudit(200, "<answer>{}</answer>", 1.0, "", {"nothing": 0.0}, 0, True, 0.1)


def sampled(**changes: Any) -> Sampled:
    healthy = Sampled(WAY, 16, 0.4, 0.9, 0.6, (0.4, 0.8), 0.0, 0.0, 20.0)
    return replace(healthy, **changes)


def test_summary_by_hand() -> None:
    found = summarize(WAY, make_groups([[1.0, 0.0, 0.0, 1.0], [0.0] * 4, [1.0] * 4]))
    assert (found.questions, found.accuracy, found.solved, found.live) == (3, 0.5, 2 / 3, 1 / 3)
    assert found.mean_tokens == (13 + 13 + 8) / 12
    assert found.format_failures == 0


def test_right_numbers_in_another_format_are_counted() -> None:
    group = make_groups([[1.0, 0.0, 0.0, 1.0], [0.0] * 4, [0.0] * 4])[0]
    lenient = [Verdict(right, "7", "") for right in (True, True, False, True)]
    rollouts = tuple(replace(r, lenient=v) for r, v in zip(group.rollouts, lenient, strict=True))
    assert summarize(WAY, [replace(group, rollouts=rollouts)]).format_failures == 1 / 4


@pytest.mark.parametrize(
    ("accuracy", "live", "forecast"),
    [(0.4, 0.6, "likely"), (0.1, 0.15, "slowly"), (0.02, 0.05, "unlikely"), (0.95, 0.3, "nothing left")],
)
def test_forecast(accuracy: float, live: float, forecast: str) -> None:
    assert sampled(accuracy=accuracy, live=live).forecast == forecast


def test_a_good_recipe_gets_no_advice() -> None:
    assert give_advice(CONFIG, DATA, [sampled(), sampled(live=0.65)]) == []


@pytest.mark.parametrize(
    ("data", "own", "words"),
    [
        ({}, {"live": 0.0, "accuracy": 0.0}, ["too few groups", "larger model"]),
        ({}, {"live": 0.15}, ["--rollout.refill 2"]),
        ({}, {"accuracy": 0.97}, ["--task.level 2"]),
        ({}, {"truncated": 0.3}, ["30%", "--rollout.max-new-tokens 128"]),
        ({"unearned": {"the constant 3": 0.4}}, {}, ["the constant 3", "40%"]),
    ],
)
def test_advice(data: dict[str, Any], own: dict[str, Any], words: list[str]) -> None:
    (line,) = give_advice(CONFIG, replace(DATA, **data), [sampled(**own)])
    assert all(word in line for word in words)


def test_a_much_better_way_to_ask_is_recommended() -> None:
    way = replace(WAY, name="boxed", options="--task.answer-format boxed")
    (line,) = give_advice(CONFIG, DATA, [sampled(live=0.3), sampled(way=way, live=0.5)])
    assert "--task.answer-format boxed" in line


def test_ways_of_a_recipe_without_examples_are_options() -> None:
    gsm8k = load_config("gsm8k-0.5b")
    ways = ways_to_ask(gsm8k)
    assert ways[0].prompt == gsm8k.prompt
    for way in ways[1:]:
        assert f"--task.answer-format {way.answer_format}" in way.options
        assert way.prompt.examples == ()
    assert [w.name for w in ways_to_ask(CONFIG)] == [
        "the recipe",
        *(f"{f}, no examples" for f in ("tags", "boxed", "hash")),
    ]
    assert len(ways_to_ask(load_config(RECIPE, {"task.name": "gym"}))) == 1


class ToyNumbers(ToyTask):
    """The reward depends on the gold too: one that pays the same for every problem is broken."""

    def reward(self, problem: Problem, completion: str) -> Reward:
        return Reward(float((sum(map(ord, completion)) + int(problem.gold)) % 3 == 0))


def test_a_whole_audit(model_folder: Path) -> None:
    config = load_config(RECIPE, {"model.name": str(model_folder), "task.name": "object"})
    found = audit(config, minutes=0.0, task=ToyNumbers())
    assert found.data.problems == 12
    (own,) = found.ways
    assert own.questions == 4  # a round
    assert audit(config, minutes=0.0, task=ToyNumbers()).ways == found.ways  # the same seed


def test_the_command(model_folder: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = [{"question": f"{n} + 1?", "answer": n + 1} for n in range(40)]
    Path("sums.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    options = ["--task.name", "jsonl", "--task.path", "sums.jsonl", "--model.name", str(model_folder)]
    status = main(["audit", RECIPE, *options, "--prompt.max-tokens", "300", "--minutes", "0", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert status == 0
    assert printed["data"]["golds_paid"] == 1
    assert printed["ways"][0]["forecast"] == "unlikely"  # random weights
    assert printed["ways"][0]["way"] == "the recipe"


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
        ("return float(completion.removeprefix('<think>probe</think>')[8:9])", "mend"),  # on odd ones
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


def test_a_nearly_solved_task_is_not_asked_another_way() -> None:
    way = replace(WAY, name="boxed", options="--task.answer-format boxed")
    (line,) = give_advice(CONFIG, DATA, [sampled(accuracy=0.95, live=0.05), sampled(way=way, live=0.8)])
    assert "--task.level 2" in line
