"""Continuous batching over a static decoder: the host looks every LOOK_EVERY steps.

Then it ends the sequences that have reached a stop or repeat themselves, draws for the rows that need it, and
admits waiting sequences into idle rows. A sequence that ended between two looks is cut there, so a completion
does not depend on when the host looks.
"""

from collections import deque
from collections.abc import Sequence

from torch import Tensor

from reinforce_lite.engines.base import OnProgress
from reinforce_lite.engines.ending import Ending
from reinforce_lite.engines.sequence import SampledSequence, append_tokens
from reinforce_lite.engines.static_decoder import StaticDecoder

LOOK_EVERY = 8
"""Steps from one look to the next."""
PREFILL_TOKENS = 4096
"""Upper limit of the prompt tokens in one prefill of several prompts."""


class StaticScheduler:
    """The waiting and the running sequences of one `generate` call."""

    def __init__(
        self,
        decoder: StaticDecoder,
        groups: Sequence[Sequence[SampledSequence]],
        prefix_length: int,
        ending: Ending,
    ) -> None:
        """The prompts of all groups share their first `prefix_length` tokens."""
        self.decoder, self.ending = decoder, ending
        self.prompts = [group[0].prompt for group in groups]
        decoder.set_prefix(self.prompts[0][:prefix_length])
        self.waiting = deque((i, sequence) for i, group in enumerate(groups) for sequence in group)
        """Each with the index of its prompt."""
        self.rows: list[tuple[int, SampledSequence] | None] = [None] * decoder.size.rows
        """The same of each row; None: idle."""
        self.unfinished = [len(group) for group in groups]
        """How many sequences of each prompt have not ended."""
        self.slots: dict[int, int] = {}
        """Of each prompt in the cache."""
        self.free_slots = list(range(decoder.size.prompts))
        self.finished = 0

    def run(self, progress: OnProgress) -> None:
        """Decode all sequences to their ends."""
        self._admit()
        while lengths := [len(sequence.token_ids) for _, sequence in filter(None, self.rows)]:
            progress(self._count_finished())
            steps = min(LOOK_EVERY, self.decoder.size.width - min(lengths))
            self.decoder.run(steps)
            self._look(steps)
            self._admit()
        progress(self._count_finished())

    def _count_finished(self) -> int:
        finished, self.finished = self.finished, 0
        return finished

    def _admit(self) -> None:
        """Once an eighth of the rows is idle, prefill waiting sequences and draw their first tokens."""
        if self.rows.count(None) >= len(self.rows) // 8:
            while rows := self._fill_rows():
                sequences = [self._sequence(row) for row in rows]
                slots = [self.slots[prompt] for prompt, _ in sequences]
                self.decoder.assign(rows, slots, [len(sequence.prompt) for _, sequence in sequences])
                self.decoder.set_uniforms(rows, [sequence.uniforms for _, sequence in sequences])
                self._draw(rows, self.decoder.prompt_states[slots])

    def _fill_rows(self) -> list[int]:
        """Move waiting sequences to idle rows, as many as one prefill can serve, and prefill new prompts."""
        rows: list[int] = []
        new: list[int] = []
        tokens, start = 0, self.decoder.prefix_length
        for row in (row for row, sequence in enumerate(self.rows) if sequence is None):
            if not self.waiting:
                break
            prompt = self.waiting[0][0]
            if prompt not in self.slots:
                tokens += len(self.prompts[prompt]) - start
                if not self.free_slots or (new and tokens > PREFILL_TOKENS):
                    break
                self.slots[prompt] = self.free_slots.pop()
                new.append(prompt)
            self.rows[row] = self.waiting.popleft()
            rows.append(row)
        if new:
            self.decoder.prefill([self.slots[p] for p in new], [self.prompts[p][start:] for p in new])
        return rows

    def _draw(self, rows: Sequence[int], states: Tensor) -> None:
        """Sample the next tokens of rows from the whole vocabulary, given the states that predict them."""
        sequences = [self._sequence(row)[1] for row in rows]
        append_tokens(self.decoder.policy, sequences, states, self.decoder.sampling)
        tokens, lengths = zip(*((s.token_ids[-1], len(s.token_ids)) for s in sequences), strict=True)
        done = [self._end(row, length - 1) for row, length in zip(rows, lengths, strict=True)]
        self.decoder.set_tokens(rows, tokens, lengths, done)

    def _look(self, steps: int) -> None:
        """Take over what the last steps sampled."""
        flagged, ended = [], []
        for row, (is_wide, tokens, logprobs) in enumerate(self.decoder.read_new(steps)):
            if self.rows[row] is None:
                continue
            _, sequence = self._sequence(row)
            known = len(sequence.token_ids)
            sequence.token_ids += tokens
            sequence.logprobs += logprobs
            if self._end(row, known):
                ended.append(row)
            elif is_wide:
                flagged.append(row)
        if ended:
            self.decoder.finish(ended)  # the device knows of EOS tokens alone
        if flagged:
            self._draw(flagged, self.decoder.states[flagged])

    def _end(self, row: int, known: int) -> bool:
        """End a row's sequence if it is complete; its first `known` tokens do not end it."""
        prompt, sequence = self._sequence(row)
        length = self.ending.length(sequence.token_ids, known)
        if length is None and len(sequence.token_ids) < self.decoder.size.width:
            return False
        if length is not None:  # the steps until the host looked were for nothing
            del sequence.token_ids[length:], sequence.logprobs[length:]
        self.rows[row] = None
        self.finished += 1
        self.unfinished[prompt] -= 1
        if not self.unfinished[prompt]:
            self.free_slots.append(self.slots.pop(prompt))
        return True

    def _sequence(self, row: int) -> tuple[int, SampledSequence]:
        running = self.rows[row]
        assert running is not None
        return running
