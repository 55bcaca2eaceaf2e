"""Drawing a token: temperature and top-p exactly, without sorting the vocabulary.

Almost always the nucleus lies within the LIKELY most likely tokens, whose probabilities are exact
since the normaliser is summed over the whole vocabulary. Where it does not, those rows are sorted.
The draw itself is the inverse of the cumulative distribution at one uniform number a token, so an
answer depends on its own numbers and on nothing else in the batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reinforce_lite.types import Sampling

LIKELY = 64  # a nucleus is hardly ever wider
BLOCK = 32


def sample_tokens(
    logits: Tensor, sampling: Sampling, uniforms: Tensor, ends: Sequence[int], early: Tensor
) -> tuple[Tensor, Tensor]:
    """(R,) tokens drawn from (R, V) float32 logits, and their log-probabilities at temperature 1.

    `uniforms` are (R,) in [0, 1). Rows that are `early` (R,) draw none of the `ends`, though
    log-probabilities count them. Temperature 0 takes the likeliest.
    """
    peak = logits.amax(1, keepdim=True)
    below = logits - peak  # (R, V)
    normaliser = peak.squeeze(1) + below.exp().sum(1).log()
    if early.any():
        below[early.nonzero(), torch.tensor(ends, device=logits.device)] = -torch.inf
        below -= below.amax(1, keepdim=True)  # or, where an end was far ahead, all the rest would vanish
    if sampling.temperature == 0:
        tokens = below.argmax(1)
    else:
        tokens = _nucleus(below.div_(sampling.temperature), sampling.top_p, uniforms)
    return tokens, logits.gather(1, tokens[:, None]).squeeze(1) - normaliser


def finest_float(device: torch.device) -> torch.dtype:
    """The finest floating point that the device has."""
    return torch.float32 if device.type in ("mps", "xpu") else torch.float64


def _nucleus(scaled: Tensor, top_p: float, uniforms: Tensor) -> Tensor:
    """Draw from the smallest set of likeliest tokens whose mass reaches `top_p`, renormalised.

    `scaled` are logits at the sampling temperature; the largest of each row is 0.
    """
    fine = finest_float(scaled.device)
    if top_p >= 1:
        return _invert(scaled.softmax(1).to(fine), uniforms)
    likely, tokens = largest(scaled, LIKELY)
    p = likely.to(fine).exp() / scaled.exp().sum(1, keepdim=True)
    picked = tokens.gather(1, _invert(_cut(p, top_p), uniforms)[:, None]).squeeze(1)
    wide = (p.sum(1) < top_p).nonzero().squeeze(1)  # rows whose nucleus reaches further
    if len(wide):
        p, tokens = scaled[wide].softmax(1).to(fine).sort(dim=1, descending=True)
        picked[wide] = tokens.gather(1, _invert(_cut(p, top_p), uniforms[wide])[:, None]).squeeze(1)
    return picked


def largest(rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The `n` largest of each of (R, V) rows, sorted, and where they stand; all when there are fewer.

    They lie in the `n` blocks whose largest entries are largest, and to find these is one fast pass:
    on a processor half the time of `topk`.
    """
    blocks = rows.shape[1] // BLOCK
    if blocks <= n:
        return rows.topk(min(n, rows.shape[1]), dim=1)
    whole = blocks * BLOCK  # block b holds the places b, b + blocks, b + 2 blocks, ...
    chosen = rows[:, :whole].view(-1, BLOCK, blocks).amax(1).topk(n, dim=1).indices  # (R, n)
    steps = torch.arange(0, whole, blocks, device=rows.device)
    rest = torch.arange(whole, rows.shape[1], device=rows.device).expand(len(rows), -1)
    places = torch.cat([(chosen[:, :, None] + steps).flatten(1), rest], dim=1)
    values, among = rows.gather(1, places).topk(n, dim=1)
    return values, places.gather(1, among)


def _cut(p: Tensor, top_p: float) -> Tensor:
    """Sorted probabilities with those outside the nucleus set to 0: a token stays if those before it
    do not reach `top_p` yet."""
    return p * ((p.cumsum(1) - p) < top_p)


def _invert(p: Tensor, uniforms: Tensor) -> Tensor:
    """The place at which the cumulative sum of (R, N) masses passes the uniform share of their total."""
    cumulative = p.cumsum(1)
    target = uniforms[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    behind = (p > 0).flip(1).to(torch.uint8).argmax(1)  # tokens without mass behind the last that has some
    return torch.minimum(place, p.shape[1] - 1 - behind)  # where rounding must not carry a draw
