"""A model's shape from its config alone: no weight is read, and none is made.

The model is built on torch's meta device, where tensors have shapes and no memory, and its parameters
are counted there; so any family that transformers knows is counted as it would be loaded.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from reinforce_lite.models.embedded import EMBEDDED_NAME, EMBEDDED_SHAPE
from reinforce_lite.models.forward import can_share_prompt
from reinforce_lite.models.llama import supports_model
from reinforce_lite.models.loading import explain_load_errors, quiet_transformers


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What memory depends on; sizes are in numbers, not in bytes."""

    sizes: tuple[int, ...]
    """Numbers of each parameter tensor; tied ones once."""
    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_size: int
    inner: int
    """Between the two halves of a layer's feed-forward part (I in llama.py)."""
    vocab: int
    normed_heads: bool
    """Queries and keys pass a norm of their own (Qwen3)."""
    passes: Literal["tree", "shared", "whole"]
    """How answers go through it with gradient (passes.py); "tree" is our own forward pass."""

    @property
    def parameters(self) -> int:
        return sum(self.sizes)

    @property
    def largest(self) -> int:
        """Numbers of the largest tensor: as a rule the embedding."""
        return max(self.sizes)


def read_shape(name: str, trust_remote_code: bool, longest: int) -> ModelShape:
    """The shape of a model that is to see sequences of up to `longest` tokens.

    Raises UsageError when there is no such model, or it would run code of its author's.
    """
    with quiet_transformers(), explain_load_errors(name):
        if name == EMBEDDED_NAME:
            found: Any = LlamaConfig(**EMBEDDED_SHAPE)
        else:
            found = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(found, trust_remote_code=trust_remote_code)
    return shape_of(model, longest)


def shape_of(model: Any, longest: int) -> ModelShape:
    """The shape of a model that is there, on any device."""
    c = model.config.get_text_config()
    return ModelShape(
        sizes=tuple(p.numel() for p in model.parameters()),
        layers=c.num_hidden_layers,
        hidden=c.hidden_size,
        query_heads=c.num_attention_heads,
        kv_heads=getattr(c, "num_key_value_heads", None) or c.num_attention_heads,
        head_size=getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        inner=getattr(c, "intermediate_size", None) or 4 * c.hidden_size,
        vocab=c.vocab_size,
        normed_heads=c.model_type == "qwen3",
        passes="tree" if supports_model(model, longest) else "shared" if can_share_prompt(model) else "whole",
    )
