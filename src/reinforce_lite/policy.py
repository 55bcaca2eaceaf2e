"""Token log-probabilities of completions under the policy, with gradient.

Padding is never counted and never attended to, logits are made only where a completion token is
predicted, and nothing passes through the model twice: what a step's prompts begin with (the worked
examples) once for all groups, the rest of a prompt once for its group's completions. The gradients
of all that was made from them meet in their keys and values, which is exact.

Shapes: N completions of one prompt, S tokens of the prefix that a step's prompts share, P prompt
tokens, T the longest completion's tokens, K all completion tokens, H hidden size, V vocabulary.
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
    prefix: "Prefix | None" = None,
) -> list[Tensor]:
    """For each completion the (length,) float32 log pi(token | prompt, tokens before), in nats.

    log pi is that of softmax(logits / temperature) over the whole vocabulary. `share_prompt=False`
    passes plain whole sequences: the reference, and the way of models that keep no plain cache of
    keys and values. With a `prefix`, which the prompt must begin with, the caller runs
    `prefix.backward()` after the last backward pass of what was made from it.
    """
    device = next(model.parameters()).device
    tokens, valid = _pad_right(completions, device)  # (N, T) both
    if share_prompt:
        hidden = _shared(model, prompt, tokens, valid, prefix)  # (N, T, H)
    else:
        hidden = _whole(model, prompt, tokens, valid)
    logprobs = _token_logprobs(model, hidden[valid], tokens[valid], temperature)  # (K,)
    return list(torch.split(logprobs, [len(c) for c in completions]))


def can_share_prompt(model: Any) -> bool:
    """Whether every layer keeps plain keys and values of all tokens (no window, no recurrent state)."""
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(model.config, "sliding_window", None)


def common_prefix(rows: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all rows begin with, leaving each at least one of its own."""
    first, last = min(rows), max(rows)  # what these two share, all between them share
    shortest = min(map(len, rows)) - 1
    return next((i for i in range(shortest) if first[i] != last[i]), shortest)


class Prefix:
    """The beginning that a step's prompts share, computed once; gradients come back to it once.

    Its keys and values are cut off from the graph that made them. What is made from them leaves its
    gradient with the cut ends, added up in float32, and `backward` sends the sum through the prefix.
    """

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self.model = model
        self.length = len(ids)
        cache = DynamicCache(config=model.config)
        device = next(model.parameters()).device
        model.base_model(torch.tensor([list(ids)], device=device), past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == len(ids), "the prefix's keys and values were not kept"
        self.made = [t for layer in cache.layers for t in (layer.keys, layer.values)]  # (1, heads, S, D) each
        self.ends = [t.detach().requires_grad_() for t in self.made]
        self.sums = [
            torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in self.made
        ]
        for end, total in zip(self.ends, self.sums, strict=True):
            end.register_post_accumulate_grad_hook(lambda t, total=total: _collect(t, total))

    def cache(self) -> DynamicCache:
        """A cache that begins with the prefix."""
        cache = DynamicCache(config=self.model.config)
        for layer in range(len(self.ends) // 2):
            cache.update(self.ends[2 * layer], self.ends[2 * layer + 1], layer)
        return cache

    def backward(self) -> None:
        """Send what has been gathered through the prefix. Once, and last."""
        sums = [total.to(made.dtype) for total, made in zip(self.sums, self.made, strict=True)]
        torch.autograd.backward(self.made, sums)


def _collect(end: Tensor, total: Tensor) -> None:
    assert end.grad is not None
    total.add_(end.grad)
    end.grad = None


def _shared(
    model: Any, prompt: Sequence[int], tokens: Tensor, valid: Tensor, prefix: Prefix | None
) -> Tensor:
    """The hidden states that predict each completion token, the prompt computed once. (N, T, H)."""
    n, p = len(tokens), len(prompt)
    cache = prefix.cache() if prefix else DynamicCache(config=model.config)
    own = list(prompt)[cache.get_seq_length() :]
    ids = torch.tensor([own], device=tokens.device)  # (1, P - S)
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
