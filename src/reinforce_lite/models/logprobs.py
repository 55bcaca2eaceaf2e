"""Token log-probabilities of completions under the policy, with gradient, within a memory budget.

The vocabulary is the widest thing in a language model: one token's logits are half a megabyte and
more. So logits are made only where a completion token is predicted, and only for a chunk of tokens at
a time: each chunk goes back as far as the states it came from before the next one is made. That costs
nothing, since what each token counts is known beforehand.

Shapes: K completion tokens, C of a chunk, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from reinforce_lite.models.llama import Linear

CHUNK = {"cpu": 2**24, "cuda": 2**27}
"""Logits that are held at once."""
LEAST = 256
"""Tokens of a chunk even so: each adds to the head's whole gradient, which costs the same for one token."""


def tokens_per_chunk(device: str, vocabulary: int) -> int:
    """How many tokens' logits are held at once on a device of that type.

    >>> chunk_tokens("cpu", 49152), chunk_tokens("cpu", 151936)
    (341, 256)
    """
    return max(LEAST, CHUNK.get(device, CHUNK["cpu"]) // vocabulary)


def token_logprobs(model: Any, states: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """(K, H) states and the (K,) tokens they predict to (K,) log-probabilities, in nats, float32 or finer.

    log pi is that of softmax(logits / temperature) over the whole vocabulary.
    """
    logits = final_logits(model, states)
    found: Tensor = _LogProb.apply(logits, tokens, temperature)  # type: ignore[no-untyped-call]
    return found


def final_logits(model: Any, states: Tensor, linear: Linear | None = None) -> Tensor:
    """The model's head, with the soft cap or scale that a few families put behind it."""
    head = model.get_output_embeddings()
    logits: Tensor = linear(states, head.weight, head.bias) if linear else head(states)
    cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2
    if cap:
        logits = torch.tanh(logits / cap) * cap
    divisor = getattr(model.config, "logits_scaling", None)  # Granite
    factor = getattr(model.config, "logit_scale", None)  # Cohere
    if divisor or factor:
        logits = logits / (divisor or 1.0) * (factor or 1.0)
    return logits


class _LogProb(Function):
    """log softmax(logits / T)[token]; its gradient is (onehot - softmax) / T, made in place."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        fine = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)  # (C, V), our own
        fine.div_(temperature)
        normaliser = fine.logsumexp(1, keepdim=True)
        ctx.save_for_backward(fine.sub_(normaliser), tokens)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return fine.gather(1, tokens[:, None]).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        fine, tokens = ctx.saved_tensors
        scaled = grad[:, None] / ctx.temperature
        d = fine.exp_().mul_(-scaled)
        d.scatter_add_(1, tokens[:, None], scaled.to(d.dtype))
        return d.to(ctx.dtype), None, None
