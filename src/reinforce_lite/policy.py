"""Token log-probabilities of completions under the policy, with gradient.

Padding is never counted and never attended to, logits are made only where a completion token is
predicted, and a group's prompt passes through the model once for all its completions: their
gradients meet in the prompt's keys and values, which is exact.

Shapes: N completions of one prompt, P prompt tokens, T the longest completion's tokens, K all
completion tokens, H hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


def completion_logprobs(
    model: Any,
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    temperature: float = 1.0,
    share_prompt: bool = True,
) -> list[Tensor]:
    """For each completion the (length,) float32 log pi(token | prompt, tokens before), in nats.

    log pi is that of softmax(logits / temperature) over the whole vocabulary. `share_prompt=False`
    passes plain whole sequences: the reference, and the way of models that keep no plain cache of
    keys and values.
    """
    device = next(model.parameters()).device
    tokens, valid = _pad_right(completions, device)  # (N, T) both
    hidden = (_shared if share_prompt else _whole)(model, prompt, tokens, valid)  # (N, T, H)
    logprobs = _token_logprobs(model, hidden[valid], tokens[valid], temperature)  # (K,)
    return list(torch.split(logprobs, [len(c) for c in completions]))


def can_share_prompt(model: Any) -> bool:
    """Whether every layer keeps plain keys and values of all tokens (no window, no recurrent state)."""
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(model.config, "sliding_window", None)


def _shared(model: Any, prompt: Sequence[int], tokens: Tensor, valid: Tensor) -> Tensor:
    """The hidden states that predict each completion token, the prompt computed once. (N, T, H)."""
    n, p = len(tokens), len(prompt)
    ids = torch.tensor([list(prompt)], device=tokens.device)  # (1, P)
    cache = DynamicCache(config=model.config)
    states: Tensor = model.base_model(ids, past_key_values=cache, use_cache=True).last_hidden_state
    first = states[:, -1:].expand(n, -1, -1)  # (N, 1, H)
    if tokens.shape[1] == 1:
        return first
    # Activation checkpointing makes transformers drop the cache with no more than a log line; the
    # completions would then be trained without their prompt.
    assert cache.get_seq_length() == p, "the prompt's keys and values were not kept"
    cache.batch_repeat_interleave(n)
    seen = torch.ones(n, p, dtype=torch.bool, device=tokens.device)
    places = torch.arange(p, p + tokens.shape[1] - 1, device=tokens.device).expand(n, -1)
    rest = model.base_model(
        tokens[:, :-1],
        attention_mask=torch.cat([seen, valid[:, :-1]], dim=1).long(),
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state  # (N, T-1, H)
    return torch.cat([first, rest], dim=1)


def _whole(model: Any, prompt: Sequence[int], tokens: Tensor, valid: Tensor) -> Tensor:
    """The same from whole sequences, prompt and completion. (N, T, H)."""
    n, p = len(tokens), len(prompt)
    ids = torch.tensor([list(prompt)], device=tokens.device).expand(n, -1)  # (N, P)
    mask = torch.cat([torch.ones_like(ids), valid.long()], dim=1)
    hidden = model.base_model(torch.cat([ids, tokens], dim=1), attention_mask=mask, use_cache=False)
    states: Tensor = hidden.last_hidden_state
    return states[:, p - 1 : -1]


def _token_logprobs(model: Any, hidden: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """(K, H) states and the (K,) tokens they predict to (K,) log-probabilities."""
    logits = final_logits(model, hidden)  # (K, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(1)


def final_logits(model: Any, hidden: Tensor) -> Tensor:
    """The model's head, with the soft cap or scale that a few families put behind it."""
    logits: Tensor = model.get_output_embeddings()(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2
    if cap:
        logits = torch.tanh(logits / cap) * cap
    divisor = getattr(model.config, "logits_scaling", None)  # Granite
    factor = getattr(model.config, "logit_scale", None)  # Cohere
    return logits / (divisor or 1.0) * (factor or 1.0)


def _pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and whether each is one, both (rows, longest); what stands in the padding is never read."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*r] + [0] * (longest - len(r)) for r in rows], device=device)
    lengths = torch.tensor([len(r) for r in rows], device=device)
    return tokens, torch.arange(longest, device=device) < lengths[:, None]
