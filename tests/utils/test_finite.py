"""Values that are not finite, in tensors and in JSON."""

import json
import math
from typing import Any

import pytest
import torch

from reinforce_lite.utils.finite import to_json
from reinforce_lite.utils.tensors import not_finite

pytestmark = pytest.mark.case(10)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", [0, 1, 4_999])
def test_one_value_is_found(value: float, dtype: torch.dtype, place: int) -> None:
    tensors = {name: torch.ones(50, 100, dtype=dtype) for name in ("a", "b", "c")}
    assert not_finite(tensors) == []
    tensors["b"].view(-1)[place] = value
    assert not_finite(tensors) == ["b"]


def test_both_infinities_do_not_cancel() -> None:
    assert not_finite({"w": torch.tensor([math.inf, 1.0, -math.inf])}) == ["w"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_sum_that_overflows_is_no_fault(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert not_finite({"w": torch.full((8,), largest, dtype=dtype), "v": torch.ones(1)}) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": math.nan, "b": [1.5, math.inf, (-math.inf,)]}, '{"a": null, "b": [1.5, null, [null]]}'),
        (
            {"a": {"NaN": "NaN"}, "b": True, "c": None, "d": 3},
            '{"a": {"NaN": "NaN"}, "b": true, "c": null, "d": 3}',
        ),
        (math.nan, "null"),
    ],
)
def test_json_has_null_for_what_is_not_finite(value: Any, text: str) -> None:
    assert to_json(value) == text


def test_options_are_those_of_json() -> None:
    assert to_json({"é": math.nan}, ensure_ascii=False) == '{"é": null}'
    with pytest.raises(TypeError):
        to_json({1: object()})
    assert json.loads(to_json([1e308])) == [1e308]
