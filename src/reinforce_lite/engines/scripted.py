"""A fake engine with scripted completions: tests every stage without weights.

engine = ScriptedEngine(tokenizer, eos_token_id=2, reply=lambda prompt, sample: "<answer>7</answer>")
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from reinforce_lite.engines.base import OnProgress, ignore_progress
from reinforce_lite.engines.ending import Ending
from reinforce_lite.models.tokenizer import decode_exactly
from reinforce_lite.types import Completion, Prompt, Sampling


class ScriptedEngine:
    """Completes each prompt with `reply(prompt text, sample index)`; every log-probability is 0.

    A reply longer than `max_new_tokens` is truncated, as a policy's would be. `calls` records the
    arguments of every `generate`.
    """

    def __init__(self, tokenizer: Any, eos_token_id: int, reply: Callable[[str, int], str]) -> None:
        self.tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.reply = reply
        self.max_num_seqs = 256
        self.calls: list[tuple[list[Prompt], Sampling, int]] = []

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seed: int, progress: OnProgress = ignore_progress
    ) -> list[list[Completion]]:
        """See `Engine.generate`."""
        self.calls.append((list(prompts), sampling, seed))
        progress(len(prompts) * sampling.samples)
        return [[self._complete(p, i, sampling) for i in range(sampling.samples)] for p in prompts]

    def _complete(self, prompt: Prompt, sample: int, sampling: Sampling) -> Completion:
        text = self.reply(self.tokenizer.decode(prompt.token_ids), sample)
        ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.eos_token_id]
        eos_token_ids, decode = frozenset({self.eos_token_id}), partial(decode_exactly, self.tokenizer)
        ending = Ending(eos_token_ids, decode, sampling.stop, sampling.repetition_detection)
        return ending.completion(ending.cut(ids[: sampling.max_new_tokens]), [0.0] * len(ids))
