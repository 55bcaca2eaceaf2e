"""Recipes, precedence, and what is said about mistakes."""

from datetime import date, time
from pathlib import Path
from typing import Any

import pytest

from reinforce_lite.cli.args import parse_train
from reinforce_lite.config import (
    Config,
    config_differences,
    dump_config,
    load_config,
    option_flag,
    recipe_names,
)
from reinforce_lite.errors import UsageError


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_parses(name: str) -> None:
    assert load_config(name).recipe == name


def test_there_is_a_quickstart() -> None:
    assert load_config("quickstart").model.name == "smollm2-135m"


def test_precedence_is_overrides_then_file_then_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nsteps = 7\nseed = 3\n[task]\nlevel = 2\n")
    found = load_config(str(file), {"train.seed": 4})
    assert (found.train.steps, found.train.seed, found.task.level, found.recipe) == (7, 4, 2, "mine")
    assert found.rollout.group_size == 10


@pytest.mark.case(30)
@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        ("[train]\nstep = 7", "there is no key 'train.step'", "did you mean 'train.steps'"),
        ("[trian]\nsteps = 7", "there is no key 'trian'", "did you mean 'train'"),
        ("[train]\nsteps = 0", "train.steps", ""),
        ("[train]\nsteps = 'many'", "train.steps", ""),
        ("[task]\nlevel = 5", "task.level", ""),
        ("[rollout]\ntop_p = 0.0", "rollout.top_p", ""),
        ("[rollout]\nmin_new_tokens = 9\nmax_new_tokens = 8", "min_new_tokens is larger", ""),
        ("[train]\nsteps = 9\nwarm_start = 9", "warm_start must be smaller than steps", ""),
        ("[rollout]\ngroup_size = 1\nrefill = 2", "group_size is 1", ""),
        ("[rollout]\ngroup_size = 1\nselection = 'adaptive'", "group_size is 1", ""),
        ("[adapter]\ntargets = ['q_proj']", "targets are set but rank is 0", ""),
        ("[rollout]\ntemperature = inf", "rollout.temperature", ""),
        ("[update]\nlearning_rate = inf", "update.learning_rate", ""),
        ("[objective]\nlogprob_temperature = inf", "objective.logprob_temperature", ""),
        ("[objective]\npreset = 'ppo'", "objective.preset", ""),
        ("steps = 7", "there is no key 'steps'", ""),
        ("[train", "not a TOML file", ""),
        ("[rollout]\nsamples_per_prompt = 8", "has become rollout.group_size", ""),
        ("[rollout]\nanswers_in_flight = 8", "has become rollout.max_num_seqs", ""),
        ("[objective]\nclamp = 2", "has become objective.advantage_clip", ""),
        ("[objective]\nnormalize = 'sums'", "has become objective.loss_normalization", ""),
        ("[update]\nstate = '8-bit'", "has become update.optimizer_state", ""),
        ("[eval]\nsamples = 8", "has become the option --samples", "remove it"),
        ("[model]\ntrust_remote_code = true", "--trust-remote-code and --allow-pickles", "remove it"),
        ("[model]\nallow_pickles = true", "there is no key 'model.allow_pickles'", ""),
        (f"[train]\nsteps = {'9' * 5000}", "not a TOML file", ""),
        (f"[task.params]\na = {'[' * 3000}{']' * 3000}", "not a TOML file", ""),
        ("[task.params]\na = nan", "task.params: NaN", ""),
        ("[task.params]\na = {b = [-inf]}", "task.params: NaN", ""),
        (f"[task.params]\na = {'[' * 300}{']' * 300}", "task.params: maximum recursion depth", ""),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, cause: str, remedy: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(str(file))
    assert cause in caught.value.cause
    assert "mine.toml" in caught.value.cause
    assert "\n" not in caught.value.cause
    assert remedy in caught.value.remedy


def test_unknown_recipe_and_bad_override() -> None:
    with pytest.raises(UsageError, match="there is no recipe 'quickstrat'"):
        load_config("quickstrat")
    with pytest.raises(UsageError, match="can't read the recipe"):
        load_config("nowhere.toml")
    with pytest.raises(UsageError, match=r"not of the form section\.key"):
        load_config("quickstart", {"steps": 3})
    with pytest.raises(UsageError, match=r"no key 'train\.stepps'"):
        load_config("quickstart", {"train.stepps": 3})


def test_dump_goes_round(tmp_path: Path) -> None:
    changed = load_config(
        "quickstart",
        {
            "objective.advantage_clip": "none",
            "task.params": {"min": 3, "kind": "x", "days": (date(2020, 1, 1), time(12, 30))},
            "prompt.system": 'a "quoted"\nline ٧ \\',
            "prompt.examples": [{"question": "q", "answer": "a"}],
        },
    )
    file = tmp_path / "config.toml"
    file.write_text(dump_config(changed), encoding="utf-8")
    assert load_config(str(file)) == changed


def test_a_byte_order_mark_before_a_recipe_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nsteps = 7\n", encoding="utf-8-sig")
    assert load_config(str(file)).train.steps == 7


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prompt.system", "be \udcff"),
        ("prompt.examples", [{"question": "q", "answer": "\ud83d"}]),
        ("task.columns", {"\udcff": "q"}),
        ("task.params", {"a": [{"\udcff": 1}]}),
    ],
)
def test_half_a_character_is_refused(key: str, value: Any) -> None:
    """No tokenizer and no file takes it. Bytes of a command line that are not UTF-8 come like this."""
    with pytest.raises(UsageError, match=f"{key}.*not UTF-8"):
        load_config("quickstart", {key: value})


def test_differences_are_said_and_safe_ones_left_out() -> None:
    old = load_config("quickstart")
    new = load_config("quickstart", {"train.seed": 1, "train.steps": 99})
    assert config_differences(old, new, frozenset({"train.steps"})) == ["train.seed: 0 -> 1"]


def test_a_config_of_version_0_1_that_permits_nothing_is_read(tmp_path: Path) -> None:
    """Each of its runs has the line."""
    file = tmp_path / "config.toml"
    file.write_text("[model]\ntrust_remote_code = false")
    assert load_config(str(file)).model == Config().model


@pytest.mark.parametrize(
    ("recipe", "overrides", "warns"),
    [
        ("quickstart", {"adapter.rank": 8}, True),
        ("quickstart", {"adapter.rank": 8, "update.learning_rate": 5e-5}, False),
        ("quickstart", {}, False),
        ("quickstart-adapter", {"adapter.rank": 4}, False),
    ],
)
def test_an_adapter_at_the_rate_of_all_weights_is_pointed_out(
    caplog: pytest.LogCaptureFixture, recipe: str, overrides: dict[str, Any], warns: bool
) -> None:
    options = [part for key, value in overrides.items() for part in (option_flag(key), str(value))]
    rate = overrides.get("update.learning_rate", load_config(recipe).update.learning_rate)
    for config in (load_config(recipe, overrides), parse_train([recipe, *options])[1]):
        assert config.update.learning_rate == rate
    assert caplog.text.count("--update.learning-rate 0.0001") == (2 if warns else 0)
