"""What a resumed run is compared with, the prompt of its first question; and room on the disk."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.tiny import CHATML, make_tokenizer
from reinforce_lite.config import Config, PromptConfig, TaskConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer.preflight import (
    check_disk_space,
    check_enough_problems,
    check_no_secrets,
    check_same_config,
    check_same_prompt,
    describe_prompt,
)
from reinforce_lite.types import Problem

BARE = PromptConfig(instruction="")


def builder(template: str = CHATML) -> PromptBuilder:
    return PromptBuilder(make_tokenizer(template), BARE)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that was started with the prompt <|im_start|>user 2+2?<|im_end|> <|im_start|>assistant."""
    run = Run(tmp_path)
    run.write_json("first_prompt", describe_prompt(builder(), "2+2?"))
    run.write_config(Config())
    return run


def test_the_limits_of_a_reward_may_change(run: Run) -> None:
    for key in ("reward_seconds", "reward_memory", "reward_workers"):
        check_same_config(Config(task=TaskConfig.model_validate({key: 3})), run)
    with pytest.raises(UsageError, match=r"task\.level"):
        check_same_config(Config(task=TaskConfig(level=3)), run)


def test_the_same_prompt_passes(run: Run) -> None:
    check_same_prompt(builder(), run, "2+2?")


@pytest.mark.case(6)
def test_another_text_is_refused_and_the_difference_shown(run: Run) -> None:
    """The two agree in "<|im_start|>user", of 16 characters."""
    with pytest.raises(UsageError, match=r"position 16 .*text") as caught:
        check_same_prompt(builder(CHATML.replace("'\n' + m", "': ' + m")), run, "2+2?")
    old, new = caught.value.cause.split(" -> ")
    assert old.endswith(repr("<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"[:56]))
    assert new == repr("<|im_start|>user: 2+2?<|im_end|>\n<|im_start|>assistant\n"[:56])
    assert "\n" not in caught.value.cause


def test_a_longer_prompt_that_begins_alike_is_refused(run: Run) -> None:
    with pytest.raises(UsageError, match="<think>"):
        check_same_prompt(builder(CHATML + "<think>"), run, "2+2?")


@pytest.mark.case(6)
def test_the_same_text_in_other_tokens_is_refused(run: Run) -> None:
    """Token 0 is <|im_start|>, then come the letters."""
    prompt = run.first_prompt
    run.write_json("first_prompt", prompt | {"token_ids": [*prompt["token_ids"][:3], 300, 301]})
    with pytest.raises(UsageError, match=r"position 3 .*token_ids"):
        check_same_prompt(builder(), run, "2+2?")


def test_a_run_that_has_not_started_is_not_compared(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_json("first_prompt", describe_prompt(builder(), "another?"))
    check_same_prompt(builder(CHATML + "x"), run, "2+2?")


@pytest.mark.parametrize("text", ["{", '{"question": "x"}'])
def test_a_damaged_file_is_named(run: Run, text: str) -> None:
    (run.path / "first_prompt.json").write_text(text)
    with pytest.raises(UsageError, match=r"first_prompt\.json is damaged"):
        check_same_prompt(builder(), run, "2+2?")


@pytest.mark.case(28)
def test_a_prompt_with_a_secret_is_stored_masked_and_still_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hf_abcdefgh")
    run = Run(tmp_path)
    run.write_json("first_prompt", describe_prompt(builder(), "hf_abcdefgh?"))
    run.write_config(Config())
    assert run.first_prompt["question"] == "[SOME_TOKEN]?"
    assert run.first_prompt["text"] == "<|im_start|>user\n[SOME_TOKEN]?<|im_end|>\n<|im_start|>assistant\n"
    assert run.first_prompt["token_ids"] == []  # they would spell it
    check_same_prompt(builder(), run, "hf_abcdefgh?")
    with pytest.raises(UsageError, match="prompts differ") as caught:
        check_same_prompt(builder(CHATML + "<think>"), run, "hf_abcdefgh?")
    assert "hf_abcdefgh" not in str(caught.value)


@pytest.mark.case(28)
def test_a_config_with_a_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked in config.toml, the run would be resumed with another prompt."""
    monkeypatch.setenv("SOME_TOKEN", "hf_abcdefgh")
    config = Config(prompt=PromptConfig(system="you may use hf_abcdefgh"))
    with pytest.raises(UsageError, match=r"prompt\.system .*\[SOME_TOKEN\]") as caught:
        check_no_secrets(config)
    assert "hf_abcdefgh" not in str(caught.value)
    check_no_secrets(Config())


@pytest.mark.case(2)
@pytest.mark.parametrize(("free", "fits"), [(45, True), (44, False)])
def test_room_for_checkpoints_and_models_is_checked(
    tmp_path: Path, free: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three states of 10 bytes, the last of which is being written, and three models of 5."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if fits:
        check_disk_space(Run(tmp_path), 10, 5)
    else:
        with pytest.raises(UsageError, match="disk"):
            check_disk_space(Run(tmp_path), 10, 5)


@pytest.mark.case(20)
def test_fewer_problems_than_a_step_needs_are_refused() -> None:
    config = Config()
    needed = config.rollout.prompts_per_step
    problems = [Problem(str(i), f"{i}?", "1") for i in range(needed)]
    check_enough_problems(problems, config)
    with pytest.raises(UsageError, match=f"{needed - 1} training problems") as caught:
        check_enough_problems(problems[1:], config)
    assert "rollout.prompts_per_step" in caught.value.remedy
