"""Which of the models that transformers loads can be trained: those that write text, with attention.

A model that also reads images (Gemma 3 of 4B and up) is reduced to its language model, which is trained and
saved as a model of text. What is left out on purpose: encoder-decoder models, and models whose every layer is
recurrent (Mamba, RWKV), whose state the engines can't share between the completions of a prompt.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from reinforce_lite.errors import UsageError


def language_model(model: Any, name: str) -> Any:
    """The causal language model of text in `model`: itself, or its language part, with the same weights.

    Raises UsageError for a family that can't be trained.
    """
    config = model.config.get_text_config()
    kind = "is an encoder-decoder" if config.is_encoder_decoder else "has no attention layers"
    has_layers = getattr(config, "num_hidden_layers", 1) > 0 and getattr(config, "num_attention_heads", None)
    if config.is_encoder_decoder or not has_layers:
        raise UsageError(
            f"{name} can't be trained: a {config.model_type} model {kind}",
            "choose a decoder with attention, e.g. a Llama, Qwen, Gemma or Mistral model",
        )
    return model if config is model.config else _extract_language_model(model, name)


def _extract_language_model(model: Any, name: str) -> Any:
    inner, config = getattr(model.base_model, "language_model", None), model.config.get_text_config()
    if inner is None:
        raise UsageError(
            f"{name} can't be trained: its language model can't be told from the rest",
            "choose a model of text alone",
        )
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    setattr(text, text.base_model_prefix, inner)
    text.set_output_embeddings(model.get_output_embeddings())
    text.generation_config = model.generation_config
    text.name_or_path = model.name_or_path
    return text
