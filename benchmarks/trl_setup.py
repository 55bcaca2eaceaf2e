"""TRL's GRPOTrainer on our model, prompts and problems: shared by step.py and experiments/against_trl.py."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common import saved

from reinforce_lite.config import AdapterConfig
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
    inputs: Inputs,
    reward: Reward,
    callback: Any,
    folder: str,
    weights: str,
    autocast: bool,
    adapter: AdapterConfig | None = None,
    **settings: Any,
) -> Any:
    """A GRPOTrainer; `weights` is their dtype, and `settings` are fields of GRPOConfig.

    With `autocast` products are in bfloat16 and activations are not checkpointed, which is faster; float32
    weights without it are its defaults. An adapter is on all linear layers but the head, as ours.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    logging.disable(logging.WARNING)

    def reward_function(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        return reward([inputs.problems[p] for p in prompts], completions, columns["completion_ids"])

    config = GRPOConfig(
        output_dir=folder,
        bf16=autocast,
        gradient_checkpointing=not autocast,
        model_init_kwargs={"dtype": weights},
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=BATCH // MICRO_BATCH,
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
        peft_config=_lora(adapter) if adapter and adapter.rank else None,
    )


def _lora(adapter: AdapterConfig) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def save_model(trainer: Any, folder: str) -> None:
    """Save the trained model to a Hugging Face folder, an adapter merged in float32."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if hasattr(model, "merge_and_unload"):
        model = model.float().merge_and_unload()
    model.save_pretrained(folder)
