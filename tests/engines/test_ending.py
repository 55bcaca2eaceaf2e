"""Where completions end: end-of-sequence tokens and stops, with a vocabulary spelled out here."""

from collections.abc import Sequence

import pytest

from reinforce_lite.engines.ending import Ending
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
