"""Factual knowledge: questions over the fact table, in many phrasings, each answered by one sentence.

Training covers every fact; held-out items are combinations of fact and phrasing that training never shows.
"""

from __future__ import annotations

import random

from services.trainer_worker.demo.domains.fact_table import FACTS, Fact
from services.trainer_worker.demo.domains.item import Domain, Item, ends_with_value

_OPENERS = ("", "Please tell me: ", "I would like to know: ", "Quiz: ", "Do you know? ", "A short question. ")

_QUESTIONS: dict[str, tuple[str, ...]] = {
    "capital": (
        "What is the capital of {subject}?",
        "Which city is the capital of {subject}?",
        "Name the capital of {subject}.",
        "What is the name of the capital city of {subject}?",
        "{subject} is governed from which city?",
        "Where does the government of {subject} sit?",
    ),
    "continent": (
        "On which continent is {subject}?",
        "Which continent does {subject} belong to?",
        "Name the continent of {subject}.",
        "{subject} is a country on which continent?",
        "Where in the world is {subject}?",
    ),
    "symbol": (
        "What is the chemical symbol of {subject}?",
        "Which symbol stands for {subject}?",
        "Name the symbol of the element {subject}.",
        "How do chemists write {subject}?",
        "What is the short sign for {subject}?",
    ),
    "number": (
        "What is the atomic number of {subject}?",
        "Which atomic number does {subject} have?",
        "Name the atomic number of {subject}.",
        "How many protons does {subject} have?",
        "At which place of the periodic table is {subject}?",
    ),
    "kind": (
        "What kind of animal is the {subject}?",
        "To which class of animals does the {subject} belong?",
        "Name the animal class of the {subject}.",
        "Is the {subject} a mammal, a bird or something else?",
        "What sort of creature is the {subject}?",
    ),
    "young": (
        "What is the young of the {subject} called?",
        "What do we call a young {subject}?",
        "Name the young of the {subject}.",
        "Which word means a baby {subject}?",
        "A {subject} has a baby. What is it called?",
    ),
    "inventor": (
        "Who gave us {subject}?",
        "Whose name is linked with {subject}?",
        "Name the person behind {subject}.",
        "Which pioneer do we thank for {subject}?",
        "{subject_cap}: who was the pioneer?",
    ),
    "author": (
        "Who wrote {subject}?",
        "Who is the author of {subject}?",
        "Name the author of {subject}.",
        "Which writer wrote {subject}?",
        "{subject} was written by whom?",
    ),
}

_ANSWERS: dict[str, str] = {
    "capital": "The capital of {subject} is {value}.",
    "continent": "{subject} is a country in {value}.",
    "symbol": "The symbol of {subject} is {value}.",
    "number": "The atomic number of {subject} is {value}.",
    "kind": "The animal class of the {subject} is {value}.",
    "young": "The young of the {subject} is called {value}.",
    "inventor": "The pioneer of {subject} was {value}.",
    "author": "The author of {subject} is {value}.",
}


def answer_to(fact: Fact) -> str:
    """The sentence that states the fact; its last words are the value."""
    return _ANSWERS[fact.relation].format(subject=fact.subject, value=fact.value)


def _compose(rng: random.Random) -> Item:
    fact = rng.choice(FACTS)
    phrasing = rng.choice(_QUESTIONS[fact.relation])
    subject_cap = fact.subject[0].upper() + fact.subject[1:]
    opener = rng.choice(_OPENERS)
    question = opener + phrasing.format(subject=fact.subject, subject_cap=subject_cap)
    return Item(
        prompt=f"Question: {question}\nAnswer:",
        completion=f" {answer_to(fact)}\n",
        check={"value": fact.value, "relation": fact.relation, "subject": fact.subject},
        template=f"{fact.relation}: {opener}{phrasing}",
    )


def _is_correct(item: Item, answer: str) -> bool:
    return ends_with_value(answer, str(item.check["value"]))


DOMAIN = Domain(
    name="factual",
    description="Questions about countries, elements, animals, inventions and books, each answered in one sentence.",
    compose=_compose,
    is_correct=_is_correct,
    in_demo=True,
)
