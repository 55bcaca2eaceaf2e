"""Where a completion ends: at an EOS token, where its text reaches a stop, or where it repeats itself.

Each of these depends on the tokens up to there alone. So a completion's probability remains the product of
its tokens' probabilities, and the policy gradient is that of the mean reward of completions that end so.
"""

from collections.abc import Callable, Sequence

from reinforce_lite.tasks.stopping import stop_end
from reinforce_lite.types import Completion

REPETITION_TOKENS = 64
"""A completion repeats itself if this many tokens at its end have a period of at most MAX_PERIOD."""
MAX_PERIOD = 16
"""In tokens. Repetitions are looked for every MAX_PERIOD tokens, so that it costs next to nothing."""


class Ending:
    """Tells after each token whether a completion is finished, and makes completions of finished ones.

    Stops are looked for in the decoded text, however the tokens divide it. The text is decoded only after a
    token that can be the last of a stop. Repetitions end a completion only with `repetition_detection`.
    """

    def __init__(
        self,
        eos_token_ids: frozenset[int],
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str] = (),
        repetition_detection: bool = False,
    ) -> None:
        self.eos_token_ids, self.decode, self.stops = eos_token_ids, decode, stops
        self.repetition_detection = repetition_detection
        # A token with a part of a character is decoded as the replacement character.
        self._last_characters = {stop[-1] for stop in stops} | {"\ufffd"}
        self._enders: dict[int, bool] = {}
        """Whether a token is an EOS token or can be the last of a stop, for those that were seen."""

    def is_final(self, token_ids: Sequence[int]) -> bool:
        """Whether the last of these tokens ends the completion; none before it does."""
        return self.length(token_ids, len(token_ids) - 1) is not None

    def length(self, token_ids: Sequence[int], start: int = 0) -> int | None:
        """The number of tokens up to the first, after `start` tokens, that ends the completion; None if none
        does."""
        for n, token in enumerate(token_ids[start:], start + 1):
            if self._can_complete(token) and self._is_complete(token_ids[:n]):
                return n
            if self.repetition_detection and n % MAX_PERIOD == 0 and is_repetitive(token_ids, n):
                return n
        return None

    def cut(self, sampled: Sequence[int]) -> Sequence[int]:
        """The tokens up to the first that ends the completion; all of them if none does.

        For engines that fill finished sequences with padding, which may be the EOS token itself.
        """
        return sampled[: self.length(sampled)]

    def completion(self, token_ids: Sequence[int], logprobs: Sequence[float]) -> Completion:
        """The completion of these tokens; truncated unless the last is an EOS token or ends a stop.

        There may be more `logprobs` than tokens.
        """
        ids = tuple(token_ids)
        text = self.decode(ids[:-1] if ids[-1] in self.eos_token_ids else ids)
        text = text[: stop_end(text, self.stops)]
        truncated = not (self._can_complete(ids[-1]) and self._is_complete(ids))
        repetitive = self.repetition_detection and truncated and is_repetitive(ids, len(ids))
        return Completion(ids, text, truncated, tuple(logprobs[: len(ids)]), repetitive)

    def _can_complete(self, token: int) -> bool:
        if token not in self._enders:
            is_last = not self._last_characters.isdisjoint(self.decode([token]))
            self._enders[token] = token in self.eos_token_ids or is_last
        return self._enders[token]

    def _is_complete(self, token_ids: Sequence[int]) -> bool:
        return token_ids[-1] in self.eos_token_ids or stop_end(self.decode(token_ids), self.stops) is not None


def is_repetitive(token_ids: Sequence[int], n: int) -> bool:
    """Whether the first n tokens end with a pattern of at most MAX_PERIOD tokens, again and again.

    Like vLLM's `repetition_detection` (https://github.com/vllm-project/vllm/pull/35451), which counts repeats
    of the pattern instead of tokens.
    """
    if n < REPETITION_TOKENS:
        return False
    tail = token_ids[n - REPETITION_TOKENS : n]
    for period in range(1, MAX_PERIOD + 1):
        if tail[0] == tail[period] and tail[period:] == tail[:-period]:
            return True
    return False
