"""The REINFORCE loss and its backward pass, within a memory budget.

Logits are the widest tensor of a language model: V x 4 bytes per token, e.g. 0.6 MB for V = 151,936. They are
computed only for positions that predict a completion token, and for one chunk of tokens at a time: each
chunk's gradient goes back to its hidden states before the next chunk is computed. This needs no second pass,
since every token's loss weight is known beforehand.

Shapes: L completion tokens, C of a chunk, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from reinforce_lite.models.distributed import report_alive
from reinforce_lite.models.logprobs import token_logprobs_and_comparable, tokens_per_chunk

MAX_IMPORTANCE = 2.0
"""The most that a token's importance weight can be."""


def reinforce_loss(logprobs: Tensor, loss_weights: Tensor) -> Tensor:
    """REINFORCE: - sum_i w_i log pi_i, a scalar, for (N,) log-probabilities and constant (N,) loss weights.

    With advantages as loss weights its gradient estimates minus the gradient of the expected reward
    (Williams 1992, https://doi.org/10.1007/BF00992696).
    """
    return -(loss_weights.to(logprobs) * logprobs).sum()


def importance_weights(logprobs: Tensor, recorded: Tensor) -> Tensor:
    """min(pi / pi_engine, MAX_IMPORTANCE) of (N,) tokens, from the log-probabilities of both.

    An engine that rounds otherwise samples from a policy that is not quite the trained one. These weights
    correct the gradient's expectation for that, and their limit bounds its variance: truncated importance
    sampling (Ionides 2008, https://doi.org/10.1198/106186008X320456), token by token.
    """
    return (logprobs.detach() - recorded).exp().clamp(max=MAX_IMPORTANCE)


def backward_in_chunks(
    model: Any,
    states: Tensor,
    tokens: Tensor,
    loss_weights: Tensor,
    temperature: float,
    *,
    recorded: Tensor | None = None,
    recorded_temperature: float = 1.0,
) -> tuple[float, Tensor]:
    """Compute the loss of (L,) tokens predicted by (L, H) states, and run the whole backward pass.

    `loss_weights` (L,) are the factors of the tokens' log-probabilities. With the (L,) log-probabilities that
    the engine `recorded`, each is multiplied by its importance weight. Gradients accumulate in the
    parameters. Returns the loss, and the tokens' (L,) log-probabilities at `recorded_temperature`, on the
    device.
    """
    assert len(states) == len(tokens), "states and tokens differ in length"
    detached = states.detach()
    gradient = torch.empty_like(detached)
    loss_weights = loss_weights.to(states.device, torch.promote_types(states.dtype, torch.float32))
    size = tokens_per_chunk(states.device.type, model.config.vocab_size)
    losses: list[Tensor] = []
    seen: list[Tensor] = []
    for start in range(0, len(tokens), size):
        chunk = slice(start, start + size)
        leaf = detached[chunk].requires_grad_()  # (C, H)
        logprobs, comparable = token_logprobs_and_comparable(
            model, leaf, tokens[chunk], temperature, recorded_temperature
        )
        chunk_weights = loss_weights[chunk]
        if recorded is not None:
            chunk_weights = chunk_weights * importance_weights(comparable, recorded[chunk].to(comparable))
        chunk_loss = reinforce_loss(logprobs, chunk_weights)
        chunk_loss.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        gradient[chunk] = leaf.grad
        losses.append(chunk_loss.detach())
        report_alive()
        seen.append(comparable)
    states.backward(gradient)  # type: ignore[no-untyped-call]
    loss = float(sum(torch.stack(losses).tolist()))  # read at the end: each read waits for the GPU
    return loss, torch.cat(seen)
