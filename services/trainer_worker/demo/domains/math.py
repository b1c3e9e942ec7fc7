"""Mathematical reasoning: word problems and bare arithmetic, worked step by step and then answered.

A problem's steps are expressions over its numbers; `_` is the result of the step before. Capital letters of the
story are filled with people, things and places; `a b c` are terms, `m n` are small factors.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from services.trainer_worker.demo.domains.item import Domain, Item
from services.trainer_worker.demo.domains.lexicon import PLACES, THINGS, fields_of, two_people

LARGEST_RESULT = 99
_TERM = (2, 40)
_FACTOR = (2, 9)
_FACTOR_NAMES = "mn"
_ANSWER = re.compile(r"answer is (-?\d+)")


@dataclass(frozen=True)
class Problem:
    """A story with holes, the steps that solve it, and the question it ends in."""

    story: str
    question: str
    steps: tuple[str, ...]


def _problem(story: str, question: str, steps: str) -> Problem:
    return Problem(story, question, tuple(steps.split()))


PROBLEMS: tuple[Problem, ...] = (
    _problem("{P} has {a} {things}. {Q} gives {P_him} {b} more.", "How many {things} does {P} have now?", "a+b"),
    _problem("{P} has {a} {things}. {P_He} gives {b} of them to {Q}.", "How many {things} are left?", "a-b"),
    _problem("{P} finds {a} {things} in the {place} and {b} at home.", "How many {things} are there in all?", "a+b"),
    _problem("There are {m} boxes with {n} {things} each.", "How many {things} are in the boxes?", "m*n"),
    _problem("{P} packs {n} {things} into each of {m} bags.", "How many {things} does {P} pack?", "m*n"),
    _problem("{P} shares {a} {things} equally among {m} friends.", "How many {things} does each friend get?", "a/m"),
    _problem("{P} buys {a} {things} and loses {b} on the way.", "How many {things} reach home?", "a-b"),
    _problem("{Q} has {a} {things}. {P} has {b} more than {Q}.", "How many {things} does {P} have?", "a+b"),
    _problem("{Q} has {a} {things}. {P} has {b} fewer than {Q}.", "How many {things} does {P} have?", "a-b"),
    _problem("{P} reads {m} pages a day for {n} days.", "How many pages does {P} read?", "m*n"),
    _problem("A book has {a} pages. {P} has read {b} pages.", "How many pages are left to read?", "a-b"),
    _problem("A ticket costs {m} coins. {P} buys {n} tickets.", "How many coins does {P} pay?", "m*n"),
    _problem("{P} is {a} years old.", "How old will {P} be in {b} years?", "a+b"),
    _problem("{P} is {a} years old.", "How old was {P} {b} years ago?", "a-b"),
    _problem("{a} people sit in the {place}. {b} of them leave.", "How many people stay?", "a-b"),
    _problem("{a} people wait at the {place} and {b} more arrive.", "How many people wait now?", "a+b"),
    _problem("A rope is {a} metres long. {P} cuts off {b} metres.", "How many metres are left?", "a-b"),
    _problem("A garden is {m} metres wide and {n} metres long.", "How large is its area?", "m*n"),
    _problem("A field is {a} metres long and {b} metres wide.", "How much longer is it than wide?", "a-b"),
    _problem("{a} {things} are put in rows of {m}.", "How many rows are there?", "a/m"),
    _problem(
        "{P} has {a} {things}. {P_He} gets {b} from {Q} and then loses {c}.",
        "How many {things} does {P} have?",
        "a+b _-c",
    ),
    _problem(
        "{P} has {a} {things}, gives {b} to {Q} and then finds {c}.", "How many {things} does {P} have?", "a-b _+c"
    ),
    _problem(
        "{P} buys {m} boxes of {n} {things} and gives {b} to {Q}.",
        "How many {things} does {P} keep?",
        "m*n _-b",
    ),
    _problem("{P} has {a} {things} and buys {m} bags of {n}.", "How many {things} does {P} have?", "m*n _+a"),
    _problem(
        "{P} and {Q} have {a} and {b} {things}. They share them equally.",
        "How many {things} does each of them get?",
        "a+b _/2",
    ),
    _problem(
        "{P} picks {a} {things}, eats {b} and puts the rest into {m} equal bags.",
        "How many {things} are in a bag?",
        "a-b _/m",
    ),
    _problem(
        "{P} earns {m} coins a day for {n} days and spends {b} coins.",
        "How many coins are left?",
        "m*n _-b",
    ),
    _problem("A bus has {a} people. {b} get off and {c} get on.", "How many people are on the bus?", "a-b _+c"),
    _problem("{P} has {a} coins. A toy costs {b} coins and a cake {c}.", "How many coins are left?", "a-b _-c"),
    _problem("{P} walks {a} metres, then {b}, then {c}.", "How many metres does {P} walk?", "a+b _+c"),
    _problem("A garden is {m} metres wide and {n} metres long.", "How long is the fence around it?", "m+n _*2"),
    _problem("Every one of {m} tables has {n} seats. {b} seats are taken.", "How many seats are free?", "m*n _-b"),
    _problem("{P} has {m} {things}. {Q} has {n} times as many.", "How many {things} do they have together?", "m*n _+m"),
    _problem("{P} bakes {a} cakes, sells {b} and then bakes {c} more.", "How many cakes are there?", "a-b _+c"),
    _problem("{P} saves {m} coins a week for {n} weeks and had {a} before.", "How many coins are saved?", "m*n _+a"),
    _problem(
        "{P} has {a} {things}. {P_He} gives {b} to {Q}, finds {c} and loses {m}.",
        "How many {things} does {P} have at the end?",
        "a-b _+c _-m",
    ),
    _problem(
        "{P} buys {m} boxes of {n} {things}, gives {b} to {Q} and gets {c} back.",
        "How many {things} does {P} have?",
        "m*n _-b _+c",
    ),
    _problem(
        "A train has {a} people. At the {place} {b} get off and {c} get on. Later {m} more get on.",
        "How many people are on the train?",
        "a-b _+c _+m",
    ),
    _problem(
        "{P} has {a} {things} and {Q} has {b}. They put them together, lose {c} and count them.",
        "How many {things} do they count?",
        "a+b _-c",
    ),
    _problem(
        "{P} fills {m} baskets with {n} {things} each, adds {b} and sells {c}.",
        "How many {things} remain?",
        "m*n _+b _-c",
    ),
)

_BARE: tuple[tuple[str, str], ...] = (
    ("What is {a} plus {b}?", "a+b"),
    ("Add {a} and {b}.", "a+b"),
    ("Compute {a} + {b}.", "a+b"),
    ("What is {a} minus {b}?", "a-b"),
    ("Subtract {b} from {a}.", "a-b"),
    ("Compute {a} - {b}.", "a-b"),
    ("What is {m} times {n}?", "m*n"),
    ("Multiply {m} by {n}.", "m*n"),
    ("Compute {m} * {n}.", "m*n"),
    ("Divide {a} by {m}.", "a/m"),
    ("Compute {a} + {b} - {c}.", "a+b _-c"),
    ("Compute {m} * {n} + {a}.", "m*n _+a"),
    ("Compute {m} * {n} - {b}.", "m*n _-b"),
    ("Add {a} and {b}, then subtract {c}.", "a+b _-c"),
    ("Multiply {m} by {n}, then add {a}.", "m*n _+a"),
    ("Take {b} from {a}, then add {c}.", "a-b _+c"),
    ("What number is {b} more than {a}?", "a+b"),
    ("What number is {b} less than {a}?", "a-b"),
    ("Double {a}.", "a*2"),
    ("Halve {a}.", "a/2"),
)
_BARE_SHARE = 0.2


@dataclass(frozen=True)
class Working:
    """The steps of a solution written out, and the number that they end in."""

    lines: tuple[str, ...]
    result: int


def _draw_numbers(rng: random.Random, names: set[str]) -> dict[str, int]:
    return {name: rng.randint(*(_FACTOR if name in _FACTOR_NAMES else _TERM)) for name in sorted(names)}


def work_out(steps: tuple[str, ...], numbers: Mapping[str, int]) -> Working | None:
    """Carry the steps out; None where a result is not a whole number between 1 and `LARGEST_RESULT`."""
    values = dict(numbers)
    lines: list[str] = []
    result = 0
    for step in steps:
        left_name, operator, right_name = step[0], step[1], step[2:]
        left = values[left_name]
        right = int(right_name) if right_name.isdigit() else values[right_name]
        if operator == "/" and left % right:
            return None
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[operator]
        if not 1 <= result <= LARGEST_RESULT:
            return None
        lines.append(f"{left}{operator}{right}={result}.")
        values["_"] = result
    return Working(tuple(lines), result)


def solvable_numbers(rng: random.Random, steps: tuple[str, ...]) -> tuple[dict[str, int], Working]:
    """Numbers for which the steps come out well, with the working."""
    names = {letter for step in steps for letter in step if letter.isalpha()}
    while True:
        numbers = _draw_numbers(rng, names)
        working = work_out(steps, numbers)
        if working is not None:
            return numbers, working


def _compose(rng: random.Random) -> Item:
    if rng.random() < _BARE_SHARE:
        text, steps_text = rng.choice(_BARE)
        steps = tuple(steps_text.split())
        numbers, working = solvable_numbers(rng, steps)
        prompt, template = text.format(**numbers), text
    else:
        problem = rng.choice(PROBLEMS)
        numbers, working = solvable_numbers(rng, problem.steps)
        first, second = two_people(rng)
        fields = fields_of(first, "P") | fields_of(second, "Q")
        fields |= {"things": rng.choice(THINGS), "place": rng.choice(PLACES)}
        template = f"{problem.story} {problem.question}"
        prompt = template.format(**fields, **numbers)
    return Item(
        prompt=f"Problem: {prompt}\nSolution:",
        completion=f" {' '.join(working.lines)} The answer is {working.result}.\n",
        check={"answer": working.result, "steps": len(working.lines)},
        template=template,
    )


def _is_correct(item: Item, answer: str) -> bool:
    found = _ANSWER.search(answer)
    return found is not None and int(found.group(1)) == item.check["answer"]


DOMAIN = Domain(
    name="math",
    description="Word problems and arithmetic of one to three steps, worked and then answered by one number.",
    compose=_compose,
    is_correct=_is_correct,
    in_demo=True,
)
