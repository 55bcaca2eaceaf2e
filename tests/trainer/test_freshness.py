"""Engines with a copy of the weights that gets all of them, none, or some."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.paths import RECIPE
from helpers.tiny import ToyTask, make_model
from reinforce_lite import api
from reinforce_lite.engines.base import OnProgress, ignore_progress
from reinforce_lite.engines.hf import HFEngine
from reinforce_lite.errors import SamplerGapError
from reinforce_lite.models.policy import Policy, load_policy
from reinforce_lite.trainer.freshness import FreshnessCheck, fixed_prompts
from reinforce_lite.types import Completion, Prompt, Sampling

PROMPTS = fixed_prompts([Prompt((1, *range(40 + i, 60 + i))) for i in range(8)])


class CopyingEngine:
    """Continues each prompt by one token, sampled from a copy of the policy's model.

    The copy's head is not tied. `sync` copies the policy's weights into it, but for those that `forgets` names.
    Keys and values of the prompts' first 128 tokens stay those of the first call if `keeps_cache`.
    """

    def __init__(
        self,
        policy: Policy,
        forgets: Callable[[str], bool] = lambda name: False,
        keeps_cache: bool = False,
        noise: float = 0.0,
    ) -> None:
        self.policy, self.forgets, self.keeps_cache, self.noise = policy, forgets, keeps_cache, noise
        self.copy = make_model(tie_word_embeddings=False).to(policy.dtype)
        self.max_num_seqs = 256
        self.cache: dict[tuple[int, ...], Any] = {}
        self._sync(lambda name: False)

    @torch.no_grad()
    def _sync(self, forgets: Callable[[str], bool]) -> None:
        weights = dict(self.policy.model.named_parameters())
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        for name, copied in self.copy.named_parameters():
            if not forgets(name):
                copied.copy_(weights[name])

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: int, progress: OnProgress = ignore_progress
    ) -> list[list[Completion]]:
        self._sync(self.forgets)
        generator = torch.Generator().manual_seed(seed)
        groups = []
        for prompt in prompts:
            logits = self._logits(prompt.token_ids)
            p = (logits / sampling.temperature).softmax(-1)
            tokens = torch.multinomial(p, sampling.samples, replacement=True, generator=generator)
            logprobs = (logits / sampling.recorded_temperature).log_softmax(-1)[tokens]
            logprobs += self.noise * torch.randn(logprobs.shape, generator=generator)
            pairs = zip(tokens.tolist(), logprobs.tolist(), strict=True)
            groups.append([Completion((token,), "", True, (lp,)) for token, lp in pairs])
        return groups

    @torch.no_grad()
    def _logits(self, ids: tuple[int, ...]) -> Tensor:
        if not self.keeps_cache:
            logits: Tensor = self.copy(torch.tensor([ids])).logits
            return logits[0, -1].float()
        start = ids[:128]
        if start not in self.cache:
            self.cache[start] = self.copy(torch.tensor([start]), use_cache=True).past_key_values
        cache = self.cache[start]
        cached: Tensor = self.copy(torch.tensor([ids[128:]]), past_key_values=cache, use_cache=True).logits
        cache.crop(128)
        return cached[0, -1].float()


def update(policy: Policy, size: float) -> None:
    """As AdamW's first: every weight moves by the same amount."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator).sign() * size)


def test_an_engine_with_the_new_weights_passes(policy: Policy) -> None:
    check = FreshnessCheck(policy, CopyingEngine(policy), PROMPTS)
    update(policy, 1e-3)
    assert check.passed(1)


@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize(
    "fault",
    [
        {"forgets": lambda name: True},
        {"forgets": lambda name: name == "lm_head.weight"},  # tied to the embedding, and packed for products
        {"forgets": lambda name: "layers.1.mlp" in name},
        {"keeps_cache": True},
    ],
    ids=["all", "head", "a layer", "cache of prompts"],
)
def test_an_engine_without_all_new_weights_is_refused(
    policy: Policy, fault: dict[str, Any], temperature: float | None
) -> None:
    check = FreshnessCheck(policy, CopyingEngine(policy, **fault), PROMPTS, temperature)
    update(policy, 1e-2)
    with pytest.raises(SamplerGapError, match="after step 3 the engine does not sample from the new weights"):
        check.passed(3)


def test_an_update_below_rounding_decides_nothing_and_a_later_one_does(policy: Policy) -> None:
    """The engine's rounding is 0.03 nats, as in bfloat16."""
    check = FreshnessCheck(policy, CopyingEngine(policy, noise=0.03), PROMPTS)
    assert 0.02 < check.rounding < 0.04
    update(policy, 1e-5)
    assert not check.passed(1)
    update(policy, 1e-2)
    assert check.passed(2)


def test_an_engine_that_repeats_itself_exactly_is_stale_however_small_the_update(model_folder: Any) -> None:
    policy = load_policy(str(model_folder), "bfloat16", "cpu")
    check = FreshnessCheck(policy, CopyingEngine(policy, forgets=lambda name: True), PROMPTS)
    with torch.no_grad():
        next(policy.model.parameters()).mul_(1 + 2**-7)  # one unit in the last place of most
    with pytest.raises(SamplerGapError):
        check.passed(1)
    fresh = FreshnessCheck(policy, CopyingEngine(policy), PROMPTS)
    assert not fresh.passed(1)  # nothing has changed


def test_fixed_prompts_share_two_blocks_and_differ_at_the_end() -> None:
    run = [Prompt((1, *range(40 + i, 60 + i), 7, 7, 7)) for i in range(8)]  # equal ends
    prompts = fixed_prompts(run)
    assert len({p.token_ids for p in prompts}) == 8
    assert len({p.token_ids[:256] for p in prompts}) == 1
    assert max(len(p.token_ids) for p in prompts) < 320
    assert max(len(p.token_ids) for p in fixed_prompts(run, max_length=64)) < 64


@pytest.mark.parametrize("stale", [False, True])
def test_a_run_is_stopped_after_its_first_update(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, stale: bool
) -> None:
    """vLLM is replaced by transformers over a copy of the policy, and every step's gap is accepted."""

    class Copied(HFEngine):
        def __init__(self, policy: Policy, *_: Any) -> None:
            super().__init__(deepcopy(policy))
            self.source = policy

        def generate(self, *arguments: Any, **named: Any) -> list[list[Completion]]:
            if not stale:
                self.policy.model.load_state_dict(self.source.model.state_dict())
            return super().generate(*arguments, **named)

    monkeypatch.setattr("reinforce_lite.engines.VLLMEngine", Copied)
    monkeypatch.setattr("reinforce_lite.pipeline.check_vllm", lambda device_type: None)
    monkeypatch.setattr("reinforce_lite.trainer.trainer.check_sampler_gap", lambda *_: None)
    overrides = settings | {"rollout.engine": "vllm", "train.steps": 3}
    if not stale:
        assert len(api.train(str(RECIPE), overrides, task=ToyTask(), quiet=True).steps) == 3
        return
    with pytest.raises(SamplerGapError, match="after step 1 the engine does not sample"):
        api.train(str(RECIPE), overrides, task=ToyTask(), quiet=True)
