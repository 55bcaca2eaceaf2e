"""TRL's GRPOTrainer on our model, prompts and problems: shared by step.py and experiments/against_trl.py."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common import saved

from reinforce_lite.pipeline import Pipeline
from reinforce_lite.types import Problem

MICRO_BATCH = 16  # sequences per device batch; 64 do not fit into the memory of most machines
BATCH = 64
Reward = Callable[[Sequence[Problem], Sequence[str], Sequence[Sequence[int]]], list[float]]
"""Takes the problem, the text and the token ids of each completion."""


@dataclass(frozen=True)
class Inputs:
    """What TRL reads; independent of the pipeline, whose memory can be freed before the trainer is built."""

    model: str
    """A Hugging Face folder."""
    prompts: Sequence[str]
    problems: Mapping[str, Problem]
    """By prompt."""


def make_inputs(pipeline: Pipeline, problems: Sequence[Problem], folder: str) -> Inputs:
    """Save the pipeline's model under `folder`, and its prompts as text."""
    decode = pipeline.policy.tokenizer.decode
    texts = [decode(pipeline.prompt_builder(p.question).token_ids) for p in problems]
    return Inputs(saved(pipeline, folder), texts, dict(zip(texts, problems, strict=True)))


def make_trainer(
    inputs: Inputs, reward: Reward, callback: Any, folder: str, bfloat16: bool, **settings: Any
) -> Any:
    """A GRPOTrainer; `settings` are fields of GRPOConfig.

    With `bfloat16` it has bfloat16 weights and autocast and no activation checkpointing, its fastest setting;
    otherwise its defaults: float32 weights with activation checkpointing.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    logging.disable(logging.WARNING)

    def reward_function(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        return reward([inputs.problems[p] for p in prompts], completions, columns["completion_ids"])

    config = GRPOConfig(
        output_dir=folder,
        bf16=bfloat16,
        gradient_checkpointing=not bfloat16,
        model_init_kwargs={"dtype": "bfloat16" if bfloat16 else "float32"},
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=BATCH // MICRO_BATCH,
        shuffle_dataset=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    return GRPOTrainer(
        inputs.model,
        reward_funcs=reward_function,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": inputs.prompts}),
        callbacks=[callback],
    )
