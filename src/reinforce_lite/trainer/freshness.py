"""After an update: does an engine that has a copy of the weights sample from the new ones?

The mean gap of a step (`sampler_gap.py`) does not always tell: in bfloat16 an engine whose head was left as
it was differs by hardly more than rounding. So before the first update a few fixed prompts are continued by
one token, and after it again. What the engine records for its tokens must be near what the model's own
forward pass computes with the new weights, and not near what it computed with the old ones.

The prompts share their first PREFIX_TOKENS tokens, at least two blocks of any engine's prefix cache, so
that keys and values kept from the old weights show, too. A first update can be smaller than rounding. Then
the check is undecided, and is repeated after the next one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reinforce_lite.engines.base import Engine
from reinforce_lite.errors import SamplerGapError
from reinforce_lite.models.policy import Policy
from reinforce_lite.trainer.self_check import plain_logits
from reinforce_lite.types import Prompt, Sampling

PREFIX_TOKENS = 256
"""That all prompts share. A block has up to 128 tokens (vLLM on a CPU)."""
PROMPTS, OWN_TOKENS, SAMPLES = 8, 32, 16
"""How many prompts, their last tokens, which differ, and how often each is continued by one token."""
TEMPERATURE = 2.0
"""Of the continuations: unlikely tokens change most."""
ROUNDING = 1e-4
"""Root mean square of differences in nats that is certainly rounding; in 16 bits it is more, and measured."""
CLEARLY_MORE = 3.0
"""Times rounding."""


class FreshnessCheck:
    """Compares an engine with the weights before and after an update. Make it before the update."""

    def __init__(
        self, policy: Policy, engine: Engine, prompts: Sequence[Prompt], temperature: float | None = None
    ) -> None:
        """`prompts` are those of `fixed_prompts`. `temperature` is given where the engine records
        log-probabilities at no other (`Config.corrected_at`)."""
        self.policy, self.engine, self.prompts = policy, engine, prompts
        at, drawn_at = temperature or 1.0, temperature or TEMPERATURE
        self.sampling = Sampling(SAMPLES, 1, temperature=drawn_at, recorded_temperature=at)
        self.old = self._next_logprobs()  # (P, V)
        self.tokens, self.recorded = self._sample()  # (P, S) both; it also fills the engine's caches
        self.rounding = max(ROUNDING, _distance(self.recorded, self.old.gather(1, self.tokens)))

    def passed(self, step: int) -> bool:
        """Whether the engine is known to have the new weights; False if the update is too small to tell.

        Raises SamplerGapError where some weights are still old.
        """
        new = self._next_logprobs()
        tokens, recorded = self._sample()
        expected, former = (rows.gather(1, tokens) for rows in (new, self.old))
        to_new, to_old = _distance(recorded, expected), _distance(recorded, former)
        is_same = torch.equal(tokens, self.tokens) and torch.equal(recorded, self.recorded)
        is_stale = is_same and float((expected != former).double().mean()) > 0.5  # however little it changed
        limit = CLEARLY_MORE * self.rounding
        if is_stale or to_new > limit:
            raise SamplerGapError(
                f"after step {step} the engine does not sample from the new weights, or not from all of "
                f"them: on fixed prompts its log-probabilities are {to_new:.2g} nats from those of the new "
                f"weights and {to_old:.2g} from those of the old ones ({self.rounding:.2g} is rounding)",
                "please report it with the run's config.toml; in a new run, try --rollout.engine native",
            )
        return to_old > limit

    def _sample(self) -> tuple[Tensor, Tensor]:
        """(P, S) tokens and what the engine records for them."""
        groups = self.engine.generate(self.prompts, self.sampling, seed=0)
        tokens = torch.tensor([[c.token_ids[0] for c in group] for group in groups])
        return tokens, torch.tensor([[c.logprobs[0] for c in group] for group in groups]).double()

    @torch.inference_mode()
    def _next_logprobs(self) -> Tensor:
        """(P, V) log-probabilities of the next token, by the model's own forward pass, a prompt at a time."""
        model, at = self.policy.model, self.sampling.recorded_temperature
        rows = [(plain_logits(model, p.token_ids, 1) / at).log_softmax(-1).cpu() for p in self.prompts]
        return torch.cat(rows).double()


def fixed_prompts(prompts: Sequence[Prompt], max_length: int | None = None) -> list[Prompt]:
    """Longer prompts made of a run's own, which must fit into a context of `max_length` tokens."""
    prefix_tokens = max(0, min(PREFIX_TOKENS, (max_length or PREFIX_TOKENS * 2) - OWN_TOKENS - 1))
    first = prompts[0].token_ids
    prefix = (first * (prefix_tokens // len(first) + 1))[:prefix_tokens]
    # Of equal ends, such as those of a chat template, each leaves out one token more.
    ends = [p.token_ids[: len(p.token_ids) - i][-OWN_TOKENS:] for i, p in enumerate(prompts[:PROMPTS])]
    return [Prompt(prefix + end) for end in ends]


def _distance(a: Tensor, b: Tensor) -> float:
    """Root mean square of the differences; NaN where one is not finite."""
    return float((a - b).square().mean().sqrt())
