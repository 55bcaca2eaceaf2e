"""Sampling by transformers' own `generate`: slow, plain, and the reference for the other engines.

Shapes: B sequences in a batch (prompts x samples), P prompt tokens (padded left), V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from reinforce_lite.engines.base import OnProgress, ignore_progress
from reinforce_lite.engines.ending import Ending
from reinforce_lite.models.forward import can_share_prompt
from reinforce_lite.models.loading import quiet_transformers
from reinforce_lite.models.policy import Policy
from reinforce_lite.types import Completion, Prompt, Sampling
from reinforce_lite.utils.rng import isolated_rng

MAX_NUM_SEQS = 128
"""Upper limit of sequences in a batch."""


class HFEngine:
    """Batches of up to `max_num_seqs` sequences through `model.generate`."""

    def __init__(self, policy: Policy, max_num_seqs: int = MAX_NUM_SEQS) -> None:
        self.policy = policy
        self.max_num_seqs = max_num_seqs

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: int, progress: OnProgress = ignore_progress
    ) -> list[list[Completion]]:
        """See `Engine.generate`. All batches draw from one random stream that starts at `seed`.

        A batch has all samples of several prompts, or some of the samples of one.
        """
        prompts_per_batch = max(1, self.max_num_seqs // sampling.samples)
        completions: list[list[Completion]] = [[] for _ in prompts]
        with isolated_rng(self.policy.device, seed):
            for first in range(0, len(prompts), prompts_per_batch):
                for done in range(0, sampling.samples, self.max_num_seqs):
                    part = replace(sampling, samples=min(self.max_num_seqs, sampling.samples - done))
                    batch = self._generate_batch(prompts[first : first + prompts_per_batch], part)
                    for i, completion in enumerate(batch):
                        completions[first + i // part.samples].append(completion)
                    progress(len(batch))
        return completions

    def _generate_batch(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """All samples of the first prompt, then those of the next."""
        policy = self.policy
        ids, mask = _pad_left([p.token_ids for p in prompts], policy.device)  # (prompts, P)
        ending = Ending(policy.eos_token_ids, policy.decode, sampling.stop, sampling.repetition_detection)
        eos_token_ids = torch.tensor(sorted(policy.eos_token_ids), device=ids.device)
        recorder = _LogprobRecorder(eos_token_ids, ids.shape[1], sampling)
        with torch.inference_mode(), quiet_transformers(), _default_generation_config(policy.model):
            new_ids = policy.model.generate(
                ids.repeat_interleave(sampling.samples, dim=0),  # (B, P)
                attention_mask=mask.repeat_interleave(sampling.samples, dim=0),
                past_key_values=_prefill(policy.model, ids, mask, sampling.samples),
                generation_config=_generation_config(sampling, sorted(policy.eos_token_ids)),
                logits_processor=LogitsProcessorList([recorder]),
                stopping_criteria=StoppingCriteriaList([_EndingCriteria(ending, ids.shape[1])]),
            )[:, ids.shape[1] :]  # (B, new)
        rows = zip(new_ids.tolist(), recorder.finish(new_ids).tolist(), strict=True)
        return [ending.completion(ending.cut(row), logprobs) for row, logprobs in rows]


class _EndingCriteria(StoppingCriteria):  # type: ignore[misc]
    """Ends a sequence as `Ending` says; `generate` then fills it with padding."""

    def __init__(self, ending: Ending, prompt_length: int) -> None:
        self.ending, self.prompt_length = ending, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        rows = input_ids[:, self.prompt_length :].tolist()
        return torch.tensor([self.ending.is_final(row) for row in rows], device=input_ids.device)


def _generation_config(sampling: Sampling, eos_token_ids: list[int]) -> Any:
    do_sample = sampling.temperature > 0
    warpers = {"temperature": sampling.temperature, "top_p": sampling.top_p} if do_sample else {}
    return GenerationConfig(
        do_sample=do_sample,
        top_k=0,  # transformers' default is 50
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=eos_token_ids,
        pad_token_id=eos_token_ids[0],
        **warpers,
    )


class _LogprobRecorder(LogitsProcessor):  # type: ignore[misc]
    """Records each drawn token's log-probability, and forbids EOS before `min_new_tokens`.

    It runs before the temperature and top-p warpers. The token drawn from one call's scores is known only
    at the next call, so one (B, V) tensor is kept.
    """

    def __init__(self, eos_token_ids: Tensor, prompt_length: int, sampling: Sampling) -> None:
        self.eos_token_ids = eos_token_ids  # on the scores' device
        self.min_length = prompt_length + sampling.min_new_tokens
        self.temperature = sampling.recorded_temperature
        self.scores: Tensor | None = None  # (B, V) of the step before
        self.logprobs: list[Tensor] = []  # one (B,) per step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.scores is not None:
            self._record(input_ids[:, -1])
        self.scores = scores
        if input_ids.shape[1] < self.min_length:
            scores = scores.index_fill(1, self.eos_token_ids, -torch.inf)
        # With NaN from a broken model `generate` would raise an error, which on a GPU ends the process. The
        # log-probabilities are recorded unchanged.
        return scores.nan_to_num(nan=0.0, posinf=1e30, neginf=-torch.inf)

    def _record(self, tokens: Tensor) -> None:
        assert self.scores is not None
        scores = self.scores.float()
        if self.temperature != 1:
            scores = scores / self.temperature
        drawn = scores.gather(1, tokens[:, None]).squeeze(1)
        self.logprobs.append(drawn - scores.logsumexp(1))

    def finish(self, new_ids: Tensor) -> Tensor:
        """Log-probabilities of all (B, new) generated tokens, float32; padding after EOS included."""
        self._record(new_ids[:, -1])
        return torch.stack(self.logprobs, dim=1)


def _prefill(model: Any, ids: Tensor, mask: Tensor, samples: int) -> DynamicCache | None:
    """Keys and values of all prompt tokens but the last, computed once for all samples of a prompt."""
    if samples == 1 or ids.shape[1] == 1 or not can_share_prompt(model):
        return None
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model.base_model(
        ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=positions[:, :-1],
        past_key_values=cache,
        use_cache=True,
    )
    cache.batch_repeat_interleave(samples)
    return cache


@contextmanager
def _default_generation_config(model: Any) -> Iterator[None]:
    """Replace the model's generation config by transformers' defaults for one block.

    transformers fills every gap from the model's own config, and a hub model's (top_k 20, a repetition
    penalty) would make the sampled policy differ from the trained one.
    """
    original, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = original


def _pad_left(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both (sequences, longest). Padding has id 0; only the mask identifies it."""
    ids = [torch.tensor(s) for s in sequences]
    mask = pad_sequence([torch.ones_like(i) for i in ids], batch_first=True, padding_side="left")
    return pad_sequence(ids, batch_first=True, padding_side="left").to(device), mask.to(device)


def batch_size(prompts: int, samples: int, max_num_seqs: int) -> int:
    """Sequences in a batch. The cache takes what they need, whatever the GPU's memory."""
    most = min(max_num_seqs, MAX_NUM_SEQS)
    return min(prompts, max(1, most // samples)) * min(samples, most)
