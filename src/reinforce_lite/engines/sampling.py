"""Drawing a token: temperature and top-p exactly, without sorting the vocabulary.

Almost always the nucleus lies within the LIKELY most likely tokens, whose probabilities are exact
since the normaliser is summed over the whole vocabulary. Where it does not, those rows are sorted.
The draw itself is the inverse of the cumulative distribution at one uniform number a token, so an
answer depends on its own numbers and on nothing else in the batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reinforce_lite.records import Sampling

LIKELY = 64


def draw(
    logits: Tensor, sampling: Sampling, uniforms: Tensor, ends: Sequence[int], early: Tensor
) -> tuple[Tensor, Tensor]:
    """(R,) tokens drawn from (R, V) float32 logits, and their log-probabilities at temperature 1.

    `uniforms` are (R,) in [0, 1). Rows that are `early` (R,) draw none of the `ends`, though
    log-probabilities count them. Temperature 0 takes the likeliest.
    """
    normaliser = logits.logsumexp(1)
    allowed = logits
    if early.any():
        allowed = logits.clone()
        allowed[early.nonzero(), torch.tensor(ends, device=logits.device)] = -torch.inf
    if sampling.temperature == 0:
        tokens = allowed.argmax(1)
    else:
        tokens = _nucleus(allowed / sampling.temperature, sampling.top_p, uniforms)
    return tokens, logits.gather(1, tokens[:, None]).squeeze(1) - normaliser


def precise(device: torch.device) -> torch.dtype:
    """The finest floating point that the device has."""
    return torch.float32 if device.type in ("mps", "xpu") else torch.float64


def _nucleus(scaled: Tensor, top_p: float, uniforms: Tensor) -> Tensor:
    """Draw from the smallest set of likeliest tokens whose mass reaches `top_p`, renormalised."""
    fine = precise(scaled.device)
    if top_p >= 1:
        return _invert(scaled.softmax(1).to(fine), uniforms)
    likely, tokens = scaled.topk(min(LIKELY, scaled.shape[1]), dim=1)  # (R, LIKELY), sorted
    p = (likely - scaled.logsumexp(1, keepdim=True)).to(fine).exp()
    picked = tokens.gather(1, _invert(_cut(p, top_p), uniforms)[:, None]).squeeze(1)
    wide = (p.sum(1) < top_p).nonzero().squeeze(1)  # rows whose nucleus reaches further
    if len(wide):
        p, tokens = scaled[wide].softmax(1).to(fine).sort(dim=1, descending=True)
        picked[wide] = tokens.gather(1, _invert(_cut(p, top_p), uniforms[wide])[:, None]).squeeze(1)
    return picked


def _cut(p: Tensor, top_p: float) -> Tensor:
    """Sorted probabilities with those outside the nucleus set to 0: a token stays if those before it
    do not reach `top_p` yet."""
    return p * ((p.cumsum(1) - p) < top_p)


def _invert(p: Tensor, uniforms: Tensor) -> Tensor:
    """The place at which the cumulative sum of (R, N) masses passes the uniform share of their total."""
    cumulative = p.cumsum(1)
    target = uniforms[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    last = (p > 0).long().cumsum(1).argmax(1)  # rounding must not carry a draw past the last with mass
    return torch.minimum(place, last)
