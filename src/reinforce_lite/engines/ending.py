"""Where a completion ends: at an end-of-sequence token, or where its text reaches a stop."""

from collections.abc import Callable, Sequence

from reinforce_lite.tasks.stopping import stop_index
from reinforce_lite.types import Completion


class Ending:
    """Tells after each token whether a completion is finished, and makes completions of finished ones.

    Stops are looked for in the decoded text, however the tokens divide it. The text is decoded only after a
    token that can be the last of a stop.
    """

    def __init__(
        self,
        eos_token_ids: frozenset[int],
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str] = (),
    ) -> None:
        self.eos_token_ids, self.decode, self.stops = eos_token_ids, decode, stops
        self._last_characters = {stop[-1] for stop in stops} | {"\ufffd"}  # which stands for a part of one
        self._may_end_stop: dict[int, bool] = {}

    def is_final(self, token_ids: Sequence[int]) -> bool:
        """Whether the last of these tokens ends the completion; none before it does."""
        return token_ids[-1] in self.eos_token_ids or self._stop_index(token_ids) is not None

    def completion(self, sampled: Sequence[int], logprobs: Sequence[float]) -> Completion:
        """The completion in sampled tokens, with the log-probabilities of its own; truncated if none ends it.

        What follows the final token is padding and is never inspected: it may be the EOS token itself.
        """
        final = next((i for i in range(len(sampled)) if self.is_final(sampled[: i + 1])), None)
        ids = tuple(sampled if final is None else sampled[: final + 1])
        text = self.decode(ids[:-1] if ids[-1] in self.eos_token_ids else ids)
        if final is not None:
            text = text[: stop_index(text, self.stops)]
        return Completion(ids, text, final is None, tuple(logprobs[: len(ids)]))

    def _stop_index(self, token_ids: Sequence[int]) -> int | None:
        if not self.stops or not self._can_end_stop(token_ids[-1]):
            return None
        return stop_index(self.decode(token_ids), self.stops)

    def _can_end_stop(self, token: int) -> bool:
        if token not in self._may_end_stop:
            self._may_end_stop[token] = not self._last_characters.isdisjoint(self.decode([token]))
        return self._may_end_stop[token]
