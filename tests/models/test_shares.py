"""How work is divided among processes."""

import pytest

from reinforce_lite.models.shares import equal_parts, split_by_key


def test_equal_keys_stay_together() -> None:
    assert split_by_key(["a", "b", "a", "c", "d"], 2) == [[0, 2, 3], [1, 4]]
    assert split_by_key(["a", "a"], 3) == [[0, 1], [], []]


@pytest.mark.parametrize(
    ("costs", "n", "expected"),
    [
        ([1, 1, 1, 1], 2, [[1, 1], [1, 1]]),
        ([3, 1, 1, 1], 2, [[3], [1, 1, 1]]),
        ([1, 1, 1, 3], 2, [[1, 1, 1], [3]]),
        ([5], 3, [[5], [], []]),
        ([], 2, [[], []]),
        ([9, 1, 1], 3, [[9], [], [1, 1]]),  # a part may stay empty: it only adds zeros
    ],
)
def test_runs_have_about_equal_costs(costs: list[int], n: int, expected: list[list[int]]) -> None:
    runs = [costs[run] for run in equal_parts(costs, n)]
    assert sorted(map(sum, runs)) == sorted(map(sum, expected))
    assert [cost for run in runs for cost in run] == costs
