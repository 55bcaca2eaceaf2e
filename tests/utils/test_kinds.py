"""Checks that are made of type annotations."""

from typing import Any, Literal, Required, TypedDict

import pytest

from reinforce_lite.utils.kinds import Amount, Count, Keys, Share, make_check


class Pair(TypedDict, total=False):
    name: Required[str]
    share: Share | None
    share_interval: tuple[Share, Share] | None


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (float, [1.5, 2, -1e99], [True, None, "1", 1e101, 10**400]),
        (int, [0, -3], [1.0, False, None]),
        (bool, [True], [1, None]),
        (str, ["", "\ud83d"], [1, None]),
        (Share, [0, 0.5, 1.0], [-0.1, 1.1]),
        (Count, [0, 10**18], [-1, 0.5, 10**19]),
        (Amount, [0, 1e9], [-1, 1e300]),
        (Share | None, [None, 1], ["x", 2]),
        (Literal["a", "b"], ["a", "c"], [1]),
        (Any, [None, [1], "x"], []),
        (tuple[Share, Share], [[0, 1]], [[0], [0, 1, 1], [0, 2], "01", None]),
        (dict[str, list[str]], [{}, {"a": ["b"]}], [[], {"a": 5}, {"a": [5]}]),
        (Pair, [{"name": "a"}, {"name": "a", "other": 1}], [{}, {"name": 1}, [], None]),
    ],
)
def test_each_kind_of_annotation(hint: Any, right: list[Any], wrong: list[Any]) -> None:
    check = make_check(hint)
    assert [value for value in right if not check(value)] == []
    assert [value for value in wrong if check(value)] == []


def test_the_first_wrong_key_is_named() -> None:
    keys = Keys.of(Pair)
    assert keys.wrong({}) == "name"
    assert keys.wrong({"name": "a", "share": 2}) == "share"
    assert keys.wrong({"name": "a", "share": 0.5}) == "share_interval"
    assert not keys.wrong({"name": "a", "share": 0.5, "share_interval": [0.4, 0.6]})
    assert not keys.wrong({"name": "a", "share": None, "share_interval": None})
