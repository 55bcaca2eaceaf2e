"""The REINFORCE loss and its backward pass, within a memory budget.

The vocabulary is the widest thing in a language model: one token's logits are half a megabyte and more. So
logits are made only where a completion token is predicted, and only for a chunk of tokens at a time: each
chunk's gradient goes back to its hidden states before the next chunk is made. That costs nothing, since every
token's weight is known beforehand.

Shapes: K completion tokens, C of a chunk, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from reinforce_lite.models.logprobs import token_logprobs, tokens_per_chunk


def reinforce_loss(logprob_sums: Tensor, w: Tensor) -> Tensor:
    """REINFORCE: - sum_i w_i sum_t log pi(token_t | before). Both are (N,); the result is a scalar.

    Its gradient is that of the expected reward (Williams 1992), less the baseline's variance.
    """
    return -(w.to(logprob_sums) * logprob_sums).sum()


def backward_in_chunks(
    model: Any, states: Tensor, tokens: Tensor, weights: Tensor, temperature: float
) -> float:
    """The loss of (K,) tokens that (K, H) states predict, and its gradient, left with the weights.

    `weights` (K,) are what each token's log-probability counts. Runs the whole backward pass.
    """
    assert len(states) == len(tokens), "an empty completion?"
    ends = states.detach()
    gradient = torch.empty_like(ends)
    size = tokens_per_chunk(states.device.type, model.config.vocab_size)
    loss = 0.0
    for start in range(0, len(tokens), size):
        part = slice(start, start + size)
        end = ends[part].requires_grad_()
        logprobs = token_logprobs(model, end, tokens[part], temperature)
        chunk = reinforce_loss(logprobs, weights[part])
        chunk.backward()  # type: ignore[no-untyped-call]
        assert end.grad is not None
        gradient[part] = end.grad
        loss += float(chunk.detach())
    states.backward(gradient)  # type: ignore[no-untyped-call]
    return loss
