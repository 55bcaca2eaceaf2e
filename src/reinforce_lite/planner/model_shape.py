"""The shape of a model from its config alone: no weights are read and none are allocated.

The model is built on torch's meta device, where tensors have a shape and no memory, and its parameters are
counted there. Any family that transformers knows is thus counted exactly as it would be loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from reinforce_lite.config import AdapterConfig
from reinforce_lite.models.adapter import check_targets, find_targets, is_target, linear_size
from reinforce_lite.models.embedded import EMBEDDED_NAME, EMBEDDED_SHAPE
from reinforce_lite.models.families import language_model
from reinforce_lite.models.forward import can_share_prompt
from reinforce_lite.models.llama import supports_model
from reinforce_lite.models.llama_families import FAMILIES, Family
from reinforce_lite.models.loading import explain_load_errors, quiet_transformers
from reinforce_lite.utils.paths import local_or_hub_name


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What memory depends on. Sizes count numbers, not bytes."""

    tensor_sizes: tuple[int, ...]
    """Size of each parameter tensor; tied tensors count once."""
    linears: Mapping[str, tuple[int, int]]
    """(inputs, outputs) of each linear layer that can be adapted, by name."""
    layers: int
    layer_parameters: int
    """Numbers in all layers; the others are embedding, head and the last norm."""
    hidden_size: int
    query_heads: int
    kv_heads: int
    head_size: int
    intermediate_size: int
    """Width between the two halves of a layer's feed-forward part."""
    vocab_size: int
    qk_norm: bool
    """Queries and keys are normalised before attention (Qwen3, Gemma 3, OLMo 2)."""
    norms: int
    """Of a layer, without those of queries and keys; of a family that we do not know, Llama's two."""
    output_norms: int
    """Norms of what a layer adds to the residual stream, in our own forward pass (Gemma 3, OLMo 2)."""
    float32_gains: bool
    """Norms multiply by their gain in float32 (Gemma 3, OLMo 2)."""
    forward_pass: Literal["tree", "shared_prompt", "full_sequence"]
    """The ForwardPass of models/forward.py that trains it without activation checkpointing; "tree" is our
    own forward pass."""

    @property
    def parameters(self) -> int:
        """How many numbers the model has; tied tensors count once."""
        return sum(self.tensor_sizes)

    def adapter_sizes(self, adapter: AdapterConfig) -> list[int]:
        """Size of each matrix of an adapter. Raises UsageError for a target that the model does not have."""
        check_targets(self.linears, adapter.targets)
        adapted = [size for name, size in self.linears.items() if is_target(name, adapter.targets)]
        return [adapter.rank * side for size in adapted for side in size]

    @property
    def largest_tensor(self) -> int:
        """Size of the largest tensor: as a rule the embedding."""
        return max(self.tensor_sizes)


def read_shape(name: str, trust_remote_code: bool, max_sequence_tokens: int) -> ModelShape:
    """The shape of a model, by name, for sequences of up to `max_sequence_tokens`.

    Raises UsageError if the model does not exist, can't be trained, or would run its author's code without
    permission.
    """
    with quiet_transformers(), explain_load_errors(name, trust_remote_code):
        if name == EMBEDDED_NAME:
            config: Any = LlamaConfig(**EMBEDDED_SHAPE)
        else:
            folder = local_or_hub_name(name)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return shape_of(language_model(model, name), max_sequence_tokens)


def shape_of(model: Any, max_sequence_tokens: int) -> ModelShape:
    """The shape of a loaded model, on any device."""
    config = model.config
    ours = supports_model(model, max_sequence_tokens)
    family = FAMILIES.get(config.model_type, Family())  # of transformers' modules too
    return ModelShape(
        tensor_sizes=tuple(p.numel() for p in model.parameters()),
        linears={name: linear_size(m) for name, m in find_targets(model, ()).items()},
        layers=config.num_hidden_layers,
        layer_parameters=sum(p.numel() for p in _in_layers(model)),
        hidden_size=config.hidden_size,
        query_heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocab_size=config.vocab_size,
        qk_norm=any(name.endswith("self_attn.q_norm.weight") for name, _ in model.named_parameters()),
        norms=sum(map(bool, (*family.input_norms, *family.output_norms))),
        output_norms=sum(map(bool, family.output_norms)),
        float32_gains=family.float32_gains,
        forward_pass="tree" if ours else "shared_prompt" if can_share_prompt(model) else "full_sequence",
    )


def _in_layers(model: Any) -> set[torch.nn.Parameter]:
    layers = (m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))
    return {p for layer in layers for p in layer.parameters()}
