"""How the families that `llama.py` computes differ from Llama, as one record for each.

What can be read from a model's own modules is not repeated here: biases, fused projections, the size of
heads, the scale of attention, norms of queries and keys, and an embedding that scales itself (Gemma).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NormNames = tuple[str, str]
"""A layer's norms at its attention and at its feed-forward part; "" where it has none."""


@dataclass(frozen=True, slots=True)
class Activation:
    """What gates a feed-forward part."""

    name: str
    """As configs spell it."""
    forward: Callable[[Tensor], Tensor]
    backward: Callable[..., Tensor]
    """Called as backward(grad, x, grad_input=out)."""


SILU = Activation("silu", F.silu, torch.ops.aten.silu_backward)
GELU_TANH = Activation(
    "gelu_pytorch_tanh",
    partial(F.gelu, approximate="tanh"),
    partial(torch.ops.aten.gelu_backward, approximate="tanh"),
)


@dataclass(frozen=True, slots=True)
class Family:
    """What a family does; the defaults are Llama's. A callable takes the model's config."""

    input_norms: NormNames = ("input_layernorm", "post_attention_layernorm")
    """Of what enters attention and the feed-forward part."""
    output_norms: NormNames = ("", "")
    """Of what they add to the residual stream."""
    gain_offset: float = 0.0
    """Norms multiply by their weight plus this."""
    float32_gains: bool = False
    """Whether that product is in float32 and then rounded; Llama's rounds before it."""
    activation: Activation = SILU
    rotary: Callable[[Any], Sequence[str | None]] = lambda c: [""] * c.num_hidden_layers
    """By layer, the kind of rotary embedding that the model's `rotary_emb` is asked for; "" where it has a
    single one, None where the layer's queries and keys are not rotated."""
    embedding_multiplier: Callable[[Any], float] = lambda c: 1.0
    residual_multiplier: Callable[[Any], float] = lambda c: 1.0
    """Of what attention and the feed-forward part add to the residual stream."""


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "phi3": Family(),
    "smollm3": Family(rotary=lambda c: ["" if rotates else None for rotates in c.no_rope_layers]),
    "granite": Family(
        embedding_multiplier=attrgetter("embedding_multiplier"),
        residual_multiplier=attrgetter("residual_multiplier"),
    ),
    "olmo2": Family(
        input_norms=("", ""),
        output_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        float32_gains=True,
    ),
    "gemma3_text": Family(
        input_norms=("input_layernorm", "pre_feedforward_layernorm"),
        output_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        gain_offset=1.0,
        float32_gains=True,
        activation=GELU_TANH,
        rotary=attrgetter("layer_types"),
    ),
}
"""By `model_type` of the config."""
