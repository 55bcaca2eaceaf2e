"""Words for `wordmath`: the moves of a story and their numbers, told in one of the worlds.

The worlds are data and lie in `stories.toml`, whose head says what may stand in a phrase. Nothing
here knows arithmetic.
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
WORDS = frozenset(["things", "boxes", "places", "largest", "like"])  # a world's keys that are no moves


class Misfit(Exception):
    """What was drawn does not go together: draw again."""


class Dice(Random):
    """Draws by `random()` alone, the only sequence that Python promises to keep."""

    def pick(self, items: Sequence[T]) -> T:
        if not items:
            raise Misfit
        return items[int(self.random() * len(items))]

    def between(self, low: int, high: int) -> int:
        """One of low to high, both included."""
        if low > high:
            raise Misfit
        return low + int(self.random() * (high - low + 1))


class Beat(NamedTuple):
    """One move of a story, with the numbers to say."""

    move: str
    numbers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class World:
    """Somewhere that things can be counted."""

    phrases: Mapping[str, tuple[str, ...]]
    """For each move that makes sense here."""
    things: tuple[str, ...]
    boxes: tuple[str, ...]
    places: tuple[str, ...]
    largest: int
    """No larger number makes sense here."""

    @property
    def moves(self) -> frozenset[str]:
        return frozenset(self.phrases)


class Person(NamedTuple):
    """Somebody with her or his pronouns."""

    name: str
    she: str
    him: str
    his: str


@cache
def worlds() -> tuple[World, ...]:
    """All worlds of `stories.toml`."""
    tables = {name: table for name, table in _data().items() if isinstance(table, dict)}
    whole = [tables.get(table.get("like", ""), {}) | table for table in tables.values()]
    return tuple(_world(table) for table in whole if "things" in table)


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads((files(__package__) / "wordmath_stories.toml").read_text(encoding="utf-8"))


def _world(table: Mapping[str, Any]) -> World:
    return World(
        phrases={move: tuple(phrases) for move, phrases in table.items() if move not in WORDS},
        things=tuple(table["things"]),
        boxes=tuple(table.get("boxes", ["boxes"])),
        places=tuple(table.get("places", [""])),
        largest=table.get("largest", 5_000),
    )


def tell(world: World, beats: Sequence[Beat], dice: Dice) -> str:
    """The story as it happens in this world."""
    words = {
        "things": dice.pick(world.things),
        "boxes": dice.pick(world.boxes),
        "place": dice.pick(world.places),
    }
    about, other = _two_people(dice)
    said: list[str] = []
    sentences: list[str] = []
    before = ""
    for move, numbers in beats:
        said.append(dice.pick([phrase for phrase in world.phrases[move] if phrase not in said]))
        sentences.append(said[-1].format(**numbers, **words, **_names(about, other), **_hints(before)))
        if move in COMPARISONS:
            about, other = other, about
        before = before if move == "aside" else move
    return " ".join(sentences)


def _two_people(dice: Dice) -> tuple[Person, Person]:
    """A woman and a man in either order: so "she" and "he" can mean only one of them."""
    woman = Person(dice.pick(_data()["women"]), "she", "her", "her")
    man = Person(dice.pick(_data()["men"]), "he", "him", "his")
    return (woman, man) if dice.random() < 0.5 else (man, woman)


def _names(about: Person, other: Person) -> dict[str, str]:
    return {
        "A": about.name,
        "B": other.name,
        "she": about.she,
        "She": about.she.capitalize(),
        "him": about.him,
        "his": about.his,
        "His": about.his.capitalize(),
    }


def _hints(before: str) -> dict[str, str]:
    """Say "now" when the count has just changed, and "in all" when it was only said in groups."""
    changed = before not in COMPARISONS | {"have", "groups"}
    total = " in all" if before == "groups" else " now" if changed else ""
    return {"now": " now" * changed, "has_now": " has now" * changed, "total": total}
