"""Recipes, precedence, and what is said about mistakes."""

from pathlib import Path

import pytest

from reinforce_lite import config
from reinforce_lite.errors import UsageError


@pytest.mark.parametrize("name", config.recipes())
def test_every_shipped_recipe_parses(name: str) -> None:
    assert config.load(name).recipe == name


def test_there_is_a_quickstart() -> None:
    assert config.load("quickstart").model.name == "smollm2-135m"


def test_precedence_is_overrides_then_file_then_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nsteps = 7\nseed = 3\n[task]\nlevel = 2\n")
    found = config.load(str(file), {"train.seed": 4})
    assert (found.train.steps, found.train.seed, found.task.level, found.recipe) == (7, 4, 2, "mine")
    assert found.rollout.samples_per_prompt == 10


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
        ("[objective]\npreset = 'ppo'", "objective.preset", ""),
        ("steps = 7", "there is no key 'steps'", ""),
        ("[train", "not a TOML file", ""),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, cause: str, remedy: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        config.load(str(file))
    assert cause in caught.value.cause
    assert "mine.toml" in caught.value.cause
    assert "\n" not in caught.value.cause
    assert remedy in caught.value.remedy


def test_unknown_recipe_and_bad_override() -> None:
    with pytest.raises(UsageError, match="there is no recipe 'quickstrat'"):
        config.load("quickstrat")
    with pytest.raises(UsageError, match="can't read the recipe"):
        config.load("nowhere.toml")
    with pytest.raises(UsageError, match=r"not of the form section\.key"):
        config.load("quickstart", {"steps": 3})
    with pytest.raises(UsageError, match=r"no key 'train\.stepps'"):
        config.load("quickstart", {"train.stepps": 3})


def test_dump_goes_round(tmp_path: Path) -> None:
    changed = config.load(
        "quickstart",
        {
            "objective.clamp": "none",
            "task.params": {"min": 3, "kind": "x"},
            "prompt.system": 'a "quoted"\nline ٧ \\',
            "prompt.examples": [{"question": "q", "answer": "a"}],
        },
    )
    file = tmp_path / "config.toml"
    file.write_text(config.dump(changed), encoding="utf-8")
    assert config.load(str(file)) == changed


def test_differences_are_said_and_safe_ones_left_out() -> None:
    old = config.load("quickstart")
    new = config.load("quickstart", {"train.seed": 1, "train.steps": 99})
    assert config.differences(old, new, frozenset({"train.steps"})) == ["train.seed: 0 -> 1"]
