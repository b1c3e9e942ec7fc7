"""Words that several domains share: people, creatures, things and places."""

from __future__ import annotations

import random
from dataclasses import dataclass


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def phrases(text: str) -> tuple[str, ...]:
    """The phrases of a text, which bars divide."""
    return tuple(text.split("|"))


@dataclass(frozen=True)
class Person:
    """A first name with its pronouns."""

    name: str
    subject: str
    object: str
    possessive: str


_SHE = (
    "Anna Bella Clara Dora Emma Fiona Grace Hanna Ivy Julia Kate Lena Mira Nora Olga Petra Rosa Sara "
    "Tina Vera Wanda Zoe Alice Lucy Maria Nina"
)
_HE = (
    "Adam Ben Carl David Eric Felix George Hugo Ivan Jack Karl Leo Max Nick Oscar Paul Ralph Sam Tom "
    "Victor Will Zack Peter Simon Martin Noah"
)

PEOPLE: tuple[Person, ...] = tuple(
    [Person(name, "she", "her", "her") for name in words(_SHE)]
    + [Person(name, "he", "him", "his") for name in words(_HE)]
)

THINGS: tuple[str, ...] = words(
    "apples books pens coins cards marbles stamps cookies pencils shells buttons stickers oranges "
    "plums eggs candles flowers stones balloons ribbons"
)

PLACES: tuple[str, ...] = words(
    "garden kitchen market library school station park harbour bakery museum church office forest "
    "village hall square bridge farm castle theatre"
)


def two_people(rng: random.Random) -> tuple[Person, Person]:
    """Two different people."""
    first, second = rng.sample(PEOPLE, 2)
    return first, second


def fields_of(person: Person, prefix: str) -> dict[str, str]:
    """Format fields `{prefix}`, `{prefix}_he`, `{prefix}_him`, `{prefix}_his` and `{prefix}_He`."""
    return {
        prefix: person.name,
        f"{prefix}_he": person.subject,
        f"{prefix}_He": person.subject.capitalize(),
        f"{prefix}_him": person.object,
        f"{prefix}_his": person.possessive,
    }
