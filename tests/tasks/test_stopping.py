"""Stop strings: where a text ends, at once and as it grows."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforce_lite.tasks.stopping import DEFAULT_STOPS, HASH_LINE, stop_index

TAGS, HASH = DEFAULT_STOPS["tags"], DEFAULT_STOPS["hash"]


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("a <answer>72</answer> b </answer>", TAGS, "a <answer>72</answer>"),
        ("a <answer>72</answer", TAGS, None),
        ("a\n#### 72\nb\n#### 73\n", HASH, "a\n#### 72\n"),
        ("#### 72\r\nb", HASH, "#### 72\r\n"),
        ("####72\n", HASH, "####72\n"),
        ("#### 72", HASH, None),  # the next token may be another digit
        ("so #### 72\n", HASH, None),
        (" #### 72\n", HASH, None),
        ("#### \n\n####\n", HASH, None),
        ("##### Steps\n", HASH, None),
        ("####\n72\n#### 72\n", HASH, "####\n72\n#### 72\n"),
        ("abc", ("c", "ab"), "ab"),
        ("xabcd", ("abcd", "bc"), "xabc"),  # the one that ends first
        ("aSTOPb\n#### 1\n", ("STOP", HASH_LINE), "aSTOP"),
        ("anything", DEFAULT_STOPS["boxed"], None),
    ],
)
def test_stop_index_keeps_the_text_up_to_the_first_stop(
    text: str, stops: tuple[str, ...], kept: str | None
) -> None:
    assert stop_index(text, stops) == (None if kept is None else len(kept))


PIECES = st.sampled_from(["</answer>", "</ans", "wer>", "####", "#### 7", "2", "\n", " ", "#", "x"])


@given(st.lists(PIECES, max_size=12).map("".join), st.lists(st.integers(1, 5), max_size=60))
def test_stop_index_finds_the_same_stop_as_the_text_grows(text: str, sizes: list[int]) -> None:
    stops = ("</answer>", HASH_LINE)
    seen, grown = 0, None
    for size in [*sizes, len(text)]:
        grown = stop_index(text[: seen + size], stops, start=seen)
        if grown is not None:
            break
        seen = min(seen + size, len(text))
    assert grown == stop_index(text, stops)


@pytest.mark.parametrize("piece", ["</answer", "####", "####\n", "#### ", "\n", "a"])
def test_stop_index_takes_linear_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    start = time.process_time()
    assert stop_index(text, (*TAGS, *HASH)) is None
    for end in range(0, len(text), 5_000):  # a text that grows
        assert stop_index(text[: end + 5_000], (*TAGS, *HASH), end) is None
    assert time.process_time() - start < 2
