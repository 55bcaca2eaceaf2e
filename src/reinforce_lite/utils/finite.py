"""JSON without numbers that are not finite, written and read."""

import json
import math
from collections.abc import Mapping
from typing import Any


def finite_or_none(value: float) -> float | None:
    """The value, or None for NaN and infinity."""
    return value if math.isfinite(value) else None


def from_json(text: str | bytes) -> Any:
    """What JSON text says, with None for numbers that are not finite: NaN, Infinity, 1e999.

    Raises ValueError for text that is not JSON, also where it is nested too deeply.

    >>> from_json('{"loss": NaN, "reward": 1.5}')
    {'loss': None, 'reward': 1.5}
    """
    try:
        return json.loads(text, parse_constant=lambda _: None, parse_float=_finite_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def to_json(value: Any, **options: Any) -> str:
    """JSON text with null for numbers that are not finite, which JSON cannot express.

    >>> to_json({"loss": float("nan")})
    '{"loss": null}'
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_without_not_finite(value), allow_nan=False, **options)


def _finite_float(digits: str) -> float | None:
    return finite_or_none(float(digits))


def _without_not_finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_not_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_not_finite(item) for item in value]
    return finite_or_none(value) if isinstance(value, float) else value
