"""Ordinary language that belongs to none of the domains: letters, diaries, descriptions, notices, talk.

A small grammar: documents are made of sentence patterns, patterns of words. It gives the base model its English; it
holds no questions with answers, no sums, no code and no tales. A good part of it are documents in which names, numbers
and words come back (see `recurring_text`): from them a model learns to look things up in what it has read, which every
later skill needs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from services.trainer_worker.demo.domains.lexicon import PEOPLE, PLACES, Person, fields_of, phrases, words
from services.trainer_worker.demo.recurring_text import RECURRING_KINDS

_WORDS: dict[str, tuple[str, ...]] = {
    "adj": words(
        "old new small large quiet busy warm cold bright dark narrow wide clean dusty pretty plain "
        "heavy light soft simple modern famous empty full long short round wooden green blue red "
        "white brown yellow pleasant strange friendly expensive cheap useful broken fresh comfortable "
        "ordinary beautiful"
    ),
    "noun": words(
        "table chair lamp window door house car bicycle letter newspaper picture clock coat umbrella "
        "bag bottle cup blanket carpet radio camera piano suitcase ladder basket shelf desk sofa "
        "fence roof gate engine jacket kettle pillow scarf towel wallet wardrobe hammer bucket "
        "curtain drawer boat hat train tree flower"
    ),
    "person": words(
        "neighbour teacher doctor driver nurse farmer waiter student cousin uncle aunt sister brother "
        "colleague visitor guest manager painter gardener mechanic tourist lawyer writer engineer "
        "secretary postman"
    ),
    "place": (
        *PLACES,
        *words("street airport hotel restaurant river beach hospital cinema shop corner mountain lake island town"),
        *["city", "countryside", "room", "cellar", "balcony", "valley"],
    ),
    "verb": words(
        "cleaned repaired painted carried moved opened closed bought sold found forgot borrowed "
        "washed noticed admired described photographed ordered delivered wrapped returned polished "
        "measured collected"
    ),
    "went": words("walked drove hurried travelled went returned moved cycled ran came wandered rode"),
    "feel": words(
        "happy tired worried pleased surprised bored excited calm nervous proud grateful curious "
        "disappointed relaxed hopeful lonely"
    ),
    "adverb": words("slowly quickly carefully quietly suddenly happily often finally gently loudly again"),
    "time": phrases(
        "in the morning|in the evening|at noon|after lunch|before dinner|on Monday|on Tuesday|on Wednesday|"
        "on Thursday|on Friday|on Saturday|on Sunday|last week|last month|last summer|last winter|yesterday|"
        "every day|at night|during the holidays|in spring|in autumn|a few days ago|all afternoon|for an hour"
    ),
    "weather": words("sunny rainy cloudy windy foggy stormy snowy mild hot freezing humid dry grey cool"),
    "food": words("soup bread cheese salad coffee tea milk cake fish rice pasta fruit chocolate juice pie"),
    "topic": phrases(
        "the weather|old films|the new road|the garden|their holidays|the football match|music|the price of bread|"
        "the neighbours|a long journey|the elections|modern art|the concert|their work|the coming winter"
    ),
    "reason": phrases(
        "the shop was closed|the train was late|it was too cold|nobody was at home|the light had gone out|"
        "the door was open|there was no time|the road was wet|the telephone was ringing|the key was missing|"
        "dinner was ready|the children were asleep|the view was so fine|everyone had left|work had to be finished"
    ),
    "colour": words("green blue red white brown yellow grey black"),
}

_SENTENCES: tuple[str, ...] = (
    "The {adj} {noun} stood near the {place}.",
    "{P} {verb} the {adj} {noun} {time}.",
    "{P} {went} to the {place} {time} because {reason}.",
    "The {person} {verb} a {noun} and a {adj} {noun}.",
    "It was {weather} {time}, so {P} stayed at the {place}.",
    "{P} was {feel}, for {reason}.",
    "There is a {adj} {noun} in the {place} behind the {noun}.",
    "{P} and the {person} talked about {topic} {time}.",
    "The {place} was {adj} and the {noun} was {colour}.",
    "{time_cap}, the {person} {verb} every {noun} in the {place}.",
    "{P} likes {food} and {food}, but {P_he} does not like {food}.",
    "{P_He} {adverb} {verb} the {noun} and {went} to the {place}.",
    "My {person} lives near the {place} in a {adj} {colour} house.",
    "We {went} past the {adj} {place} and saw a {person} with a {noun}.",
    "When {reason}, {P} {adverb} {verb} {P_his} {noun}.",
    "Although {reason}, the {person} was {feel}.",
    "The {noun} on the {noun} belongs to the {person}.",
    "If the weather is {weather}, {P} will go to the {place} with {P_his} {person}.",
    "{P} needs a {adj} {noun} for the {place}.",
    "Nobody knew why the {person} {verb} the {noun} {time}.",
    "The {adj} {person} with the {colour} {noun} is a {person} from the {place}.",
    "{P} has never seen such a {adj} {place}.",
    "After {food} and {food}, {P} {went} home {adverb}.",
    "Most people in the {place} prefer {food} to {food}.",
    "{time_cap} {P} felt {feel} and {verb} a {noun}.",
    "The road from the {place} to the {place} is {adj} and {adj}.",
    "They sat beside the {noun}, drank {food} and talked about {topic}.",
    "A {weather} day is a good day for the {place}.",
)


def _fill(rng: random.Random, pattern: str, person: Person) -> str:
    fields = fields_of(person, "P")

    def word(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in fields:
            return fields[name]
        if name == "time_cap":
            phrase = rng.choice(_WORDS["time"])
            return phrase[0].upper() + phrase[1:]
        return rng.choice(_WORDS[name])

    return re.sub(r"\{(\w+)\}", word, pattern)


def _sentences(rng: random.Random, person: Person, low: int, high: int) -> list[str]:
    return [_fill(rng, rng.choice(_SENTENCES), person) for _ in range(rng.randint(low, high))]


def _paragraph(rng: random.Random) -> str:
    return " ".join(_sentences(rng, rng.choice(PEOPLE), 2, 5)) + "\n"


def _letter(rng: random.Random) -> str:
    writer, reader = rng.sample(PEOPLE, 2)
    greeting = rng.choice(("Dear {name},", "Hello {name},", "My dear {name},", "Good day, {name}!"))
    thanks = rng.choice(
        (
            "Thank you for your letter about {topic}.",
            "I hope that you are {feel}.",
            "I am writing to you from the {place}.",
            "Here it has been {weather} {time}.",
        )
    )
    closing = rng.choice(("Yours,", "Best wishes,", "With kind regards,", "See you soon,"))
    body = " ".join([_fill(rng, thanks, writer), *_sentences(rng, rng.choice(PEOPLE), 1, 3)])
    return f"{greeting.format(name=reader.name)}\n{body}\n{closing}\n{writer.name}\n"


def _diary(rng: random.Random) -> str:
    day = rng.choice(words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"))
    own = _fill(rng, "I {went} to the {place} and felt {feel}, because {reason}.", rng.choice(PEOPLE))
    return f"{day}, {rng.choice(_WORDS['weather'])}. {own} " + _paragraph(rng)


def _notice(rng: random.Random) -> str:
    pattern = rng.choice(
        (
            "Notice: the {place} is closed {time} because {reason}.",
            "For sale: a {adj} {noun} and a {colour} {noun}, nearly new. Please ask the {person}.",
            "Lost near the {place}: a {colour} {noun}. The {person} would be {feel}.",
            "The {place} invites everyone to an evening about {topic}. There will be {food} and {food}.",
            "Wanted: a {feel} {person} for the {place}, {time}.",
        )
    )
    return _fill(rng, pattern, rng.choice(PEOPLE)) + "\n"


def _talk(rng: random.Random) -> str:
    first, second = rng.sample(PEOPLE, 2)
    lines = []
    for turn in range(rng.randint(2, 4)):
        speaker = (first, second)[turn % 2]
        lines.append(f'"{_fill(rng, rng.choice(_SENTENCES), rng.choice(PEOPLE))}" answered {speaker.name}.')
    return "\n".join(lines) + "\n"


_RECURRING_SHARE = 0.4
_KINDS: tuple[Callable[[random.Random], str], ...] = (_paragraph, _paragraph, _letter, _diary, _notice, _talk)


def generate_generic(seed: int, count: int) -> list[str]:
    """Write `count` documents of ordinary language: the same for the same arguments."""
    rng = random.Random(f"generic/{seed}")
    return [rng.choice(RECURRING_KINDS if rng.random() < _RECURRING_SHARE else _KINDS)(rng) for _ in range(count)]
