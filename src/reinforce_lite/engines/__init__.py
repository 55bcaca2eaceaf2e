"""Prompts to completions, by any of several engines behind one protocol (`base.Engine`)."""

import logging

from reinforce_lite.engines.base import Engine
from reinforce_lite.engines.hf import MAX_NUM_SEQS, HFEngine
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.engines.oom_retry import OOMRetryEngine
from reinforce_lite.engines.vllm import VLLMEngine
from reinforce_lite.models.llama import sliding_window
from reinforce_lite.models.llama_families import FAMILIES
from reinforce_lite.models.policy import Policy

logger = logging.getLogger(__name__)

COPYING_ENGINES = frozenset({"vllm"})
"""Those that sample from a copy of the policy's weights."""


def make_engine(
    name: str,
    policy: Policy,
    max_num_seqs: int = 256,
    prompts_per_step: int = 1,
    max_length: int = 2048,
    recorded_temperature: float = 1.0,
) -> Engine:
    """Build the engine `name` for a policy; `hf` where `native` does not know the model.

    At most `max_num_seqs` sequences are decoded concurrently; fewer after running out of memory. A step asks
    up to `prompts_per_step` questions together. Only vllm, which has a copy of the weights, needs to know how
    long a prompt with its completion can be, and at which temperature log-probabilities will be recorded.
    Raises UsageError where vllm can't run.
    """
    if name == "vllm":
        return VLLMEngine(policy, max_num_seqs, max_length, recorded_temperature)
    if name == "native" and policy.llama is not None:
        return OOMRetryEngine(NativeEngine(policy, max_num_seqs, prompts_per_step))
    if name == "native":
        config = policy.model.config
        window = sliding_window(config) if config.model_type in FAMILIES else None
        logger.warning(
            "the native engine does not support this %s model%s; sampling with the slower hf engine",
            config.model_type,
            f" with prompts and completions of more than {window} tokens together" if window else "",
        )
    return OOMRetryEngine(HFEngine(policy, min(max_num_seqs, MAX_NUM_SEQS)))
