"""Words for `wordmath`: the events of a story, told in one of the worlds.

The worlds are data, in `wordmath_stories.toml`; the comment at its top lists the placeholders of a
phrase. Nothing here does arithmetic.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

COMPARISONS = frozenset(["more", "fewer", "times"])  # after these the story is about the other person
SETTINGS = ("things", "boxes", "places", "largest")  # a world's keys that are not moves


class RejectedDrawError(Exception):
    """A draw that does not fit the rest: draw again."""


class PortableRandom(Random):
    """Draws from `random()` alone, the only sequence that every Python version reproduces.

    https://docs.python.org/3/library/random.html#notes-on-reproducibility
    """

    def pick(self, items: Sequence[T]) -> T:
        """One of the items. Raises RejectedDrawError when there are none."""
        if not items:
            raise RejectedDrawError
        return items[int(self.random() * len(items))]

    def between(self, low: int, high: int) -> int:
        """One of low to high, both included. Raises RejectedDrawError when the range is empty."""
        if low > high:
            raise RejectedDrawError
        return low + int(self.random() * (high - low + 1))


class Event(NamedTuple):
    """One move of a story, with the numbers that its sentence mentions."""

    move: str
    numbers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class World:
    """A setting with things to count."""

    phrases: Mapping[str, Sequence[str]]
    """Alternatives for each move that makes sense here."""
    things: Sequence[str]
    boxes: Sequence[str] = ("boxes",)
    places: Sequence[str] = ("",)
    largest: int = 5_000
    """The largest number that makes sense here."""


@cache
def load_worlds() -> tuple[World, ...]:
    """All worlds of `wordmath_stories.toml`."""
    tables = [table for table in _load_toml().values() if isinstance(table, dict)]
    merged = [_load_toml().get(table.get("like", ""), {}) | table for table in tables]
    return tuple(_parse_world(table) for table in merged if "things" in table)


@cache
def _load_toml() -> dict[str, Any]:
    return tomllib.loads((files(__package__) / "wordmath_stories.toml").read_text(encoding="utf-8"))


def _parse_world(table: Mapping[str, Any]) -> World:
    phrases = {move: phrases for move, phrases in table.items() if move not in (*SETTINGS, "like")}
    return World(phrases, **{key: table[key] for key in SETTINGS if key in table})


def tell(world: World, events: Sequence[Event], random: PortableRandom) -> str:
    """The events as a text in this world, a sentence each; no phrase is used twice.

    Raises RejectedDrawError when the world has too few phrases for a move.
    """
    words = {
        "things": random.pick(world.things),
        "boxes": random.pick(world.boxes),
        "place": random.pick(world.places),
    }
    subject, other = _draw_people(random)
    phrases: list[str] = []
    sentences: list[str] = []
    previous = ""
    for move, numbers in events:
        phrases.append(random.pick([phrase for phrase in world.phrases[move] if phrase not in phrases]))
        names = subject | {"B": other["A"]}
        sentences.append(phrases[-1].format(**numbers, **words, **names, **_time_words(previous)))
        if move in COMPARISONS:
            subject, other = other, subject
        previous = previous if move == "aside" else move
    return " ".join(sentences)


def _draw_people(random: PortableRandom) -> tuple[dict[str, str], dict[str, str]]:
    """A woman and a man in either order, so that "she" and "he" are unambiguous."""
    woman = {"A": random.pick(_load_toml()["women"]), "she": "she", "him": "her", "his": "her"}
    man = {"A": random.pick(_load_toml()["men"]), "she": "he", "him": "him", "his": "his"}
    for person in (woman, man):
        person |= {"She": person["she"].capitalize(), "His": person["his"].capitalize()}
    return (woman, man) if random.random() < 0.5 else (man, woman)


def _time_words(previous_move: str) -> dict[str, str]:
    """Where it helps: "now" after a move that changed the count, "in all" after one that gave groups."""
    changed = previous_move not in COMPARISONS | {"have", "groups"}
    total = " in all" if previous_move == "groups" else " now" if changed else ""
    return {"now": " now" * changed, "has_now": " has now" * changed, "total": total}
