"""Stop strings: where a text ends."""

import time

import pytest

from reinforce_lite.tasks.stopping import DEFAULT_STOPS, HASH_LINE, stop_end

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
        (" #### 72\n", HASH, " #### 72\n"),
        ("**#### 72**\nb", HASH, "**#### 72**\n"),
        ("#### \n\n####\n", HASH, None),
        ("##### Step 1\n", HASH, None),
        ("#### Step one\n#### 72\n", HASH, "#### Step one\n#### 72\n"),
        ("####\n72\n#### 72\n", HASH, "####\n72\n#### 72\n"),
        ("abc", ("c", "ab"), "ab"),
        ("xabcd", ("abcd", "bc"), "xabc"),  # the one that ends first
        ("aSTOPb\n#### 1\n", ("STOP", HASH_LINE), "aSTOP"),
        ("anything", DEFAULT_STOPS["boxed"], None),
    ],
)
def test_stop_end_keeps_the_text_up_to_the_first_stop(
    text: str, stops: tuple[str, ...], kept: str | None
) -> None:
    assert stop_end(text, stops) == (None if kept is None else len(kept))


@pytest.mark.parametrize("piece", ["</answer", "####", "####\n", "#### ", "#### x", "\n", "a"])
def test_stop_end_takes_linear_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    start = time.process_time()
    assert stop_end(text, (*TAGS, *HASH)) is None
    assert time.process_time() - start < 2
