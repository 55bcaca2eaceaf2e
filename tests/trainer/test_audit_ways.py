"""The ways of asking, and that their options lead to them."""

import shlex

import pytest

from helpers.paths import RECIPE
from reinforce_lite.cli.args import parse_train
from reinforce_lite.config import load_config
from reinforce_lite.trainer.audit_ways import ways_to_ask

OTHERS = [f"{f}, {style}" for f in ("tags", "boxed", "hash") for style in ("short", "steps")]


@pytest.mark.parametrize("recipe", ["quickstart", "gsm8k-0.5b", "gsm8k-3b-24gb"])
def test_pasted_options_lead_from_the_recipe_to_the_way(recipe: str) -> None:
    own, *others = ways_to_ask(load_config(recipe))
    assert (own.prompt, own.options) == (load_config(recipe).prompt, "")
    for way in others:
        _, config = parse_train([recipe, *shlex.split(way.options)])
        assert (config.task.answer_format, config.prompt) == (way.answer_format, way.prompt)
    assert len({(way.answer_format, way.prompt.model_dump_json()) for way in others}) == len(others)


def test_examples_are_shown_where_they_have_the_format() -> None:
    quickstart = load_config("quickstart")
    shown = {way.name: way.prompt.examples for way in ways_to_ask(quickstart)}
    with_examples = ["the recipe", "tags, short, examples", "tags, steps, examples"]
    assert sorted(shown) == sorted([*OTHERS, *with_examples])
    assert {n for n, examples in shown.items() if examples == quickstart.prompt.examples} == {*with_examples}
    assert all(shown[name] == () for name in OTHERS)


def test_the_recipes_own_way_is_not_tried_twice() -> None:
    plain = load_config("gsm8k-0.5b", {"prompt.instruction": "Give the final number within \\boxed{}."})
    assert [way.name for way in ways_to_ask(plain)] == [
        "the recipe",
        *(name for name in OTHERS if name != "boxed, short"),
    ]


def test_a_task_of_ones_own_is_asked_as_its_recipe_says() -> None:
    assert len(ways_to_ask(load_config(RECIPE, {"task.name": "./my_task.py"}))) == 1


def test_reasoning_gym_is_asked_for_an_answer_in_the_recipes_format() -> None:
    config = load_config("gsm8k-0.5b", {"task.name": "gym", "task.path": "gcd"})
    own, *others = ways_to_ask(config)
    assert own.prompt == config.prompt
    assert [way.name for way in others] == ["boxed, short", "boxed, steps"]
    assert others[0].options == "--prompt.instruction 'Give the final answer within \\boxed{}.'"
