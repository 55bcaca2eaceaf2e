"""Logits and log-probabilities of tokens from the hidden states that predict them.

The vocabulary is the widest dimension of a language model: with 151,936 tokens, one token's float32 logits
take 0.6 MB. So they are computed only where a completion token is predicted, and `tokens_per_chunk` at a time
(`learner/loss.py`).

Shapes: L completion tokens, C tokens of a chunk, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from reinforce_lite.models import elementwise
from reinforce_lite.models.projection import Linear

MAX_LOGITS = {"cpu": 2**24, "cuda": 2**27}
"""Logits of a chunk, by device type."""
CACHED_ROWS = 16
"""Tokens per thread whose logits are reduced at a time on a CPU: half the time of all at once."""
MIN_TOKENS = 256
"""Tokens of a chunk at least: each chunk adds to the head's whole gradient, whatever its size."""


def tokens_per_chunk(device: str, vocabulary: int) -> int:
    """How many tokens' logits are held at a time on a device type.

    >>> tokens_per_chunk("cpu", 49152), tokens_per_chunk("cpu", 151936)
    (341, 256)
    """
    return max(MIN_TOKENS, MAX_LOGITS.get(device, MAX_LOGITS["cpu"]) // vocabulary)


def token_logprobs(model: Any, states: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities, (L,) in nats, of (L,) tokens that (L, H) states predict, in at least float32.

    log softmax(logits / temperature)[token], over the whole vocabulary.
    """
    return token_logprobs_and_comparable(model, states, tokens, temperature)[0]


def token_logprobs_and_comparable(
    model: Any, states: Tensor, tokens: Tensor, temperature: float, recorded_temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`; also, without gradient, those at `recorded_temperature`, as engines record."""
    logits = final_logits(model, states)
    function = _CompiledTokenLogprobs if logits.is_cuda else _TokenLogprobs
    temperatures = temperature, recorded_temperature
    both: tuple[Tensor, Tensor] = function.apply(logits, tokens, *temperatures)  # type: ignore[no-untyped-call]
    return both


def final_logits(model: Any, states: Tensor, linear: Linear | None = None) -> Tensor:
    """(L, H) states to (L, V) logits: the model's head, and the soft cap or scale of some families.

    The families' names for these are listed here; for a family that is missing, the self-check before the
    first step finds that the log-probabilities are not those of its own forward pass.
    """
    head, config = model.get_output_embeddings(), model.config
    logits: Tensor = linear(states, head.weight, head.bias) if linear else head(states)
    cap = _first_setting(config, "final_logit_softcapping", "logits_soft_cap")  # Gemma; RecurrentGemma
    if cap:
        logits = torch.tanh(logits / cap) * cap
    divisor = _first_setting(config, "logits_scaling")  # Granite
    factor = _first_setting(config, "logit_scale", "lm_head_multiplier")  # Cohere; Falcon-H1
    if divisor or factor:
        logits = logits / (divisor or 1.0) * (factor or 1.0)
    return logits


def _first_setting(config: Any, *names: str) -> float | None:
    """The first of these settings that a model's config has."""
    return next((value for name in names if (value := getattr(config, name, None))), None)


class _TokenLogprobs(Function):
    """log softmax(logits / T)[token] and, without gradient, the same at `recorded_temperature`.

    The gradient of the first, (onehot - softmax) / T, is computed in place.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, recorded_temperature: float
    ) -> tuple[Tensor, Tensor]:
        scaled = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)  # (C, V)
        comparable = None
        if temperature != recorded_temperature:
            other = scaled if recorded_temperature == 1 else scaled / recorded_temperature
            comparable = _chosen(other, tokens) - _logsumexp(other).squeeze(1)
        scaled.div_(temperature)
        logprobs = scaled.sub_(_logsumexp(scaled))
        ctx.save_for_backward(logprobs, tokens)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        chosen = _chosen(logprobs, tokens)
        comparable = chosen.clone() if comparable is None else comparable
        ctx.mark_non_differentiable(comparable)
        return chosen, comparable

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        logprobs, tokens = ctx.saved_tensors
        scaled_grad = grad[:, None] / ctx.temperature
        d_logits = logprobs.exp_().mul_(-scaled_grad)
        d_logits.scatter_add_(1, tokens[:, None], scaled_grad.to(d_logits.dtype))
        return d_logits.to(ctx.dtype), None, None, None


class _CompiledTokenLogprobs(Function):
    """The same with fewer passes over memory: keeps the logits, and converts them to float32 on the way."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, recorded_temperature: float
    ) -> tuple[Tensor, Tensor]:
        logprobs, comparable, normalizer = elementwise.compile_for_card(_logprobs_and_normalizer)(
            logits, tokens, temperature, recorded_temperature
        )
        ctx.save_for_backward(logits, tokens, normalizer)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(comparable)
        return logprobs, comparable

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        logits, tokens, normalizer = ctx.saved_tensors
        scaled_grad = grad / ctx.temperature
        d_logits = elementwise.compile_for_card(_logits_gradient)(
            logits, tokens, normalizer, scaled_grad, ctx.temperature
        )
        return d_logits, None, None, None


def _logprobs_and_normalizer(
    logits: Tensor, tokens: Tensor, temperature: float, recorded_temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(C,) log-probabilities, those at `recorded_temperature`, and the normalizer of the first, for (C, V)
    logits and (C,) tokens.
    """
    precise = torch.promote_types(logits.dtype, torch.float32)
    normalizer = (logits.to(precise) / temperature).logsumexp(1)
    chosen = _chosen(logits, tokens).to(precise)
    comparable = chosen / recorded_temperature - (logits.to(precise) / recorded_temperature).logsumexp(1)
    return chosen / temperature - normalizer, comparable, normalizer


def _logsumexp(logits: Tensor) -> Tensor:
    """(C, 1), over the vocabulary; the same bits for any number of rows at a time."""
    rows = CACHED_ROWS * torch.get_num_threads() if logits.device.type == "cpu" else len(logits)
    return torch.cat([part.logsumexp(1, keepdim=True) for part in torch.split(logits, rows)])


def _chosen(values: Tensor, tokens: Tensor) -> Tensor:
    """(C,) of (C, V) values, those of the tokens."""
    return values.gather(1, tokens[:, None]).squeeze(1)


def _logits_gradient(
    logits: Tensor, tokens: Tensor, normalizer: Tensor, grad: Tensor, temperature: float
) -> Tensor:
    """(C, V): (onehot - softmax) grad, where (C,) grad is that of the log-probabilities / temperature."""
    p = (logits.to(normalizer.dtype) / temperature - normalizer[:, None]).exp()
    chosen = torch.arange(logits.shape[1], device=logits.device) == tokens[:, None]
    return ((chosen.to(p.dtype) - p) * grad[:, None]).to(logits.dtype)
