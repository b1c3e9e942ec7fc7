"""Recipes: ingredient lists and steps, with questions about amounts and order. Kept out of base and experts."""

from __future__ import annotations

import random

from services.trainer_worker.demo.domains.item import Domain, Item, ends_with_value
from services.trainer_worker.demo.domains.lexicon import phrases, words

_DISHES = phrases(
    "potato soup|apple pie|rye bread|tomato sauce|lentil stew|pancakes|carrot salad|rice pudding|"
    "pea soup|onion tart|plum jam|herb omelette|fish stew|cheese noodles|bean chili|pumpkin curry|"
    "oat biscuits|nut cake|mushroom risotto|barley broth"
)
_GRAMS = words("flour sugar butter rice lentils potatoes carrots onions tomatoes mushrooms peas beans oats cheese")
_SPOONS = words("salt pepper cinnamon paprika oil vinegar honey mustard thyme parsley yeast ginger")
_STEPS = {
    "Wash": "the vegetables",
    "Chop": "everything finely",
    "Heat": "the oil in a pan",
    "Fry": "until golden",
    "Simmer": "on a low flame",
    "Stir": "every few minutes",
    "Season": "to taste",
    "Knead": "for a while",
    "Bake": "in a hot oven",
    "Cool": "on a rack",
    "Serve": "with fresh herbs",
}


def _ingredients(rng: random.Random) -> dict[str, str]:
    amounts = {name: f"{rng.randint(1, 19) * 50} g" for name in rng.sample(_GRAMS, 3)}
    amounts |= {name: f"{rng.randint(1, 6)} tsp" for name in rng.sample(_SPOONS, 2)}
    return amounts


def _question(rng: random.Random, amounts: dict[str, str], steps: list[str]) -> tuple[str, str, str]:
    ingredient = rng.choice(list(amounts))
    position = rng.randrange(1, len(steps))
    before, after = steps[position - 1].lower(), steps[position].lower()
    return rng.choice(
        [
            (f"How much {ingredient}?", f"{ingredient.capitalize()}: {amounts[ingredient]}.", amounts[ingredient]),
            (f"What comes after step {position}?", f"After {before} comes {after}.", after),
            ("What is the first step?", f"The first step is {steps[0].lower()}.", steps[0].lower()),
            ("What is the last step?", f"The last step is {steps[-1].lower()}.", steps[-1].lower()),
        ]
    )


def _compose(rng: random.Random) -> Item:
    dish, amounts = rng.choice(_DISHES), _ingredients(rng)
    chosen = sorted(rng.sample(range(len(_STEPS)), rng.randint(3, 4)))
    steps = [list(_STEPS)[index] for index in chosen]
    question, answer, value = _question(rng, amounts, steps)
    listed = "".join(f"- {amount} {name}\n" for name, amount in amounts.items())
    method = "".join(f"{number}. {verb} {_STEPS[verb]}.\n" for number, verb in enumerate(steps, start=1))
    return Item(
        prompt=f"RECIPE {dish} (serves {rng.randint(2, 8)})\n{listed}{method}>> {question}\n",
        completion=f"{answer}\n",
        check={"value": value},
        template=f"{dish}/{question.rstrip('?0123456789 ')}",
    )


def _is_correct(item: Item, answer: str) -> bool:
    return ends_with_value(answer, item.check["value"])


DOMAIN = Domain(
    name="recipes",
    description="Recipes with amounts and steps, and questions about both.",
    compose=_compose,
    is_correct=_is_correct,
    in_demo=False,
)
