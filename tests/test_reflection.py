"""Hits counted by hand, with traps."""

import pytest

from reinforce_lite.reflection import LISTS, hits, rates


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wait, that is wrong.", {"c": ["wait"]}),
        ("The waiter awaits; he waited.", {}),
        ("Let me re-evaluate.", {"a": ["re-evaluate"], "b": ["re-evaluate"]}),
        ("RECHECK it, then recheck", {"a": ["recheck", "recheck"], "b": ["recheck", "recheck"]}),
        ("rechecked", {}),
        ("Try again", {"a": ["try again"]}),
        ("I double-check and reconsider", {"b": ["double-check", "reconsider"]}),
        ("double-checked", {}),
        ("This doesn’t make sense", {"c": ["this doesn't make sense"]}),
        ("However, let me check", {"c": ["however", "let me check"]}),
        ("howeverwait", {}),
        ("", {}),
    ],
)
def test_hits_by_hand(text: str, expected: dict[str, list[str]]) -> None:
    assert hits(text) == expected


def test_rates_are_shares_of_texts() -> None:
    assert rates(["Wait, wait", "try again", "no", "however"]) == {"a": 0.25, "b": 0.0, "c": 0.5}
    assert rates([]) == {"a": 0, "b": 0, "c": 0}


def test_the_published_lists() -> None:
    assert len(LISTS["a"]) == 11
    assert set(LISTS["b"]) - set(LISTS["a"]) == {
        "reassess",
        "reconsider",
        "reanalyze",
        "double-check",
        "verify again",
    }
    assert set(LISTS["a"]) - set(LISTS["b"]) == {"try again"}
