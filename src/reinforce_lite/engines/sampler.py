"""Exact temperature and top-p (nucleus) sampling without sorting the vocabulary.

Nucleus sampling: Holtzman et al. 2020, https://arxiv.org/abs/1904.09751.

The nucleus almost always lies within the CANDIDATES likeliest tokens. Their probabilities are exact, since
the normaliser is summed over the whole vocabulary. Rows whose nucleus is wider are sorted in full. A token
is drawn by inverting the cumulative distribution at one uniform number, so a sequence depends on its own
numbers and on nothing else in the batch.

Shapes: R sequences, V vocabulary, N any number of candidates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reinforce_lite.types import Sampling

CANDIDATES = 64
"""A nucleus is hardly ever wider."""
BLOCK = 32
"""Entries that `top_values` reduces to their maximum in its first pass."""


def sample_tokens(
    logits: Tensor, sampling: Sampling, uniforms: Tensor, eos_token_ids: Sequence[int], forbid_eos: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw (R,) tokens from (R, V) float32 logits; also returns their log-probabilities at temperature 1.

    `uniforms` are (R,) in [0, 1). Rows where the boolean (R,) `forbid_eos` is true draw no EOS token, but
    their log-probabilities still count it. Temperature 0 takes the argmax.
    """
    peak = logits.amax(1, keepdim=True)
    shifted = logits - peak  # (R, V), at most 0
    log_normaliser = peak.squeeze(1) + shifted.exp().sum(1).log()
    if forbid_eos.any():
        shifted[forbid_eos.nonzero(), torch.tensor(eos_token_ids, device=logits.device)] = -torch.inf
        shifted -= shifted.amax(1, keepdim=True)  # else all underflows where EOS was far ahead
    if sampling.temperature == 0:
        tokens = shifted.argmax(1)
    else:
        tokens = _sample_nucleus(shifted.div_(sampling.temperature), sampling.top_p, uniforms)
    return tokens, logits.gather(1, tokens[:, None]).squeeze(1) - log_normaliser


def finest_float(device: torch.device) -> torch.dtype:
    """The most precise floating-point dtype that the device supports."""
    return torch.float32 if device.type in ("mps", "xpu") else torch.float64


def _sample_nucleus(scaled: Tensor, top_p: float, uniforms: Tensor) -> Tensor:
    """Draw from the smallest set of likeliest tokens whose mass reaches `top_p`, renormalised.

    `scaled` are (R, V) logits divided by the temperature, each row's maximum shifted to 0.
    """
    dtype = finest_float(scaled.device)
    if top_p >= 1:
        return _invert_cdf(scaled.softmax(1).to(dtype), uniforms)
    values, tokens = top_values(scaled, CANDIDATES)
    p = values.to(dtype).exp() / scaled.exp().sum(1, keepdim=True)
    drawn = tokens.gather(1, _invert_cdf(_mask_tail(p, top_p), uniforms)[:, None]).squeeze(1)
    wide = (p.sum(1) < top_p).nonzero().squeeze(1)  # rows whose nucleus exceeds the candidates
    if len(wide):
        p, tokens = scaled[wide].softmax(1).to(dtype).sort(dim=1, descending=True)
        drawn[wide] = tokens.gather(1, _invert_cdf(_mask_tail(p, top_p), uniforms[wide])[:, None]).squeeze(1)
    return drawn


def top_values(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest entries of each row of (R, V), descending, and their indices; all V when k > V.

    They lie in the k blocks with the largest maxima, and finding those is one fast pass: on a CPU this
    takes half the time of `topk`.
    """
    blocks = x.shape[1] // BLOCK
    if blocks <= k:
        return x.topk(min(k, x.shape[1]), dim=1)
    covered = blocks * BLOCK  # block b holds the indices b, b + blocks, b + 2 blocks, ...
    best = x[:, :covered].view(-1, BLOCK, blocks).amax(1).topk(k, dim=1).indices  # (R, k) blocks
    steps = torch.arange(0, covered, blocks, device=x.device)
    remainder = torch.arange(covered, x.shape[1], device=x.device).expand(len(x), -1)
    candidates = torch.cat([(best[:, :, None] + steps).flatten(1), remainder], dim=1)
    values, order = x.gather(1, candidates).topk(k, dim=1)
    return values, candidates.gather(1, order)


def _mask_tail(p: Tensor, top_p: float) -> Tensor:
    """Set descending (R, N) probabilities outside the nucleus to 0.

    A token stays if the mass before it is below `top_p`.
    """
    return p * ((p.cumsum(1) - p) < top_p)


def _invert_cdf(p: Tensor, uniforms: Tensor) -> Tensor:
    """(R,): where the cumulative sum of (R, N) masses passes the uniform share of their total."""
    cumulative = p.cumsum(1)
    target = uniforms[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    trailing_zeros = (p > 0).flip(1).to(torch.uint8).argmax(1)
    return torch.minimum(index, p.shape[1] - 1 - trailing_zeros)  # rounding must not draw a token of mass 0
