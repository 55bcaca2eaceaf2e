"""Where completions end: EOS tokens, stops and repetitions, with a vocabulary spelled out here."""

import random
from collections.abc import Sequence

import pytest

from reinforce_lite.engines.ending import Ending, is_repetitive
from reinforce_lite.tasks.stopping import HASH_LINE
from reinforce_lite.types import Completion

WORDS = ["<eos>", "<end>", "7", "</", "answer", ">", "> or", "\n", "####", " ", "a>b"]
"""The text of each token id."""
EOS = frozenset({0, 1})
CLOSE = "</answer>"


def decode(token_ids: Sequence[int]) -> str:
    return "".join(WORDS[i] for i in token_ids)


def complete(sampled: list[int], *stops: str) -> Completion:
    ending = Ending(EOS, decode, stops)
    return ending.completion(ending.cut(sampled), [-1.0 - i for i in range(len(sampled))])


@pytest.mark.case(15)
@pytest.mark.parametrize(
    ("sampled", "kept", "text", "truncated"),
    [
        ([2, 2, 0, 0, 0], (2, 2, 0), "77", False),
        ([1, 0], (1,), "", False),
        ([2, 2], (2, 2), "77", True),
    ],
)
def test_a_completion_ends_with_the_first_eos(
    sampled: list[int], kept: tuple[int, ...], text: str, truncated: bool
) -> None:
    logprobs = tuple(-1.0 - i for i in range(len(kept)))
    assert complete(sampled) == Completion(kept, text, truncated, logprobs)


@pytest.mark.parametrize(
    ("sampled", "kept", "text"),
    [
        ([2, 3, 4, 5, 2, 2, 0], (2, 3, 4, 5), "7</answer>"),  # what follows is padding
        ([2, 3, 4, 6, 0], (2, 3, 4, 6), "7</answer>"),  # the stop ends within the last token
        ([10, 5, 3, 4, 5, 0], (10, 5, 3, 4, 5), "a>b></answer>"),  # > alone ends nothing
        ([3, 4, 5], (3, 4, 5), "</answer>"),  # at the limit, and still not truncated
    ],
)
def test_a_completion_ends_where_its_text_reaches_a_stop(
    sampled: list[int], kept: tuple[int, ...], text: str
) -> None:
    logprobs = tuple(-1.0 - i for i in range(len(kept)))
    assert complete(sampled, CLOSE) == Completion(kept, text, False, logprobs)


def test_without_its_stop_a_completion_goes_on_to_eos() -> None:
    assert complete([3, 4, 5, 2, 0]).text == "</answer>7"
    assert complete([3, 4, 2, 0], CLOSE).text == "</answer7"


def test_a_line_with_hashes_ends_with_its_line_break() -> None:
    completion = complete([7, 8, 7, 8, 9, 2, 7, 2, 0], HASH_LINE)  # the first line holds nothing
    assert completion.text == "\n####\n#### 7\n"
    assert completion.token_ids == (7, 8, 7, 8, 9, 2, 7)


def test_text_is_decoded_only_after_a_token_that_can_end_a_stop() -> None:
    decoded: list[int] = []

    def counting(token_ids: Sequence[int]) -> str:
        decoded.append(len(token_ids))
        return decode(token_ids)

    ending = Ending(EOS, counting, (CLOSE,))
    ids = [2] * 50 + [10] + [2] * 50
    assert not any(ending.is_final(ids[: i + 1]) for i in range(len(ids)))
    assert [n for n in decoded if n > 1] == [51]


@pytest.mark.parametrize(
    ("sampled", "length"),
    [
        ([2] * 90, 64),
        ([2] * 63, None),
        ([2, 3, 4] * 30, 64),
        ([*range(2, 18)] * 6, 64),  # a pattern of 16 tokens, four times
        ([*range(2, 19)] * 6, None),  # one of 17
        ([3] * 10 + [2, 4] * 40, 80),  # 64 of them at 74, seen at the next multiple of 16
        ([2] * 62 + [3, 2] + [2] * 26, None),
        ([2] * 63 + [0, 0], 64),  # EOS
    ],
)
def test_a_completion_ends_where_64_tokens_repeat_a_pattern_of_at_most_16(
    sampled: list[int], length: int | None
) -> None:
    ending = Ending(EOS, lambda ids: "x" * len(ids), repetition_detection=True)
    assert ending.length(sampled) == length
    one_by_one = [n for n in range(1, len(sampled) + 1) if ending.is_final(sampled[:n])]
    assert one_by_one[:1] == ([] if length is None else [length])


def test_a_repetition_is_truncated_and_keeps_its_text_and_logprobs() -> None:
    ending = Ending(EOS, decode, (CLOSE,), repetition_detection=True)
    sampled, logprobs = [2, 9] * 40, [-0.5 - i for i in range(80)]
    assert ending.completion(ending.cut(sampled), logprobs) == Completion(
        (2, 9) * 32, "7 " * 32, truncated=True, logprobs=tuple(logprobs[:64]), repetitive=True
    )


def test_what_ends_with_eos_or_a_stop_is_no_repetition() -> None:
    stopped = Ending(EOS, decode, ("7" * 64,), repetition_detection=True).completion([2] * 64, [0.0] * 64)
    assert (stopped.truncated, stopped.repetitive) == (False, False)


def test_without_detection_a_repetition_goes_on() -> None:
    """And is cut like any other: where right answers repeat themselves, a higher limit helps."""
    completion = complete([2, 9] * 45)
    assert (len(completion.token_ids), completion.truncated, completion.repetitive) == (90, True, False)


def test_repetitions_are_those_of_the_definition() -> None:
    """On sequences that are nearly periodic, against every pair of tokens a period apart."""
    draw = random.Random(0)
    repetitive = 0
    for _ in range(400):
        pattern = [draw.randrange(3) for _ in range(draw.randint(1, 20))]
        ids = [draw.randrange(3) for _ in range(draw.randint(0, 9))] + (pattern * 70)[: draw.randint(58, 72)]
        if draw.random() < 0.3:
            ids[draw.randrange(len(ids))] = 3
        expected = len(ids) >= 64 and any(
            all(ids[i] == ids[i - period] for i in range(len(ids) - 64 + period, len(ids)))
            for period in range(1, 17)
        )
        assert is_repetitive(ids, len(ids)) == expected
        repetitive += expected
    assert 50 < repetitive < 350
