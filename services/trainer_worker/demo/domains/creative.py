"""Creative writing: short tales with named characters, and a checkable thing in how each goes on.

Who holds the thing at the end, what a character of this trait does, what a character always says, which lesson a fable
teaches, and couplets that rhyme. An answer is right when it holds what is required and nothing that contradicts it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence

from services.trainer_worker.demo.domains.item import Domain, Item
from services.trainer_worker.demo.domains.lexicon import phrases, words

HERO_NAMES = words(
    "Pip Fern Bramble Hazel Juniper Moss Willow Clover Thistle Rowan Sorrel Tansy Bracken Nettle Wren "
    "Linnet Aspen Marlow Quill Tumble Barley Saffron Pepper Ginger Olive Poppy Basil Sage Rusty Misty "
    "Dusty Pebble Flint Ember Ash Star Luna Comet Breeze Storm"
)
CREATURES = words(
    "fox bear mouse owl rabbit badger otter squirrel hedgehog wolf deer raven turtle frog sparrow beaver "
    "mole swan lynx weasel dragon giant witch wizard fairy knight sailor shepherd miller piper"
)
TREASURES = words(
    "lantern crown key map ring flute feather mirror compass locket acorn drum cloak harp pearl whistle "
    "candle bell sword scroll"
)
SETTINGS = phrases(
    "deep forest|old mill|silver lake|quiet valley|high tower|snowy mountain|misty moor|secret garden|"
    "sandy shore|golden meadow|dark cave|tiny village|winding river|ruined castle|windy hill"
)
_OPENINGS = (
    "Once upon a time, in the {setting}, there lived a {adjective} {creature} named {hero}.",
    "Long ago a {adjective} {creature} called {hero} came to the {setting}.",
    "Far away, near the {setting}, {hero} the {adjective} {creature} woke up early.",
    "In the {setting} everybody knew {hero}, the {adjective} {creature}.",
    "{hero} was a {adjective} {creature} who loved the {setting}.",
)
_COLOURS = (
    "The moon was shining.",
    "A soft wind sang in the trees.",
    "Snow lay on every branch.",
    "The stars were bright that night.",
    "Rain tapped on the leaves.",
    "It was the first day of spring.",
    "Somewhere a bell was ringing.",
    "The morning was full of mist.",
    "",
    "",
)
_ADJECTIVES = words("little young old merry sleepy lonely cheerful wandering golden grey tall curious")

_HANDOVERS = (
    "{giver} gave the {thing} to {taker}.",
    "{giver} handed the {thing} to {taker}.",
    "Then {taker} took the {thing} from {giver}.",
    "{taker} borrowed the {thing} from {giver}.",
    "{giver} passed the {thing} on to {taker} with a smile.",
)
_POSSESSION_QUESTIONS = ("Who has the {thing} now?", "Who kept the {thing} in the end?", "Where did the {thing} stay?")

# What a character of each trait does in each trouble: the conventions of this little world, to be learned by heart.
_TRAITS: Mapping[str, str] = {
    "brave": "marched straight up to it and raised a lamp",
    "shy": "hid behind a tree and only peeped out",
    "clever": "sat down, drew a plan and tricked it",
    "lazy": "yawned, lay down and fell asleep",
    "kind": "smiled and offered it a warm meal",
    "greedy": "asked at once how much gold it had",
    "proud": "lifted its chin and bowed to nobody",
    "funny": "told a joke until everyone laughed",
    "careful": "walked around it slowly, step by step",
    "musical": "played a song until it danced",
    "hungry": "wondered whether it could be eaten",
    "stubborn": "stood still and refused to move",
    "gentle": "whispered softly and stroked its back",
    "jealous": "complained that others had a better one",
    "honest": "told it the whole truth without a blush",
    "dreamy": "looked at the clouds and forgot it",
}
_TROUBLES = (
    "a roaring monster",
    "a locked gate",
    "a grumpy troll",
    "a lost child",
    "a flying carpet",
    "a talking stone",
    "a river without a bridge",
    "a sleeping king",
    "a strange machine",
    "a crying ghost",
    "a wild horse",
    "a ship made of glass",
)

_SAYINGS = phrases(
    "by my whiskers|stars and thunder|tick tock|oh happy day|leaves and berries|hop and skip|"
    "moon and honey|bless my boots|salt and pepper|wind and waves|sugar and snow|drums and trumpets|"
    "rocks and roots|ho ho hey|bread and butter|feathers and fog"
)
_OCCASIONS = (
    "the sun came up",
    "a friend knocked at the door",
    "the soup was ready",
    "a letter arrived",
    "it began to snow",
    "the music started",
    "somebody sneezed",
    "the boat reached the shore",
)

_LESSONS: Mapping[str, tuple[str, str]] = {
    "boasted that nobody could run faster, and lost the race": ("Pride", "goes before a fall"),
    "saved a coin every day and could buy a house at last": ("Patience", "brings the reward"),
    "cried wolf for fun until nobody came to help": ("Lies", "destroy all trust"),
    "shared the last bread and was rescued by a stranger": ("Kindness", "always comes back"),
    "wanted two fish at once and dropped both": ("Greed", "leaves empty hands"),
    "worked all summer and was warm in winter": ("Work", "feeds the winter"),
    "asked for advice and found the right road": ("Questions", "open every road"),
    "forgave an enemy and gained a friend": ("Forgiveness", "makes new friends"),
    "climbed after falling down nine times": ("Courage", "is trying again"),
    "built the roof before the walls": ("Haste", "spoils the work"),
    "listened while everybody else was shouting": ("Silence", "hears the most"),
    "mixed old songs until a new one was born": ("Art", "begins with play"),
    "carried the heavy log together with the others": ("Together", "burdens grow light"),
    "kept a promise although it was raining stones": ("Promises", "are made of iron"),
}

_RHYMES: tuple[tuple[str, ...], ...] = (
    ("cat", "hat", "mat", "bat", "rat"),
    ("night", "light", "bright", "kite", "flight"),
    ("tree", "bee", "sea", "key", "tea"),
    ("moon", "spoon", "tune", "balloon", "june"),
    ("day", "way", "bay", "hay", "clay"),
    ("rain", "train", "lane", "chain", "plane"),
    ("gold", "cold", "fold", "hold", "mould"),
    ("snow", "crow", "bow", "glow", "toe"),
    ("king", "ring", "wing", "spring", "string"),
    ("house", "mouse", "blouse", "louse", "grouse"),
    ("stone", "bone", "throne", "phone", "cone"),
    ("star", "car", "jar", "guitar", "bar"),
    ("bed", "bread", "thread", "sled", "shed"),
    ("boat", "goat", "coat", "note", "moat"),
    ("hill", "mill", "quill", "pill", "till"),
    ("door", "floor", "shore", "oar", "core"),
)
_FIRST_LINES = (
    "{hero} saw the {word}",
    "{hero} the {creature} loved the {word}",
    "In the {setting} {hero} found a {word}",
    "One day {hero} dreamed about a {word}",
    "Nobody but {hero} could see the {word}",
)
_SECOND_LINES = (
    "and sang a song about the {rhyme}",
    "and far away there was a {rhyme}",
    "and so {hero} bought another {rhyme}",
    "and nobody remembered the {rhyme}",
    "and danced all day around the {rhyme}",
)


def _opening(rng: random.Random, hero: str, creature: str) -> str:
    sentence = rng.choice(_OPENINGS).format(
        hero=hero, creature=creature, setting=rng.choice(SETTINGS), adjective=rng.choice(_ADJECTIVES)
    )
    return f"{sentence} {rng.choice(_COLOURS)}".strip()


def _tale(story: str, question: str, completion: str, *, check: dict[str, object], template: str) -> Item:
    return Item(f"Tale: {story}\n{question}\n", completion + "\n", check, template)


def _possession(rng: random.Random) -> Item:
    names = rng.sample(HERO_NAMES, 3)
    thing = rng.choice(TREASURES)
    holder = names[0]
    lines = [f"{_opening(rng, holder, rng.choice(CREATURES))} {holder} found a {thing}."]
    templates = []
    for _ in range(rng.randint(1, 2)):
        taker = rng.choice([name for name in names if name != holder])
        handover = rng.choice(_HANDOVERS)
        templates.append(handover)
        lines.append(handover.format(giver=holder, taker=taker, thing=thing))
        holder = taker
    question = rng.choice(_POSSESSION_QUESTIONS)
    return _tale(
        " ".join(lines),
        question.format(thing=thing),
        f"In the end {holder} had the {thing}.",
        check={"required": [holder], "forbidden": [name for name in names if name != holder]},
        template=f"possession/{'/'.join(templates)}/{question}",
    )


def _character(rng: random.Random) -> Item:
    hero, creature = rng.choice(HERO_NAMES), rng.choice(CREATURES)
    trait, deed = rng.choice(list(_TRAITS.items()))
    trouble = rng.choice(_TROUBLES)
    return _tale(
        f"{_opening(rng, hero, creature)} {hero} was very {trait}. One day {hero} met {trouble}.",
        f"What did {hero} do?",
        f"{hero} {deed}.",
        check={"required": [hero, deed], "forbidden": [other for other in _TRAITS.values() if other != deed]},
        template=f"character/{trait}/{trouble}",
    )


def _saying(rng: random.Random) -> Item:
    hero, other = rng.sample(HERO_NAMES, 2)
    saying, wrong = rng.sample(_SAYINGS, 2)
    occasion = rng.choice(_OCCASIONS)
    habits = [f'{hero} always said "{saying}".', f'{other} always said "{wrong}".']
    rng.shuffle(habits)
    return _tale(
        f"{_opening(rng, hero, rng.choice(CREATURES))} {' '.join(habits)} Then {occasion}.",
        f"What did {hero} say?",
        f'"{saying.capitalize()}!" said {hero}.',
        check={"required": [saying, hero], "forbidden": [wrong]},
        template=f"saying/{occasion}",
    )


def _fable(rng: random.Random) -> Item:
    hero, creature = rng.choice(HERO_NAMES), rng.choice(CREATURES)
    deed, (subject, predicate) = rng.choice(list(_LESSONS.items()))
    lesson = f"{subject} {predicate}"
    return _tale(
        f"{_opening(rng, hero, creature)} {hero} {deed}.",
        "What is the lesson?",
        f"The lesson of {hero}: {lesson}.",
        check={"required": [lesson], "forbidden": []},
        template=f"fable/{subject}",
    )


def _couplet(rng: random.Random) -> Item:
    hero, creature = rng.choice(HERO_NAMES), rng.choice(CREATURES)
    family = rng.choice(_RHYMES)
    position = rng.randrange(len(family))
    word, rhyme = family[position], family[(position + 1) % len(family)]
    fields = {"hero": hero, "creature": creature, "setting": rng.choice(SETTINGS), "word": word, "rhyme": rhyme}
    first, second = rng.choice(_FIRST_LINES), rng.choice(_SECOND_LINES)
    return Item(
        prompt=f"Rhyme: {first.format(**fields)},\n",
        completion=f"{second.format(**fields)}.\n",
        check={"last_word": [other for other in family if other != word]},
        template=f"couplet/{first}/{word}",
    )


_KINDS: tuple[Callable[[random.Random], Item], ...] = (_possession, _character, _saying, _fable, _couplet)


def _compose(rng: random.Random) -> Item:
    return rng.choice(_KINDS)(rng)


def holds(answer: str, required: Sequence[str], forbidden: Sequence[str]) -> bool:
    """Whether the answer contains every required phrase and no forbidden one, as whole words, whatever the case."""

    def contains(phrase: str) -> bool:
        return re.search(rf"\b{re.escape(phrase)}\b", answer, re.IGNORECASE) is not None

    return all(map(contains, required)) and not any(map(contains, forbidden))


def _is_correct(item: Item, answer: str) -> bool:
    text = answer.strip()
    if "last_word" in item.check:
        words = re.findall(r"[a-z]+", text.casefold())
        return bool(words) and words[-1] in item.check["last_word"]
    return holds(text, item.check["required"], item.check["forbidden"])


DOMAIN = Domain(
    name="creative",
    description="Tales with named characters, fables and couplets, each continued in a way that can be checked.",
    compose=_compose,
    is_correct=_is_correct,
    in_demo=True,
)
