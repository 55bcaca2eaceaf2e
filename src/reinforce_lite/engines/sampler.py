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
import torch.nn.functional as F
from torch import Tensor

from reinforce_lite.models import elementwise
from reinforce_lite.types import Sampling

CANDIDATES = 64
"""A nucleus is hardly ever wider."""
CANDIDATES_ON_CARD = 256
"""Of `sample_without_waiting`: there a wider nucleus costs more."""
BLOCK_OF_CDF = 512
"""Entries whose masses are summed when a distribution over the vocabulary is inverted on a card."""
BLOCK = 32
"""Entries that `top_values` reduces to their maximum in its first pass."""


def sample_tokens(
    logits: Tensor,
    sampling: Sampling,
    uniforms: Tensor,
    eos_token_ids: Sequence[int],
    forbid_eos: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw (R,) tokens from (R, V) float32 logits; also returns their (R,) log-probabilities, in nats.

    These are of the whole vocabulary at `sampling.recorded_temperature`: top-p does not enter.
    `uniforms` are (R,) in [0, 1). Rows where the boolean (R,) `forbid_eos` is true draw no EOS token, but
    their log-probabilities still count it. Temperature 0 takes the argmax.
    """
    peak = logits.amax(1, keepdim=True)
    shifted = logits - peak  # (R, V), at most 0
    at = sampling.recorded_temperature
    log_normaliser = _divided(peak, at).squeeze(1) + _divided(shifted, at).exp().sum(1).log()
    if forbid_eos is not None:
        for token in eos_token_ids:
            shifted[:, token].masked_fill_(forbid_eos, -torch.inf)
        shifted -= shifted.amax(1, keepdim=True)  # else all underflows where EOS was far ahead
    if sampling.temperature == 0:
        tokens = shifted.argmax(1)
    else:
        tokens = _sample_nucleus(shifted.div_(sampling.temperature), sampling.top_p, uniforms)
    return tokens, _divided(logits.gather(1, tokens[:, None]).squeeze(1), at) - log_normaliser


def _divided(x: Tensor, temperature: float) -> Tensor:
    """`x` itself at temperature 1: a quotient would be a copy."""
    return x if temperature == 1 else x / temperature


def sample_without_waiting(
    logits: Tensor,
    sampling: Sampling,
    uniforms: Tensor,
    eos_token_ids: Tensor,
    forbid_eos: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`sample_tokens` whose operations do not depend on values, so that the host need not know any.

    `eos_token_ids` are (E,) on the device. The third result, a boolean (R,), tells the rows whose nucleus is
    wider than the candidates, and which must be drawn by `sample_tokens`. Changes `logits`.
    """
    at = sampling.recorded_temperature
    if forbid_eos is not None:
        eos_logits = logits.index_select(1, eos_token_ids)  # (R, E)
        logits.index_copy_(1, eos_token_ids, eos_logits.masked_fill(forbid_eos[:, None], -torch.inf))
        forbidden = (
            _divided(eos_logits.float(), at).masked_fill_(~forbid_eos[:, None], -torch.inf).logsumexp(1)
        )
    greedy, nucleus = sampling.temperature == 0, sampling.top_p < 1
    if nucleus and not greedy:
        best, candidates = top_values(logits, CANDIDATES_ON_CARD)
    else:
        best, candidates = logits.max(1, keepdim=True)
    best = best.float()  # (R, N), descending
    peak = best[:, :1]
    exp_sums = elementwise.compile_for_card(_exp_sums) if logits.is_cuda else _exp_sums
    mass, scaled_mass = exp_sums(logits, peak, at, sampling.temperature or 1.0)  # (R,) both
    wide = torch.zeros_like(uniforms, dtype=torch.bool)
    if greedy:
        tokens = candidates[:, 0]
    elif nucleus:
        draw = elementwise.compile_for_card(_draw_candidate) if logits.is_cuda else _draw_candidate
        index, wide = draw(best, peak, scaled_mass, uniforms, sampling.temperature, sampling.top_p)
        tokens = candidates.gather(1, index[:, None]).squeeze(1)
    else:
        tokens = _invert_cdf_in_blocks(((logits - peak) / sampling.temperature).exp_(), uniforms)
    log_normaliser = _divided(peak, at).squeeze(1) + mass.log()
    if forbid_eos is not None:
        log_normaliser = torch.logaddexp(log_normaliser, forbidden)
    drawn = logits.gather(1, tokens[:, None]).squeeze(1).float()
    return tokens, _divided(drawn, at) - log_normaliser, wide


def _exp_sums(logits: Tensor, peak: Tensor, first: float, second: float) -> tuple[Tensor, Tensor]:
    """(R,) sums of exp(x / T) at two temperatures T, for the (R, V) logits x less the (R, 1) peaks."""
    shifted = logits - peak  # float32, as the peak is
    return (shifted / first).exp().sum(1), (shifted / second).exp().sum(1)


def _draw_candidate(
    best: Tensor, peak: Tensor, mass: Tensor, uniforms: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """(R,) the index of the drawn one of (R, N) candidates, and whether the nucleus is wider than these.

    `best` are the candidates' logits, descending, and `mass` sums exp((x - peak) / temperature) over the
    vocabulary.
    """
    p = ((best - peak).to(uniforms.dtype) / temperature).exp() / mass[:, None]
    nucleus = _mask_tail(p, top_p)
    cumulative = nucleus.cumsum(1)
    index = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(1)
    last = (nucleus > 0).sum(1) - 1  # rounding must not draw a token of mass 0
    return torch.minimum(index, last).clamp(min=0), p.sum(1) < top_p


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


def _invert_cdf_in_blocks(p: Tensor, uniforms: Tensor) -> Tensor:
    """`_invert_cdf` of (R, V) float32 masses: first the block of entries, then the entry in it."""
    rows = F.pad(p, (0, -p.shape[1] % BLOCK_OF_CDF)).view(len(p), -1, BLOCK_OF_CDF)
    masses = rows.sum(2, dtype=uniforms.dtype)  # (R, blocks)
    block = _invert_cdf(masses, uniforms)[:, None]  # (R, 1)
    cumulative = masses.cumsum(1)
    before = cumulative.gather(1, block) - masses.gather(1, block)
    rest = (uniforms[:, None] * cumulative[:, -1:] - before).clamp_(min=0.0) / masses.gather(1, block)
    entries = rows.gather(1, block[:, :, None].expand(-1, -1, BLOCK_OF_CDF)).squeeze(1).to(uniforms.dtype)
    tokens = block.squeeze(1) * BLOCK_OF_CDF + _invert_cdf(entries, rest.squeeze(1))
    return tokens.clamp(max=p.shape[1] - 1)  # even where all is NaN


def _invert_cdf(p: Tensor, uniforms: Tensor) -> Tensor:
    """(R,): where the cumulative sum of (R, N) masses passes the uniform share of their total."""
    cumulative = p.cumsum(1)
    target = uniforms[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    trailing_zeros = (p > 0).flip(1).to(torch.uint8).argmax(1)
    return torch.minimum(index, p.shape[1] - 1 - trailing_zeros)  # rounding must not draw a token of mass 0
