"""What a resumed run is compared with: the prompt of its first question."""

from pathlib import Path

import pytest

from helpers.tiny import CHATML, make_tokenizer
from reinforce_lite.config import Config, PromptConfig, TaskConfig
from reinforce_lite.errors import UsageError
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer.preflight import check_same_config, check_same_prompt, describe_prompt

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
    check_same_prompt(builder(), run)


def test_another_text_is_refused_and_the_difference_shown(run: Run) -> None:
    """The two agree in "<|im_start|>user", of 16 characters."""
    with pytest.raises(UsageError, match=r"position 16 .*text") as caught:
        check_same_prompt(builder(CHATML.replace("'\n' + m", "': ' + m")), run)
    old, new = caught.value.cause.split(" -> ")
    assert old.endswith(repr("<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"[:56]))
    assert new == repr("<|im_start|>user: 2+2?<|im_end|>\n<|im_start|>assistant\n"[:56])
    assert "\n" not in caught.value.cause


def test_a_longer_prompt_that_begins_alike_is_refused(run: Run) -> None:
    with pytest.raises(UsageError, match="<think>"):
        check_same_prompt(builder(CHATML + "<think>"), run)


def test_the_same_text_in_other_tokens_is_refused(run: Run) -> None:
    """Token 0 is <|im_start|>, then come the letters."""
    prompt = run.first_prompt
    run.write_json("first_prompt", prompt | {"token_ids": [*prompt["token_ids"][:3], 300, 301]})
    with pytest.raises(UsageError, match=r"position 3 .*token_ids"):
        check_same_prompt(builder(), run)


def test_a_run_that_has_not_started_is_not_compared(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_json("first_prompt", describe_prompt(builder(), "another?"))
    check_same_prompt(builder(CHATML + "x"), run)


def test_a_damaged_file_is_named(run: Run) -> None:
    (run.path / "first_prompt.json").write_text("{")
    with pytest.raises(UsageError, match=r"first_prompt\.json is damaged"):
        check_same_prompt(builder(), run)
