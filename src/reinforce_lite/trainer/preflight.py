"""What a run is refused for before its first step. Everything here raises UsageError."""

import shutil
from collections.abc import Sequence
from datetime import date
from itertools import zip_longest

from reinforce_lite.config import Config, config_differences, flat_values
from reinforce_lite.errors import UsageError
from reinforce_lite.models.tokenizer import decode_exactly
from reinforce_lite.planner.plan import MEMORY_KEYS
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.runlog.records import Record
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer import checkpoint
from reinforce_lite.types import Problem
from reinforce_lite.utils.secrets import mask, mask_all

REWARD_LIMITS = ("task.reward_seconds", "task.reward_memory", "task.reward_workers")
SAFE_TO_CHANGE = frozenset(
    {
        *("train.steps", "train.hours", "train.save_every", "log.trackers"),
        *("update.shard_optimizer", "update.shard_weights", *REWARD_LIMITS, *MEMORY_KEYS),
    }
)
"""Keys that may differ when a run is resumed. Those about memory are among them because a run that ran out of
memory may need smaller values."""


def freeze_date(config: Config, run: Run) -> Config:
    """The config with the date that chat templates print: unless given, of the day the run was started."""
    if config.prompt.date:
        return config
    day = run.config.prompt.date if run.started else date.today()
    return config.model_copy(update={"prompt": config.prompt.model_copy(update={"date": day})})


def check_same_config(config: Config, run: Run) -> None:
    """Refuse a config that differs from the one that the run was started with."""
    if not run.started:
        return
    changed = config_differences(run.config, config, SAFE_TO_CHANGE)
    if changed:
        raise UsageError(
            f"the config differs from the one that {run.path} was started with: {'; '.join(changed)}",
            f"leave these as they were (only {', '.join(sorted(SAFE_TO_CHANGE))} may change)",
        )


def check_no_secrets(config: Config) -> None:
    """Refuse a config that holds a secret of the environment: a run stores its config."""
    for dotted, value in flat_values(config).items():
        if (masked := mask_all(value)) != value:
            raise UsageError(
                f"{dotted} holds a secret of the environment, which config.toml would store: {masked!r:.200}",
                "remove it, or rename the environment variable if its value is no secret",
            )


def describe_prompt(prompt_builder: PromptBuilder, question: str) -> Record:
    """What first_prompt.json holds: `question`, and `text` and `token_ids` of its prompt.

    Secrets are masked. A prompt that holds one is stored without its ids, which would reveal it.
    """
    ids = prompt_builder(question).token_ids
    text = decode_exactly(prompt_builder.tokenizer, ids)
    shown = mask(text)
    return {"question": mask(question), "text": shown, "token_ids": list(ids) if shown == text else []}


def check_same_prompt(prompt_builder: PromptBuilder, run: Run, question: str) -> None:
    """Refuse a resume in which the run's first question gives another prompt than when it was started.

    The tokenizer, its chat template or transformers may have changed. `question` is the first one now.
    """
    before = run.first_prompt if run.started else {}
    if not before:
        return
    # The stored question is masked. If the first one now reads the same when masked, it is meant.
    now = describe_prompt(
        prompt_builder, question if mask(question) == before["question"] else before["question"]
    )
    if (now["text"], now["token_ids"]) != (before["text"], before["token_ids"]):
        key = "text" if now["text"] != before["text"] else "token_ids"
        at = _first_difference(before[key], now[key])
        old, new = (side[key][max(0, at - 20) : at + 40] for side in (before, now))
        raise UsageError(
            f"the prompts differ from those that {run.path} was started with, "
            f"from position {at} of the first prompt's {key} on: {old!r} -> {new!r}",
            "restore the model's tokenizer and chat template and the version of transformers, "
            "or start a new run",
        )


def _first_difference(a: Sequence[object], b: Sequence[object]) -> int:
    return next(i for i, (x, y) in enumerate(zip_longest(a, b)) if x != y)


def check_enough_problems(problems: Sequence[Problem], config: Config) -> None:
    """The questions of one step must differ."""
    if len(problems) < config.rollout.prompts_per_step:
        raise UsageError(
            f"the task has {len(problems)} training problems, fewer than one step needs "
            f"({config.rollout.prompts_per_step})",
            "add problems, or lower rollout.prompts_per_step",
        )


def check_disk_space(run: Run, state_bytes: int, model_bytes: int) -> None:
    """The run's checkpoints and models must fit on the disk, with one more of each while it is written."""
    needed = (checkpoint.KEPT + 1) * state_bytes + 3 * model_bytes
    free = shutil.disk_usage(run.path).free
    if free < needed:
        raise UsageError(
            f"the run needs up to {needed / 1e9:.1f} GB on the disk of {run.path.absolute()}, "
            f"where {free / 1e9:.1f} GB are free",
            "free some space, or start the run in another folder",
        )
