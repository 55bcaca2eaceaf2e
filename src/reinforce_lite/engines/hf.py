"""transformers' own `generate`: slow, plain, and the reference that other engines are tested against.

Shapes: B rows in flight (prompts x samples), P prompt tokens (padded left), V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from reinforce_lite.engines.base import cut_at_eos, ignore_progress, make_completion
from reinforce_lite.models.forward import can_share_prompt
from reinforce_lite.models.loading import quiet_transformers
from reinforce_lite.models.policy import Policy
from reinforce_lite.types import Completion, Prompt, Sampling

MAX_NUM_SEQS = 128  # in flight at once


class HFEngine:
    """Prompts in batches of up to `rows` answers through `model.generate`."""

    def __init__(self, policy: Policy, max_num_seqs: int = MAX_NUM_SEQS) -> None:
        self.policy = policy
        self.max_num_seqs = max_num_seqs

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seed: int,
        progress: Callable[[int], None] = ignore_progress,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. All batches draw from one stream that starts at `seed`."""
        at_once = max(1, self.max_num_seqs // sampling.samples)
        done: list[list[Completion]] = []
        cards = _cards(self.policy.device)
        with torch.random.fork_rng(cards, device_type=cards[0].type if cards else "cuda"):
            torch.manual_seed(seed)
            for start in range(0, len(prompts), at_once):
                done += self._answers(prompts[start : start + at_once], sampling, progress)
        return done

    def _answers(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Callable[[int], None]
    ) -> list[list[Completion]]:
        """All samples of these prompts; in parts when those of one prompt are more than may be in flight."""
        answers: list[list[Completion]] = [[] for _ in prompts]
        for start in range(0, sampling.samples, self.max_num_seqs):
            some = replace(sampling, samples=min(self.max_num_seqs, sampling.samples - start))
            for of_one, made in zip(answers, self._batch(prompts, some), strict=True):
                of_one += made
            progress(some.samples * len(prompts))
        return answers

    def _batch(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        ids, mask = _pad_left([p.token_ids for p in prompts], self.policy.device)  # (prompts, P)
        recorder = _Recorder(self.policy.eos_token_ids, ids.shape[1], sampling.min_new_tokens)
        with torch.inference_mode(), quiet_transformers(), _no_settings_of_its_own(self.policy.model):
            cache = _prefill(self.policy.model, ids, mask, sampling.samples)
            rows = self.policy.model.generate(
                ids.repeat_interleave(sampling.samples, dim=0),  # (B, P)
                attention_mask=mask.repeat_interleave(sampling.samples, dim=0),
                past_key_values=cache,
                generation_config=self._settings(sampling),
                logits_processor=LogitsProcessorList([recorder]),
            )[:, ids.shape[1] :]  # (B, new)
        logprobs = recorder.finish(rows).tolist()
        made = [self._completion(row, lp) for row, lp in zip(rows.tolist(), logprobs, strict=True)]
        g = sampling.samples
        return [made[i : i + g] for i in range(0, len(made), g)]

    def _settings(self, sampling: Sampling) -> Any:
        draws = sampling.temperature > 0
        warp = {"temperature": sampling.temperature, "top_p": sampling.top_p} if draws else {}
        ends = sorted(self.policy.eos_token_ids)
        return GenerationConfig(
            do_sample=draws,
            top_k=0,  # transformers' default is 50
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=ends[0],
            **warp,
        )

    def _completion(self, row: list[int], logprobs: list[float]) -> Completion:
        ids, truncated = cut_at_eos(row, self.policy.eos_token_ids)
        return make_completion(ids, truncated, logprobs, self.policy.decode)


class _Recorder(LogitsProcessor):  # type: ignore[misc]
    """Reads the untempered log-probability of each token drawn, and forbids an early end.

    It runs before temperature and top-p. The token drawn from one call's scores is known at the
    next call, so only one (B, V) tensor is kept.
    """

    def __init__(self, eos_token_ids: frozenset[int], prompt_length: int, min_new_tokens: int) -> None:
        self.ends = sorted(eos_token_ids)
        self.first_end = prompt_length + min_new_tokens
        self.scores: Tensor | None = None  # (B, V) of the step before
        self.logprobs: list[Tensor] = []  # one (B,) a step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.scores is not None:
            self._record(input_ids[:, -1])
        self.scores = scores
        if input_ids.shape[1] < self.first_end:
            scores = scores.clone()
            scores[:, self.ends] = -torch.inf
        return scores

    def _record(self, tokens: Tensor) -> None:
        assert self.scores is not None
        scores = self.scores.float()
        drawn = scores.gather(1, tokens[:, None]).squeeze(1)
        self.logprobs.append(drawn - scores.logsumexp(1))

    def finish(self, rows: Tensor) -> Tensor:
        """(B, new): the log-probability of every token of the finished rows."""
        self._record(rows[:, -1])
        return torch.stack(self.logprobs, dim=1)


def _prefill(model: Any, ids: Tensor, mask: Tensor, samples: int) -> DynamicCache | None:
    """Each prompt's keys and values but for its last token, made once for all its samples."""
    if samples == 1 or ids.shape[1] == 1 or not can_share_prompt(model):
        return None
    cache = DynamicCache(config=model.config)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    model.base_model(
        ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=places[:, :-1],
        past_key_values=cache,
        use_cache=True,
    )
    cache.batch_repeat_interleave(samples)
    return cache


@contextmanager
def _no_settings_of_its_own(model: Any) -> Iterator[None]:
    """Hide the generation config that a model came with.

    transformers fills every gap from it, and a hub model's own config (top_k 20, a repetition
    penalty) would make the sampler another policy than the one that is trained.
    """
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both (rows, longest). The mask alone says what is padding."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(r)) + list(r) for r in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask


def _cards(device: torch.device) -> list[torch.device]:
    return [device] if device.type in ("cuda", "xpu") else []


def cache_plan(
    prompts: int,
    sampling: Sampling,
    max_num_seqs: int,
    prompt_tokens: int,
    token_bytes: int,
    gpu_memory: int | None,
) -> tuple[int, int]:
    """See `native.cache_plan`; the cache takes what it needs, whatever the GPU's memory."""
    prompts_per_batch = max(1, min(max_num_seqs, MAX_NUM_SEQS) // sampling.samples)
    sequences = min(prompts, prompts_per_batch) * sampling.samples
    return sequences, token_bytes * sequences * (prompt_tokens + sampling.max_new_tokens)
