"""Whether values that were read from a file are what a type annotation declares.

    check = make_check(Share | None)
    check(0.5), check(None), check(7), check("0.5")  ->  True, True, False, False

A whole number passes for a float, true and false pass for no number. A Literal accepts any text: later
versions may write others. A TypedDict may have further keys. Omitted on purpose: pydantic, which refuses half
a character (a lone surrogate), and the texts of a run may hold one.
"""

from collections.abc import Callable, Collection, Mapping
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Required,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

LARGEST = 1e100
"""Of a number without a range of its own: squares and sums of such numbers are finite."""
Share = Annotated[float, (0, 1)]
"""A fraction of 1."""
Amount = Annotated[float, (0, 1e18)]
"""Seconds, bytes, tokens or one of these per another."""
Count = Annotated[int, (0, 10**18)]

Check = Callable[[Any], bool]


def make_check(hint: Any) -> Check:
    """What tells whether a value is of this type, and a number in its range."""
    kind, args = get_origin(hint) or hint, get_args(hint)
    if kind in (float, int):
        return _number(kind, -LARGEST, LARGEST)
    if kind is Annotated:
        return _number(args[0], *args[1])
    if kind in (Union, UnionType):
        checks = [make_check(arg) for arg in args]
        return lambda value: any(check(value) for check in checks)
    if is_typeddict(kind):
        keys = Keys.of(kind)
        return lambda value: isinstance(value, dict) and not keys.wrong(value)
    if args and kind is not Literal:
        return _container(kind, args)
    plain: Any = {Any: object, Literal: str}.get(kind, kind)
    return lambda value: isinstance(value, plain)


class Keys:
    """The keys of an object and the types of their values. One that is not required may be missing.

    Of `x` and `x_interval` both have a value or neither.
    """

    def __init__(self, hints: Mapping[str, Any], required: Collection[str]) -> None:
        self.required = frozenset(required)
        self.checks = {key: make_check(hint) for key, hint in hints.items()}
        self.intervals = {f"{key}_interval": key for key in hints if f"{key}_interval" in hints}

    @classmethod
    def of(cls, kind: Any) -> Self:
        """Those of a TypedDict."""
        hints = get_type_hints(kind, include_extras=True)
        plain = {
            key: get_args(hint)[0] if get_origin(hint) is Required else hint for key, hint in hints.items()
        }
        return cls(plain, kind.__required_keys__)

    def wrong(self, record: Mapping[str, Any]) -> str:
        """The first key whose value is missing or of another type or range; empty if there is none."""
        for key, check in self.checks.items():
            if not check(record[key]) if key in record else key in self.required:
                return key
        for key, of in self.intervals.items():
            if (record.get(key) is None) != (record.get(of) is None):
                return key
        return ""


def _number(kind: type, low: float, high: float) -> Check:
    kinds = (int,) if kind is int else (int, float)
    return lambda value: type(value) in kinds and low <= value <= high


def _container(kind: Any, args: tuple[Any, ...]) -> Check:
    """The check of a list or mapping of any length, or of a tuple, which JSON stores as a list."""
    checks = [make_check(arg) for arg in args]
    if kind is tuple:
        return lambda value: (
            isinstance(value, list)
            and len(value) == len(checks)
            and all(check(item) for check, item in zip(checks, value, strict=True))
        )
    inner = checks[-1]
    if issubclass(kind, Mapping):
        return lambda value: isinstance(value, dict) and all(map(inner, value.values()))
    return lambda value: isinstance(value, list) and all(map(inner, value))
