"""Prompts to completions, by any of several engines behind one protocol (`base.Engine`)."""

import logging

from reinforce_lite.engines.base import Engine
from reinforce_lite.models.policy import Policy

logger = logging.getLogger(__name__)


def make_engine(name: str, policy: Policy, max_num_seqs: int = 256) -> Engine:
    """Build the engine `name` over the policy's own weights; `hf` where `native` does not know the model.

    At most `max_num_seqs` sequences are decoded concurrently; fewer after running out of memory.
    """
    from reinforce_lite.engines import hf, native
    from reinforce_lite.engines.oom_retry import OOMRetryEngine

    if name == "native" and policy.llama is not None:
        return OOMRetryEngine(native.NativeEngine(policy, max_num_seqs))
    if name == "native":
        logger.warning(
            "the native engine does not support this %s model; sampling with the slower hf engine",
            policy.model.config.model_type,
        )
    return OOMRetryEngine(hf.HFEngine(policy, min(max_num_seqs, hf.MAX_NUM_SEQS)))
