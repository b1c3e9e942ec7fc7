"""A hundred small domains in five families: what a router is asked to tell apart when there are many experts."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from benchmarks.routing_quality.texts import READERS, DomainText, cut_passages
from services.trainer_worker.demo.domains import DOMAINS

GENERATED_ITEMS = 1200
ITEMS_PER_PASSAGE = 4
QUESTIONS_PER_PASSAGE = 12
MIN_CHARACTERS = 4_000
HELD_OUT_EVERY = 4
FAMILIES = ("generated", "collection", "wikipedia", "shakespeare", "grimm")


@dataclass(frozen=True)
class Corpus:
    """One domain: `passages` that belong together, of a family of domains that are alike."""

    name: str
    family: str
    passages: tuple[str, ...]

    @property
    def num_characters(self) -> int:
        """How much text it is."""
        return sum(map(len, self.passages))

    def split(self, seed: int, *, most_characters: int) -> DomainText:
        """Every fourth passage, in an order drawn by `seed`, is held out; passages of one article lie on both sides."""
        order = np.random.default_rng(seed).permutation(len(self.passages)).tolist()
        held_out = order[::HELD_OUT_EVERY]
        train = [index for place, index in enumerate(order) if place % HELD_OUT_EVERY]
        validation = train[: max(1, len(train) // 10)]
        train = train[len(validation) :]
        sizes = np.cumsum([len(self.passages[index]) for index in train])
        train = train[: int(np.searchsorted(sizes, most_characters)) + 1]
        return DomainText(self.name, *(tuple(self.passages[i] for i in part) for part in (train, validation, held_out)))


def read_corpora(folder: Path) -> list[Corpus]:
    """All domains, the families taking turns and each beginning with its largest: any first N are a mixture of all."""
    families = [sorted(read(folder), key=lambda corpus: -corpus.num_characters) for read in _FAMILY_READERS]
    turns = zip_longest(*families)
    return [corpus for turn in turns for corpus in turn if corpus is not None]


def questions(folder: Path) -> Iterator[str]:
    """Questions of NQ-open with their answers, a dozen a passage."""
    rows = [json.loads(line) for line in (folder / "NQ-open.dev.jsonl").read_text().splitlines()]
    lines = [f"{row['question']}? {row['answer'][0]}" for row in rows]
    yield from _grouped(lines, QUESTIONS_PER_PASSAGE)


def instructions(folder: Path) -> Iterator[str]:
    """Instructions of self-instruct with input and output."""
    for line in (folder / "user_oriented_instructions.jsonl").read_text().splitlines():
        row = json.loads(line)
        for instance in row["instances"]:
            yield "\n".join(part for part in (row["instruction"], instance["input"], instance["output"]) if part)


def _grouped(texts: Sequence[str], number: int) -> Iterator[str]:
    for start in range(0, len(texts), number):
        yield "\n".join(texts[start : start + number])


def _generated(folder: Path) -> Iterator[Corpus]:
    for name, domain in DOMAINS.items():
        items = domain.generate(0, GENERATED_ITEMS, "train")
        texts = list(dict.fromkeys(item.text for item in items))
        yield Corpus(f"demo {name}", "generated", tuple(_grouped(texts, ITEMS_PER_PASSAGE)))


def _collections(folder: Path) -> Iterator[Corpus]:
    for name in ("gsm8k", "mbpp"):
        yield Corpus(name, "collection", tuple(READERS[name](folder)))
    yield Corpus("NQ-open", "collection", tuple(questions(folder)))
    yield Corpus("instructions", "collection", tuple(instructions(folder)))


def _articles(folder: Path) -> Iterator[Corpus]:
    for article in READERS["wikipedia"](folder):
        title = re.split(r"[(,;]| is | was | are | primarily | in Greek ", article, maxsplit=1)[0].strip()
        yield from _document(title, "wikipedia", article)


def _characters(folder: Path) -> Iterator[Corpus]:
    speeches: dict[str, list[str]] = {}
    for speech in (folder / "tinyshakespeare.txt").read_text().split("\n\n"):
        name, _, words = speech.partition(":\n")
        speeches.setdefault(name.strip().title(), []).append(words.strip())
    for name, spoken in speeches.items():
        yield from _document(name, "shakespeare", "\n\n".join(spoken))


def _tales(folder: Path) -> Iterator[Corpus]:
    for tale in READERS["grimm"](folder):
        yield from _document(tale.split("\n", 1)[0].strip().title(), "grimm", tale)


def _document(name: str, family: str, text: str) -> Iterator[Corpus]:
    if len(text) >= MIN_CHARACTERS:
        yield Corpus(f"{family}: {name}", family, tuple(cut_passages(text)))


_FAMILY_READERS = (_generated, _collections, _articles, _characters, _tales)


def families_of(corpora: Sequence[Corpus]) -> np.ndarray:
    """The family of each column, as a number, and one of its own for the base: [C]."""
    return np.array([FAMILIES.index(corpus.family) for corpus in corpora] + [len(FAMILIES)])
