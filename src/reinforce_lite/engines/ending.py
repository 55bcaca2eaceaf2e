"""Where a completion ends: at an end-of-sequence token, or where its text reaches a stop."""

from collections.abc import Callable, Sequence

from reinforce_lite.tasks.stopping import stop_end
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
        # A token with a part of a character is decoded as the replacement character.
        self._last_characters = {stop[-1] for stop in stops} | {"\ufffd"}
        self._enders: dict[int, bool] = {}
        """Whether a token can be the last of a stop, for those that were seen."""

    def is_final(self, token_ids: Sequence[int]) -> bool:
        """Whether the last of these tokens ends the completion; none before it does."""
        return self.length(token_ids, len(token_ids) - 1) is not None

    def length(self, token_ids: Sequence[int], start: int = 0) -> int | None:
        """The number of tokens up to the first, after `start` tokens, that ends the completion; None if none
        does."""
        for n, token in enumerate(token_ids[start:], start + 1):
            if token in self.eos_token_ids or (self._can_end_stop(token) and self._has_stop(token_ids[:n])):
                return n
        return None

    def cut(self, sampled: Sequence[int]) -> Sequence[int]:
        """The tokens up to the first that ends the completion; all of them if none does.

        For engines that fill finished sequences with padding, which may be the EOS token itself.
        """
        return sampled[: self.length(sampled)]

    def completion(self, token_ids: Sequence[int], logprobs: Sequence[float]) -> Completion:
        """The completion of these tokens; truncated if the last does not end it.

        There may be more `logprobs` than tokens.
        """
        ids = tuple(token_ids)
        text = self.decode(ids[:-1] if ids[-1] in self.eos_token_ids else ids)
        text = text[: stop_end(text, self.stops)]
        return Completion(ids, text, not self.is_final(ids), tuple(logprobs[: len(ids)]))

    def _can_end_stop(self, token: int) -> bool:
        if token not in self._enders:
            self._enders[token] = not self._last_characters.isdisjoint(self.decode([token]))
        return self._enders[token]

    def _has_stop(self, token_ids: Sequence[int]) -> bool:
        return stop_end(self.decode(token_ids), self.stops) is not None
