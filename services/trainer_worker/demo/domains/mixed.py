"""Mixed prompts: every one needs two of the other domains, and states its answer after `Result:`.

A word problem answered by a function call, a fact inside code, a fact inside a sum, a tale that contains a sum, a tale
that needs a fact. The facts are a part of the same table, the numbers are worked as in `math`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from services.trainer_worker.demo.domains.creative import CREATURES, HERO_NAMES, SETTINGS
from services.trainer_worker.demo.domains.fact_table import Fact, facts_of
from services.trainer_worker.demo.domains.item import Domain, Item
from services.trainer_worker.demo.domains.lexicon import THINGS
from services.trainer_worker.demo.domains.math import solvable_numbers
from services.trainer_worker.demo.safe_python import CodeFailed, CodeRefused, call_function

_CAPITALS: tuple[Fact, ...] = tuple(facts_of("capital")[::2])
_NUMBERS: tuple[Fact, ...] = tuple(facts_of("number")[:30])
_YOUNG: tuple[Fact, ...] = tuple(facts_of("young"))
_RESULT = re.compile(r"Result: (.+)")

_CALLS = (
    ("add", "a+b", "{hero} has {a} {things} and gets {b} more."),
    ("add", "a+b", "{a} {things} lie on the table and {b} on the floor."),
    ("subtract", "a-b", "{hero} has {a} {things} and gives {b} away."),
    ("subtract", "a-b", "Of {a} {things}, {hero} loses {b}."),
    ("multiply", "m*n", "{hero} owns {m} chests with {n} {things} in each."),
    ("multiply", "m*n", "On each of {m} days {hero} finds {n} {things}."),
    ("divide", "a/m", "{hero} splits {a} {things} among {m} friends."),
)


def _ordered(steps: str, numbers: dict[str, int]) -> tuple[int, int]:
    return numbers[steps[0]], numbers[steps[2]]


def _word_problem_as_call(rng: random.Random) -> Item:
    function, steps, story = rng.choice(_CALLS)
    numbers, working = solvable_numbers(rng, (steps,))
    left, right = _ordered(steps, numbers)
    fields = {"hero": rng.choice(HERO_NAMES), "things": rng.choice(THINGS)}
    return Item(
        prompt=f"Task: write the story as a call. {story.format(**fields, **numbers)}\n",
        completion=f"Call: {function}({left}, {right})\nResult: {working.result}\n",
        check={"result": str(working.result), "call": f"{function}({left}, {right})"},
        template=f"call/{story}",
    )


_FACT_FUNCTIONS = (
    ("capital", "returns the capital of {subject}", "capital_of_{name}"),
    ("capital", "gives back the capital city of {subject}", "{name}_capital"),
    ("young", "returns the word for a young {subject}", "young_{name}"),
    ("young", "gives back the name of a baby {subject}", "baby_{name}"),
)


def _fact_in_code(rng: random.Random) -> Item:
    relation, sentence, name = rng.choice(_FACT_FUNCTIONS)
    fact = rng.choice(_CAPITALS if relation == "capital" else _YOUNG)
    function = name.format(name=fact.subject.lower().replace(" ", "_"))
    verb = rng.choice(("Write", "Code", "Define", "Make"))
    return Item(
        prompt=f"Task: {verb} {function}, a function that {sentence.format(subject=fact.subject)}.\n",
        completion=f'def {function}():\n    return "{fact.value}"\n',
        check={"function": function, "returns": fact.value},
        template=f"fact function/{relation}/{verb}",
    )


_FACT_SUMS = (
    ("Add {b} to the atomic number of {subject}.", "a+b"),
    ("What is the atomic number of {subject} plus {b}?", "a+b"),
    ("Take the atomic number of {subject} and add {b}.", "a+b"),
    ("Subtract {b} from the atomic number of {subject}.", "a-b"),
    ("What is the atomic number of {subject} minus {b}?", "a-b"),
)


def _fact_in_sum(rng: random.Random) -> Item:
    while True:
        fact = rng.choice(_NUMBERS)
        sentence, steps = rng.choice(_FACT_SUMS)
        known, other = int(fact.value), rng.randint(1, 20)
        total = known + other if steps == "a+b" else known - other
        if total >= 1:
            break
    sign = steps[1]
    return Item(
        prompt=f"Task: {sentence.format(subject=fact.subject, b=other)}\n",
        completion=f"{fact.subject.capitalize()} has {known}. {known}{sign}{other}={total}.\nResult: {total}\n",
        check={"result": str(total)},
        template=f"fact sum/{sentence}",
    )


_SUM_TALES = (
    ("{hero} the {creature} found {a} {things} near the {setting}, and a friend brought {b} more.", "a+b"),
    ("In the {setting} {hero} the {creature} had {a} {things} and dropped {b} of them.", "a-b"),
    ("{hero} the {creature} carried {m} sacks of {n} {things} to the {setting}.", "m*n"),
    ("{hero} the {creature} hid {a} {things} in the {setting}. A thief stole {b}.", "a-b"),
    ("By the {setting} {hero} the {creature} counted {a} {things} and then {b} more.", "a+b"),
)
_SUM_TALE_ENDINGS = ("End the tale with the number of {things}.", "How many {things} are in the last line of the tale?")


def _sum_in_tale(rng: random.Random) -> Item:
    tale, steps = rng.choice(_SUM_TALES)
    ending = rng.choice(_SUM_TALE_ENDINGS)
    numbers, working = solvable_numbers(rng, (steps,))
    hero, things = rng.choice(HERO_NAMES), rng.choice(THINGS)
    fields = {"hero": hero, "things": things, "creature": rng.choice(CREATURES), "setting": rng.choice(SETTINGS)}
    return Item(
        prompt=f"Task: {tale.format(**fields, **numbers)} {ending.format(things=things)}\n",
        completion=f"{working.lines[0]} {hero} went home and there were {working.result} {things}.\n"
        f"Result: {working.result}\n",
        check={"result": str(working.result)},
        template=f"tale sum/{tale}/{ending}",
    )


_FACT_TALES = (
    "{hero} the {creature} left the {setting} and flew to the capital of {subject}.",
    "A {creature} called {hero} won a journey to the capital of {subject}.",
    "From the {setting} {hero} the {creature} sailed to the capital of {subject}.",
    "{hero} the {creature} sent a letter to a friend in the capital of {subject}.",
)
_FACT_TALE_ENDINGS = ("Which city is in the tale?", "Name the city of the tale.")


def _fact_in_tale(rng: random.Random) -> Item:
    fact = rng.choice(_CAPITALS)
    tale, ending = rng.choice(_FACT_TALES), rng.choice(_FACT_TALE_ENDINGS)
    hero = rng.choice(HERO_NAMES)
    fields = {"hero": hero, "creature": rng.choice(CREATURES), "setting": rng.choice(SETTINGS)}
    return Item(
        prompt=f"Task: {tale.format(**fields, subject=fact.subject)} {ending}\n",
        completion=f"The tale of {hero} leads to {fact.value}.\nResult: {fact.value}\n",
        check={"result": fact.value},
        template=f"fact tale/{tale}/{ending}",
    )


_KINDS: tuple[Callable[[random.Random], Item], ...] = (
    _word_problem_as_call,
    _fact_in_code,
    _fact_in_sum,
    _sum_in_tale,
    _fact_in_tale,
)


def _compose(rng: random.Random) -> Item:
    return rng.choice(_KINDS)(rng)


def _returns(item: Item, answer: str) -> bool:
    source = "\n".join(
        line for position, line in enumerate(answer.strip().splitlines()) if not position or line.startswith(" ")
    )
    try:
        return bool(call_function(source, item.check["function"], []) == item.check["returns"])
    except (CodeFailed, CodeRefused):
        return False


def _is_correct(item: Item, answer: str) -> bool:
    if "function" in item.check:
        return _returns(item, answer)
    found = _RESULT.search(answer)
    if found is None or found.group(1).strip() != item.check["result"]:
        return False
    return "call" not in item.check or item.check["call"] in answer


DOMAIN = Domain(
    name="mixed",
    description="Prompts that need two domains at once: facts in code, sums in tales, word problems as calls.",
    compose=_compose,
    is_correct=_is_correct,
    in_demo=True,
)
