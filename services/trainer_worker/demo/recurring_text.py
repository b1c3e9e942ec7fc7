"""Ordinary documents in which what was said comes back: inventories, address books, timetables, dictations."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from services.trainer_worker.demo.domains.lexicon import PEOPLE, PLACES, THINGS, words

_OBJECTS = words(
    "lamp chair table door window bottle basket bucket ladder carpet clock mirror ring rope stone leaf "
    "feather hammer kettle pillow scarf towel wallet drawer boat hat train tree flower letter shelf desk "
    "bench plate spoon knife"
)
_COLOURS = words("green blue red white brown yellow grey black orange purple pink silver")
_SYLLABLES = words(
    "ba be bo da de do fa fi ga go ka ki la le lo ma mi mo na ne no pa pe ra ri ro sa se ta ti to va ve za zo"
)
_HOURS = range(1, 24)


def _number(rng: random.Random) -> int:
    return rng.randint(1, rng.choice((9, 30, 99, 99, 999)))


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3)))


def _names(rng: random.Random, low: int, high: int) -> list[str]:
    return [person.name for person in rng.sample(PEOPLE, rng.randint(low, high))]


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _inventory(rng: random.Random) -> str:
    place = rng.choice(PLACES)
    stock = [f"{_number(rng)} {thing}" for thing in rng.sample(THINGS, rng.randint(2, 4))]
    again = rng.choice(("Checked again", "The second list says", "For the record", "The clerk wrote down"))
    return f"In the {place} there are {_listed(stock)}. {again}: {_listed(stock)}.\n"


def _addresses(rng: random.Random) -> str:
    homes = [(name, _number(rng)) for name in _names(rng, 2, 4)]
    first = [f"{name} lives at number {number}." for name, number in homes]
    rng.shuffle(homes)
    pattern = rng.choice(
        (
            "To visit {name}, go to number {number}.",
            "The letter for {name} goes to number {number}.",
            "Number {number} is the door of {name}.",
        )
    )
    return " ".join(first + [pattern.format(name=name, number=number) for name, number in homes]) + "\n"


def _owners(rng: random.Random) -> str:
    names = _names(rng, 2, 3)
    owned = list(zip(names, rng.sample(_OBJECTS, len(names)), rng.choices(_COLOURS, k=len(names)), strict=True))
    first = [f"{name} has a {colour} {thing}." for name, thing, colour in owned]
    rng.shuffle(owned)
    pattern = rng.choice(("The {colour} {thing} is {name}'s.", "{name}'s {thing} is {colour}."))
    second = [pattern.format(name=name, thing=thing, colour=colour) for name, thing, colour in owned]
    return " ".join(first + second) + "\n"


def _timetable(rng: random.Random) -> str:
    stops = rng.sample(PLACES, rng.randint(2, 4))
    hours = sorted(rng.sample(_HOURS, len(stops)))
    plan = [f"{place} {hour}" for place, hour in zip(stops, hours, strict=True)]
    index = rng.randrange(len(stops))
    return (
        f"Timetable: {', '.join(plan)}.\nThe bus reaches the {stops[index]} at {hours[index]} "
        f"and the {stops[-1]} at {hours[-1]}.\n"
    )


def _dictation(rng: random.Random) -> str:
    words = [rng.choice(_OBJECTS + _COLOURS) if rng.random() < 0.5 else _word(rng) for _ in range(rng.randint(3, 8))]
    return f"Say: {' '.join(words)}\nHe said: {' '.join(words)}\nShe wrote: {' '.join(words)}\n"


def _digits(rng: random.Random) -> str:
    numbers = [str(_number(rng)) for _ in range(rng.randint(2, 6))]
    return f"Numbers: {' '.join(numbers)}\nOnce more: {' '.join(numbers)}\n"


def _telephone(rng: random.Random) -> str:
    entries = [(name, "".join(rng.choices("0123456789", k=4))) for name in _names(rng, 2, 4)]
    book = "".join(f"{name}: {digits}\n" for name, digits in entries)
    name, digits = rng.choice(entries)
    other, other_digits = rng.choice(entries)
    return f"{book}Call {name} under {digits}. The line of {other} is {other_digits}.\n"


def _report(rng: random.Random) -> str:
    first, second = _names(rng, 2, 2)
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    number = _number(rng)
    sentence = rng.choice(
        (
            "{first} saw {number} {thing} in the {place}.",
            "{first} carried {number} {thing} to the {place}.",
            "{first} counted {number} {thing} at the {place}.",
        )
    ).format(first=first, number=number, thing=thing, place=place)
    echo = rng.choice(
        (
            "{second} heard that {first} was at the {place} with {number} {thing}.",
            "Later {second} asked {first} about the {number} {thing} in the {place}.",
            "It was {first} and not {second} who told us about {number} {thing}.",
        )
    ).format(first=first, second=second, number=number, thing=thing, place=place)
    return f"{sentence} {echo}\n"


RECURRING_KINDS: tuple[Callable[[random.Random], str], ...] = (
    _inventory,
    _addresses,
    _owners,
    _timetable,
    _dictation,
    _digits,
    _telephone,
    _report,
)
